"""The module that CoViPAL (arXiv 2508.17243) trains: a small encoder that scores visual tokens.

Its form is not published; sizes and wiring are those of this project, each a field of `Sizes`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.base import MethodError
from ivc_jax.methods.fields import check_choice
from ivc_jax.module_sizes import Sizes
from ivc_jax.nn.attention import attend_biased
from ivc_jax.types import typed

_WAVELENGTH = 10_000.0  # of the slowest sine embedding, in cells


def read_sizes(usual: Sizes, said: Mapping[str, Any]) -> Sizes:
    """Return the usual sizes with those that a file says of its module.

    Raises:
        MethodError: it says something that nobody knows, or that no module can be.
    """
    known = [field.name for field in dataclasses.fields(Sizes)]
    for name in said:
        check_choice("a size that the weights name", name, tuple(known))
    try:
        return dataclasses.replace(usual, **said)
    except ValueError as error:
        raise MethodError(f"weights of impossible sizes: {error}") from None


class PPM(nn.Module):
    """Plug-and-play pruning module: visual and text tokens in, a score a visual token out.

    hv, ht -> norm -> project -> + type, + place -> blocks over both -> norm -> 1
              `-- shared ------'
    """

    sizes: Sizes

    def setup(self) -> None:
        """Declare the parts; the last one starts at zero, so that nothing is preferred."""
        sizes = self.sizes
        self.norm_in = nn.LayerNorm()
        self.project = nn.Dense(sizes.width)
        self.types = self.param("types", nn.initializers.normal(0.02), (2, sizes.width))
        self.block = [Block(sizes) for _ in range(sizes.blocks)]
        self.norm_out = nn.LayerNorm()
        self.score = nn.Dense(1, kernel_init=nn.initializers.zeros)

    def __call__(
        self,
        visual: Float[Array, "B N D"],
        text: Float[Array, "B T D"],
        visual_valid: Bool[Array, "B N"],
        text_valid: Bool[Array, "B T"],
        grid: Int[Array, "B N 3"],
    ) -> Float[Array, "B N"]:
        """Score visual tokens in float32; padding may hold anything and gets anything.

        Args:
            grid: (frame, row, column) of each visual token.
        """
        N = visual.shape[1]
        valid = jnp.concatenate([visual_valid, text_valid], axis=1)  # [B, N + T]
        joined = jnp.concatenate([visual, text], axis=1)  # [B, N + T, D]
        joined = jnp.where(valid[..., None], joined, 0).astype(jnp.float32)
        kind = jnp.where(jnp.arange(valid.shape[1]) < N, 0, 1)  # [N + T]
        stream = self.project(self.norm_in(joined)) + self.types[kind]  # [B, N + T, d]
        if self.sizes.places:
            stream = stream.at[:, :N].add(embed_places(grid, self.sizes.width))
        shares = pool_evenly(visual_valid, self.sizes.pooled) if self.sizes.cross else None
        for block in self.block:
            stream = block(stream, valid, shares)
        return self.score(self.norm_out(stream[:, :N]))[..., 0]


class Block(nn.Module):
    """Pre-norm transformer block, in both directions."""

    sizes: Sizes

    @nn.compact
    def __call__(self, stream: jax.Array, valid: jax.Array, shares: jax.Array | None) -> jax.Array:
        """Run the block on visual tokens and the text behind them, [B, N + T, d].

        Args:
            valid: [B, N + T].
            shares: [B, P, N], of each visual token in each pooled one; None attends to all.
        """
        sizes, (B, S, _) = self.sizes, stream.shape
        normed = nn.LayerNorm(name="norm_attention")(stream)
        seen, mask = normed, valid
        if shares is not None:
            N = shares.shape[2]
            pooled = jnp.einsum("bpn,bnd->bpd", shares, normed[:, :N])  # [B, P, d]
            seen = jnp.concatenate([pooled, normed[:, N:]], axis=1)  # [B, P + T, d]
            mask = jnp.concatenate([(shares > 0).any(axis=2), valid[:, N:]], axis=1)
        query, key, value = (
            nn.Dense(sizes.width, name=name)(x).reshape(B, x.shape[1], sizes.heads, -1)
            for name, x in (("query", normed), ("key", seen), ("value", seen))
        )
        mixed = attend_biased(query, key, value, mask[:, None, None])  # [B, S, heads, d / heads]
        stream = stream + nn.Dense(sizes.width, name="out")(mixed.reshape(B, S, -1))
        normed = nn.LayerNorm(name="norm_mlp")(stream)
        inner = nn.gelu(nn.Dense(sizes.mlp_ratio * sizes.width, name="up")(normed))
        return stream + nn.Dense(sizes.width, name="down")(inner)


@typed
def embed_places(grid: Int[Array, "B N 3"], width: int) -> Float[Array, "B N D"]:
    """Embed (frame, row, column) by sines: row and column in halves of the width, frame over both.

    width 8      sin(row) sin(row/100) cos cos | the same of the column,    + of the frame
    """

    def waves(place: jax.Array, size: int) -> jax.Array:
        turns = place[..., None] * _WAVELENGTH ** (-jnp.arange(size // 2) / (size // 2))
        return jnp.concatenate([jnp.sin(turns), jnp.cos(turns)], axis=-1)  # [B, N, size]

    frame, row, column = jnp.moveaxis(grid.astype(jnp.float32), -1, 0)  # [B, N] each
    sides = jnp.concatenate([waves(row, width // 2), waves(column, width // 2)], axis=-1)
    # What a single picture gets is a constant: its only frame is 0.
    return sides + waves(frame, width)


@typed
def pool_evenly(valid: Bool[Array, "B N"], pooled: int) -> Float[Array, "B P N"]:
    """Return the share of each token in each of so many runs of valid tokens, as even as they get.

    6 tokens in 4 runs      run of each: 0 0 1 2 2 3
    """
    count = valid.sum(axis=1, keepdims=True)  # [B, 1]
    place = jnp.cumsum(valid, axis=1) - 1  # [B, N], among the valid ones
    run = jnp.where(valid, place * pooled // jnp.maximum(count, 1), -1)
    member = (run[:, None] == jnp.arange(pooled)[:, None]).astype(jnp.float32)  # [B, P, N]
    return member / jnp.maximum(member.sum(axis=2, keepdims=True), 1)
