"""Attention and vectors of visual tokens given by hand, as the signals of methods."""

import jax.numpy as jnp
import numpy as np

from ivc_jax.methods.drawn import FixedAttention, lay_out


def fill(layout, rows, junk=9.0):
    """Put values [n, ...] of every sample into [B, V, ...]; padding holds junk."""
    shape = layout.image_id.shape
    table = np.full((*shape, *np.shape(rows[0])[1:]), junk, np.float32)
    for target, row in zip(table, rows, strict=False):
        target[: len(row)] = row
    return jnp.asarray(table)


def fix_attention(layout, rows, junk=9.0):
    """Answer a request for tower attention with values [n] of every sample."""
    received = fill(layout, rows, junk)
    V = received.shape[1]
    return FixedAttention(jnp.broadcast_to(received[:, None], (len(received), V, V)), layout)


def list_frames(sample):
    """List the visual tokens of every frame of a sample, an image being one, with its cells.

    Returns:
        Pairs of token numbers and of (row, column), and whether the frame is its visual's first.
    """
    row, frames = lay_out(sample), {}
    for token, (image, cell) in enumerate(zip(row["image"], row["grid"], strict=True)):
        frames.setdefault((image, int(cell[0])), []).append((token, tuple(map(int, cell[1:]))))
    return [([t for t, _ in f], [c for _, c in f], key[1] == 0) for key, f in frames.items()]


def rank_down(values):
    """Sort indices by falling value, the lowest index first of equals."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))
