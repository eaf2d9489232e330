"""Random signals for any method, drawn from what it asks for, and runs through all of its cuts."""

import zlib

import jax.numpy as jnp
import numpy as np
from helpers.layouts import FixedAttention, listed, run_stage, shorten

from ivc_jax.methods import requests as asks

H, G, C, D, E = 3, 2, 4, 6, 5
MOST = 400  # visual tokens of a sample, whose attention is cut to the bucket


def draw_signals(requests, layout, unpruned, carry=None, padding=np.nan, spoilt=None) -> dict:
    """Draw one signal for each request, as the engine would give it at this cut.

    What is drawn for a token depends on its sample, told by its sizes, and on the request: not on
    batch mates, padding or what earlier cuts have dropped.

    Args:
        layout: of the current sequence.
        unpruned: the layout before any cut.
        carry: what the cut before has left.
        padding: what padding holds, where the request does not say that it is zero.
        spoilt: a visual token of every sample, by its place in the unpruned prompt, of which all
            signals are NaN.
    """
    signals = {}
    for request in requests:
        draw = _Draw(request, layout, unpruned, padding, spoilt)
        match request:
            case asks.RopeSettings():
                continue  # `run_stage` knows it
            case asks.Carry():
                signals[request] = carry
            case asks.Values() | asks.Keys():
                signals[request] = draw.vectors(layout, G, C)
            case asks.Hidden():
                signals[request] = draw.vectors(layout, D)
            case asks.Embeddings():
                signals[request] = draw.vectors(unpruned, D)
            case asks.AttentionRows(queries="text"):
                signals[request] = draw.rows(layout.text_valid)
            case asks.AttentionRows():
                last = np.ones((len(layout.lengths), request.count), bool)
                signals[request] = draw.rows(last)
            case asks.AttentionReceived():
                signals[request] = draw.visual(layout) ** 2
            case asks.TowerAttention():
                signals[request] = draw.tower_attention()
            case asks.TowerKeys() | asks.TowerFeatures():
                signals[request] = draw.visual(unpruned, E)
            case asks.PixelEntropy():
                signals[request] = abs(draw.visual(unpruned))
    return signals


class _Draw:
    def __init__(self, request, layout, unpruned, padding, spoilt):
        self.layout, self.unpruned, self.padding = layout, unpruned, padding
        self.spoilt, self.seed = spoilt, zlib.crc32(repr(request).encode())

    def generator(self, row, *more):
        """Make the generator of a sample, which is told by its sizes before any cut."""
        sizes = np.asarray(self.unpruned.visual_count)[row], np.asarray(self.unpruned.lengths)[row]
        return np.random.default_rng([self.seed, *map(int, sizes), *more])

    def visual(self, layout, *shape):
        """Vectors of the visual tokens of a layout: [B, V, ...]."""
        origin, valid = np.asarray(layout.visual_origin), np.asarray(layout.visual_valid)
        table = np.full((*origin.shape, *shape), self.padding, np.float32)
        for row, count in enumerate(np.asarray(layout.visual_count)):
            drawn = self.generator(row).normal(size=(count, *shape)) + 0.3
            if self.spoilt is not None:
                drawn[self.spoilt] = np.nan
            table[row, valid[row]] = drawn[origin[row, valid[row]]]
        return jnp.asarray(table)

    def text(self, *shape):
        """Vectors of the text: [B, T, ...]."""
        valid = np.asarray(self.layout.text_valid)
        table = np.full((*valid.shape, *shape), self.padding, np.float32)
        for row, count in enumerate(valid.sum(axis=1)):
            table[row, :count] = self.generator(row, 1).normal(size=(count, *shape)) + 0.3
        return jnp.asarray(table)

    def vectors(self, layout, *shape):
        return asks.TokenVectors(self.visual(layout, *shape), self.text(*shape))

    def rows(self, queries):
        """Attention [B, H, Q, V]; rows of padding are zero."""
        valid = np.asarray(queries)
        of_token = np.moveaxis(np.asarray(self.visual(self.layout, H, 64)) ** 2, 1, -1)
        rows = of_token[:, :, : valid.shape[1]]
        return jnp.asarray(np.where(valid[:, None, :, None], rows, 0.0))

    def tower_attention(self):
        """What each token gives each of its sample; nothing comes from padding."""
        columns = np.asarray(self.visual(self.unpruned, MOST)) ** 2  # [B, key, query]
        matrix = np.moveaxis(columns, 1, 2)[:, : columns.shape[1]]
        asked = np.asarray(self.unpruned.visual_valid)[..., None]
        return FixedAttention(jnp.asarray(np.where(asked, matrix, 0.0)), self.unpruned)


def run_cuts(method, layout, padding=np.nan, spoilt=None, whole=False) -> list[list[tuple]]:
    """Run all cuts of a resolved method; check the form of its selections.

    Args:
        whole: let a cut keep as many tokens as there are; otherwise as many as its capacity says.

    Returns:
        For each cut and sample the kept tokens, by their place in the unpruned prompt, and the
        weights of the selection, or None.
    """
    unpruned, carry, results = layout, None, []
    for number, stage in enumerate(method.stages):
        signals = draw_signals(
            method.requests(stage), layout, unpruned, carry, padding, None if number else spoilt
        )
        V = layout.visual_index.shape[1]
        chosen = run_stage(method, layout, signals, number, num_keep=V if whole else None)
        kept, weights, carry = listed(chosen), chosen.weights, chosen.carry
        origin = np.asarray(layout.visual_origin)
        if weights is not None:
            weights = np.asarray(weights)
            assert weights.shape == (*chosen.index.shape, V)
            assert not weights[~np.asarray(chosen.valid)].any()
            assert not weights[:, :, ~np.asarray(layout.visual_valid).any(axis=0)].any()
        results.append(
            [
                (origin[row, tokens].tolist(), None if weights is None else weights[row])
                for row, tokens in enumerate(kept)
            ]
        )
        layout = shorten(layout, chosen)
    return results
