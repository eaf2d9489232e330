"""CDPruner (arXiv 2506.10967): diverse tokens that suit the question, by a determinant."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.methods.base import MethodError, Stage
from ivc_jax.methods.farthest import by_cosine
from ivc_jax.methods.question import mark_behind
from ivc_jax.methods.requests import Embeddings, Request, Signals, TokenVectors
from ivc_jax.methods.select import NEAR, Segments, first_largest, from_mask, normalize
from ivc_jax.methods.upfront import Upfront, lose_no_image
from ivc_jax.types import Layout, Selection, typed

_EPSILON = 1e-6  # of the released scaling, in the numerator alone
_SPENT = 1e-6  # part of the kernel's largest entry that is 0 but for rounding
# Part of it within which two gains are a tie: finer than `NEAR`, as in DivPrune.
_NEAR = 2.0**-20
_ROUNDING = 2.0**-22  # of a cosine of two vectors that a model has computed
_BLOCK = 64  # rows of the factor that are read together


@dataclasses.dataclass(frozen=True)
class CDPruner(Upfront):
    """Keep, greedily, the tokens whose kernel has the largest determinant (section 3).

    The kernel is r_i cosine_ij r_j: tokens that differ make it large, and so do tokens with a large
    relevance r, the mean cosine of the token with the text behind the last visual token (all text
    if there is none), scaled to about [0, 1] in its frame; 1 where all are alike. Every frame is
    pruned on its own and keeps floor(keep_ratio * tokens), an image or a video at least one.

    Both cosines are those of the decoder's input vectors: what a port to Qwen2-VL does
    (openvino.genai), for which no code is released. The released code (Theia-4869/CDPruner) takes
    CLIP's text tower, which no checkpoint of LLaVA holds, and turns the sign of the relevance, said
    to be right for CLIP alone.

    Once the largest gain left is 0 up to rounding, which the released code divides by until tokens
    repeat, the tokens left with the largest relevance follow, the first of equals.

    Token after token: K V D + K² V / 2 products and B K V float32 numbers.

    Attributes:
        negate: turn the sign of the relevance: the released code for CLIP.
        theta: weight of the relevance in [0, 1): r becomes exp(r theta / (2 (1 - theta))). None is
            r itself, as released.
    """

    name: ClassVar[str] = "cdpruner"

    negate: bool = False
    theta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.theta is not None and not 0 <= self.theta < 1:
            raise MethodError(f"theta must be in [0, 1), got {self.theta}")

    def requests(self, stage: Stage) -> tuple[Request, ...]:
        """Ask for all tokens as they enter the decoder."""
        return (Embeddings(),)

    def select(self, signals: Signals, layout: Layout, stage: Stage, num_keep: int) -> Selection:
        """Relate the tokens to the text and search in one frame after the other."""
        if not layout.visual_valid.shape[1]:
            return from_mask(layout.visual_valid, num_keep)
        vectors, within = signals[Embeddings()], Segments.by_frame(layout)
        counts = within.look_up(self._count(stage, layout.visual_slots))
        counts = lose_no_image(counts, layout)
        cosine = relate(vectors, layout)
        relevance, near = scale(-cosine if self.negate else cosine, within, self.theta)
        keep = maximise(vectors.visual, relevance, within, counts, num_keep, near)
        return from_mask(keep, num_keep)


@typed
def relate(vectors: TokenVectors, layout: Layout) -> Float[Array, "B V"]:
    """Average the cosines of every visual token with the question; 0 without any text."""
    behind = mark_behind(layout)  # [B, T]
    asked = jnp.where(behind.any(axis=1, keepdims=True), behind, layout.text_valid)
    text = jnp.where(asked[..., None], normalize(vectors.text), 0.0)  # [B, T, D]
    # The mean of the cosines is the product with the mean of the directions.
    mean = text.sum(axis=1) / jnp.maximum(asked.sum(axis=1, keepdims=True), 1)  # [B, D]
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("bvd,bd->bv", normalize(vectors.visual), mean, precision=exact)


@typed
def scale(
    cosine: Float[Array, "B V"], within: Segments, theta: float | None = None
) -> tuple[Float[Array, "B V"], Float[Array, "B V"]]:
    """Scale relevance to [0, 1] in every segment, as released; 1 where all are alike.

    Returns:
        The relevance, 0 at padding, and what part of it rounding may have made.
    """
    cosine = jnp.where(within.valid, cosine, 0.0)
    least, most = within.min(cosine), within.max(cosine)  # [B, V] both
    alike = ~(most - least > NEAR)  # or unknown: NaN
    width = jnp.where(alike, 1.0, most - least)
    relevance = jnp.where(alike, 1.0, (cosine - least + _EPSILON) / width)
    if theta is not None:
        relevance = jnp.exp(theta / (2 * (1 - theta)) * relevance)
    near = jnp.where(alike, _NEAR, jnp.maximum(_NEAR, _ROUNDING / width))
    return jnp.where(within.valid, relevance, 0.0), near


@typed
def maximise(
    vectors: Float[Array, "B V D"],
    relevance: Float[Array, "B V"],
    within: Segments,
    counts: Int[Array, "B V"],
    num_keep: int,
    near: Float[Array, "B V"],
) -> Bool[Array, "B V"]:
    """Pick tokens of each segment one by one by what they multiply the determinant with.

    An incremental Cholesky factor (fast greedy MAP, arXiv 1709.05135): row s of it, written when
    token j is the s-th pick of its segment, takes from every other token's gain its square.

        g[s, i] = (kernel[j, i] - sum over p < s of g[p, j] g[p, i]) / sqrt(gain[j])

    One segment is filled after the other. Segments share the rows: what one has written lies in
    columns that no other reads.

    Args:
        counts: tokens to keep in this token's segment, 0 at padding.
        num_keep: K, at least the sum of the counts of a sample.
        near: part of the largest gain within which others are its equals.

    Returns:
        The mask of the picked tokens.
    """
    B, V, _ = vectors.shape
    units, number = normalize(vectors), within.number
    compare = by_cosine(units)
    rows, slots = jnp.arange(B), jnp.arange(V, dtype=jnp.int32)
    diagonal = relevance**2 * jnp.square(units).sum(axis=2)  # [B, V]
    # NaN gains nothing and takes nothing from others, so that it stays inside its segment.
    diagonal = jnp.where(within.valid & ~jnp.isnan(diagonal), diagonal, 0.0)
    most = within.max(diagonal)

    def step(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        gain, factor, picked, left = state
        mine = number == jnp.where(left > 0, number, V).min(axis=1, keepdims=True)  # [B, V]
        token, spent = _choose(gain, relevance, most, near, mine, mine & ~picked)  # [B, 1] both
        place = _largest(mine, counts - left)[:, 0]  # [B], picks so far
        own = jnp.take_along_axis(relevance, token, axis=1)
        kernel = own * relevance * compare(token)  # [B, V]
        root = jnp.sqrt(jnp.maximum(jnp.take_along_axis(gain, token, axis=1), 0.0))
        row = (kernel - _project(factor, token, place)) / root
        row = jnp.where(mine & ~spent & ~jnp.isnan(row), row, 0.0)
        factor = factor.at[rows, place].add(row)
        picked = picked | (mine & (slots == token))
        return gain - row**2, factor, picked, left - mine

    factor = jnp.zeros((B, -(-num_keep // _BLOCK) * _BLOCK, V))
    state = diagonal, factor, jnp.zeros((B, V), bool), counts
    return jax.lax.fori_loop(0, num_keep, step, state)[2]


@typed
def _choose(
    gain: Float[Array, "B V"],
    relevance: Float[Array, "B V"],
    most: Float[Array, "B V"],
    near: Float[Array, "B V"],
    mine: Bool[Array, "B V"],
    unpicked: Bool[Array, "B V"],
) -> tuple[Int[Array, "B 1"], Bool[Array, "B 1"]]:
    """Choose the token with the largest gain; with the largest relevance once no gain is left.

    Args:
        most: largest entry of the kernel in this token's segment.
        mine: the segment that is being filled.
        unpicked: its tokens that may be chosen.

    Returns:
        Their visual indices, and whether the gain is spent.
    """
    largest = jnp.where(unpicked, gain, -jnp.inf).max(axis=1, keepdims=True)
    spent = ~(largest > _SPENT * _largest(mine, most))  # also where it is NaN
    score = jnp.where(unpicked, jnp.where(spent, relevance, gain), -jnp.inf)
    peak = jnp.where(spent, _largest(mine, relevance), _largest(mine, most))
    return first_largest(score, _largest(mine, near) * peak), spent


def _largest(mine: jax.Array, values: jax.Array) -> jax.Array:
    """Return the largest of values [B, V], none negative, over the marked tokens: [B, 1]."""
    return jnp.where(mine, values, 0).max(axis=1, keepdims=True)


@typed
def _project(
    factor: Float[Array, "B _ V"], token: Int[Array, "B 1"], place: Int[Array, " B"]
) -> Float[Array, "B V"]:
    """Add up the products of the token's column with all columns, over the rows written so far."""

    def add(block: jax.Array, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(factor, block * _BLOCK, _BLOCK, axis=1)
        column = jnp.take_along_axis(part, token[:, None], axis=2)[..., 0]  # [B, block]
        exact = jax.lax.Precision.HIGHEST
        return total + jnp.einsum("bp,bpv->bv", column, part, precision=exact)

    start = jnp.zeros(factor.shape[::2])
    return jax.lax.fori_loop(0, -(-place.max() // _BLOCK), add, start)
