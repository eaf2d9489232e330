"""Exact batched selection in visual space: counts, segments with their ranks, and the choice.

Everything has static shapes; how many tokens a sample keeps is data.

    token            a a a a b b - -        two images and padding
    number           0 0 0 0 1 1 -1 -1      `Segments.by_image`
    count            4 4 4 4 2 2 0 0
    first            0 0 0 0 4 4 6 6
"""

import functools
from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ivc_jax.ivc import rank_in_segment
from ivc_jax.types import Layout, Selection, typed

# What a model computes for a token hangs in the last bits on the shape of its bucket: how products
# of matrices and sums of softmaxes are split. Scores that differ by no more than this part of them
# are a tie, or a blank picture would be cut one way alone and another way in a batch.
NEAR = 2.0**-16
# Cosines come out closer: what differs in single numbers averages out over their width.
NEAR_COSINE = 2.0**-19

ROUNDING = {"round": np.rint, "floor": np.floor, "ceil": np.ceil}


def round_counts(
    fraction: float, max_count: int, mode: Literal["round", "floor", "ceil"] = "round"
) -> np.ndarray:
    """Tabulate `fraction` of every count from 0 to max_count, int32 [max_count + 1].

    The product is formed in float64 and rounded there, half to even like Python's `round`, so
    that 10% of 345 is 34 and not the 35 that a float32 product gives.
    """
    products = float(fraction) * np.arange(max_count + 1, dtype=np.float64)
    return ROUNDING[mode](products).astype(np.int32)


def keep_one(counts: np.ndarray) -> np.ndarray:
    """Raise the counts of non-empty sets, [max_count + 1], to 1."""
    return np.maximum(counts, np.minimum(np.arange(len(counts)), 1)).astype(np.int32)


def bound_total(counts: np.ndarray, num_images: int) -> int:
    """Bound the sum of `counts` over at most num_images images that share a bucket.

    Args:
        counts: tokens kept of an image of each size 0 .. V.
        num_images: M; for M = 1 the bound is attained.

    Returns:
        At least the largest sum of counts[L_1] + ... + counts[L_m], m <= M, sum of L <= V.
    """
    if num_images <= 1:
        return int(counts.max())
    # Lagrange's bound: at any slope s >= 0 the sum is at most s V + M max_L (counts[L] - s L).
    # It is convex in s, so thirds close in on the tightest slope.
    slots, sizes = len(counts) - 1, np.arange(len(counts))

    def bound(slope: float) -> float:
        return slope * slots + num_images * (counts - slope * sizes).max()

    low, high = 0.0, 1.0
    for _ in range(60):
        left, right = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, right) if bound(left) <= bound(right) else (left, high)
    return min(slots, int(np.floor(bound(low) + 1e-6)))


@flax.struct.dataclass
class Segments:
    """Which visual tokens are ranked together and share a budget.

    A segment is a run of neighbours in visual space, so its first token is found by one running
    maximum. What a method works out for a segment is handed to each of its tokens, [B, V].
    """

    number: jax.Array  # [B, V] int32, ascending, -1 for padding
    count: jax.Array  # [B, V] int32, tokens of this token's segment, 0 for padding
    bound: int = flax.struct.field(pytree_node=False)  # exclusive bound on `number`

    @classmethod
    def by_image(cls, layout: Layout) -> "Segments":
        """Make every image, and every whole video, a segment."""
        return cls(layout.image_id, layout.image_count, layout.num_images)

    @classmethod
    def by_sample(cls, layout: Layout) -> "Segments":
        """Pool all images of a sample in one segment."""
        number = jnp.where(layout.visual_valid, 0, -1)
        count = jnp.where(layout.visual_valid, layout.visual_count[:, None], 0)
        return cls(number, count, 1)

    @classmethod
    def by_frame(cls, layout: Layout) -> "Segments":
        """Make every frame a segment; an image is one frame."""
        # Frames and images both count up, so that a change of either begins a new frame.
        return cls.by_runs(layout.visual_valid, layout.image_id, layout.grid[..., 0])

    @classmethod
    def by_runs(cls, valid: jax.Array, *keys: jax.Array) -> "Segments":
        """Make every run of tokens with equal keys, [B, V] each, a segment.

        Args:
            valid: bool [B, V], all of a run or nothing; the rest is as padding.
            keys: whatever tells neighbours of two runs apart.
        """
        B, V = valid.shape
        if V == 0:
            empty = jnp.zeros((B, V), jnp.int32)
            return cls(empty, empty, V)
        begins = functools.reduce(jnp.logical_or, map(_mark_changes, keys))
        slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (B, V))
        # begins  1 0 0 1 0 1      ends, the same one earlier  0 0 1 0 1 1
        ends = jnp.concatenate([begins[:, 1:], jnp.ones((B, 1), bool)], axis=1)
        first = jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
        last = jax.lax.cummin(jnp.where(ends, slots, V), axis=1, reverse=True)
        number = jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1
        return cls(jnp.where(valid, number, -1), jnp.where(valid, last - first + 1, 0), V)

    @classmethod
    def by_number(cls, number: jax.Array, bound: int) -> "Segments":
        """Make segments of their numbers, int32 [B, V], -1 outside of all."""
        inside = (number >= 0).astype(jnp.int32)
        segments = cls(number, inside, bound)
        return segments.replace(count=segments.sum(inside))

    @property
    def valid(self) -> jax.Array:
        """What is no padding, bool [B, V]."""
        return self.number >= 0

    @property
    def begins(self) -> jax.Array:
        """The first token of every segment, and of the padding, bool [B, V]."""
        return _mark_changes(self.number)

    @property
    def first(self) -> jax.Array:
        """Visual index of the first token, int32 [B, V]."""
        slots = jnp.arange(self.number.shape[1], dtype=jnp.int32)
        return jax.lax.cummax(jnp.where(self.begins, slots, 0), axis=1)

    def look_up(self, table: np.ndarray) -> jax.Array:
        """Read a table of counts, [max_count + 1], at the number of tokens: [B, V]."""
        return jnp.asarray(table)[self.count]

    @typed
    def rank(
        self,
        scores: Float[Array, "B V"],
        among: Bool[Array, "B V"] | None = None,
        tolerance: float = NEAR,
    ) -> Int[Array, "B V"]:
        """Rank tokens inside their segment: 0 is the largest score, ties go to the lowest index.

        Args:
            among: the tokens to rank; all others, and padding, get rank V, which no count reaches.
            tolerance: part of a score within which the next one is its equal; 0 for scores that no
                model has computed.
        """
        among = self.valid if among is None else among
        return rank_in_segment(scores, self.number, among, tolerance)

    @typed
    def top(
        self, scores: Float[Array, "B V"], counts: Int[Array, "B V"], tolerance: float = NEAR
    ) -> Bool[Array, "B V"]:
        """Mark the best tokens of each segment, as many as `counts` says at this token."""
        return self.rank(scores, tolerance=tolerance) < counts

    @typed
    def sum(self, values: Shaped[Array, "B V"]) -> Shaped[Array, "B V"]:
        """Add up values. Use `total` where the rounding of floats must not depend on the device."""
        return self._reduce(jax.ops.segment_sum, values)

    @typed
    def max(self, values: Shaped[Array, "B V"]) -> Shaped[Array, "B V"]:
        """Return the largest value."""
        return self._reduce(jax.ops.segment_max, values)

    @typed
    def min(self, values: Shaped[Array, "B V"]) -> Shaped[Array, "B V"]:
        """Return the smallest value."""
        return self._reduce(jax.ops.segment_min, values)

    @typed
    def total(self, values: Shaped[Array, "B V"]) -> Shaped[Array, "B V"]:
        """Add up values in the order of tokens, at the cost of V x V comparisons."""
        same = self.number[:, :, None] == self.number[:, None]  # [B, V, V]
        return jnp.where(same, values[:, None], 0).sum(axis=2, dtype=values.dtype)

    @typed
    def mean(self, values: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Average values, with the sums of `total`."""
        return self.total(values) / jnp.maximum(self.count, 1)

    @typed
    def read(self, values: Shaped[Array, "B V"], place: Int[Array, "B V"]) -> Shaped[Array, "B V"]:
        """Read a value at a place within each token's segment, 0 its first; beyond is anything."""
        last = max(values.shape[1] - 1, 0)
        return jnp.take_along_axis(values, jnp.clip(self.first + place, 0, last), axis=1)

    @typed
    def spread(self, per_segment: Shaped[Array, "B M"]) -> Shaped[Array, "B V"]:
        """Hand every token the value of its segment, 0 at padding."""
        member = self.number[:, :, None] == jnp.arange(per_segment.shape[1])  # [B, V, M]
        return jnp.where(member, per_segment[:, None], 0).sum(axis=2, dtype=per_segment.dtype)

    def _reduce(self, operation: Callable[..., jax.Array], values: jax.Array) -> jax.Array:
        # Nothing static says how many frames a video has: no comparison with every number here.
        V = values.shape[1]
        number = jnp.where(self.valid, self.number, V)  # padding is a segment of its own
        table = jax.vmap(lambda row, segment: operation(row, segment, V + 1))(values, number)
        return jnp.take_along_axis(table, number, axis=1)


def _mark_changes(key: jax.Array) -> jax.Array:
    """Mark where a run of equal keys [B, V] begins."""
    changed = key[:, 1:] != key[:, :-1]
    return jnp.concatenate([jnp.ones_like(key[:, :1], bool), changed], axis=1)


@typed
def split_over_frames(layout: Layout, counts: np.ndarray) -> Int[Array, "B V"]:
    """Split what a video keeps over its frames; an image is one frame, or one for each view of it.

    Args:
        counts: tokens kept of an image or a whole video of each size 0 .. V.

    Returns:
        The number of tokens to keep in this token's frame.
    """
    images = Segments.by_image(layout)
    return split_totals(images.look_up(counts), images, Segments.by_frame(layout))


@typed
def split_totals(
    total: Int[Array, "B V"], segments: Segments, parts: Segments
) -> Int[Array, "B V"]:
    """Split the total of every segment over its parts.

    Parts of one size get the same number, the first ones one more where a rest is left. Parts of
    several sizes get their share of it:

        keep 5 of 8      parts of 4 4: 3 2      parts of 3 5: 1 4      5 * 3 / 8 = 1.9

    Args:
        total: of this token's segment, at most its size.
        parts: runs of its tokens.

    Returns:
        The number of this token's part.
    """
    if not total.shape[1]:
        return total
    in_part, size = jnp.maximum(parts.count, 1), jnp.maximum(segments.count, 1)
    num_parts = jnp.maximum(size // in_part, 1)
    place = parts.number - jnp.take_along_axis(parts.number, segments.first, axis=1)  # of the part
    one_more = segments.valid & (place < total % num_parts)
    even = total // num_parts + one_more
    first = parts.first - segments.first  # tokens of the segment before the part
    # counted up to its end, less what is counted up to its beginning
    share = total * (first + in_part) // size - total * first // size
    alike = segments.max(in_part) == segments.min(in_part)
    return jnp.where(alike | ~segments.valid, even, share)


@typed
def first_largest(
    scores: Float[Array, "B V"], near: Float[Array, "B 1"] | float
) -> Int[Array, "B 1"]:
    """Return the first token of each sample within `near` of the largest score; NaN comes last."""
    scores = jnp.where(jnp.isnan(scores), jnp.finfo(jnp.float32).min, scores)
    least = scores.max(axis=1, keepdims=True, initial=-jnp.inf) - near
    return jnp.argmax(scores >= least, axis=1, keepdims=True).astype(jnp.int32)


@typed
def from_mask(keep: Bool[Array, "B V"], num_keep: int) -> Selection:
    """List the marked tokens in ascending order, valid ones first, in num_keep slots."""
    # keep   0 1 0 1 1      stable argsort of ~keep   1 3 4 0 2
    order = jnp.argsort(~keep, axis=1, stable=True)[:, :num_keep].astype(jnp.int32)
    valid = jnp.take_along_axis(keep, order, axis=1)
    return Selection(index=jnp.where(valid, order, 0), valid=valid)


@typed
def to_mask(selection: Selection, visual_slots: int) -> Bool[Array, "B V"]:
    """Mark the tokens that a selection lists; the inverse of `from_mask`."""
    rows = jnp.arange(selection.index.shape[0])[:, None]
    empty = jnp.zeros((selection.index.shape[0], visual_slots), bool)
    return empty.at[rows, selection.index].max(selection.valid)


@typed
def keep_weights(selection: Selection, visual_slots: int) -> Float[Array, "B K V"]:
    """Return the weights (`Selection.weights`) that leave every kept token as it is."""
    place = selection.index[..., None] == jnp.arange(visual_slots)  # [B, K, V]
    return (place & selection.valid[..., None]).astype(jnp.float32)


@typed
def normalize(vectors: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """Scale vectors to length one in float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)  # [B, N, 1]
    return vectors / jnp.maximum(length, 1e-12)


@typed
def gather_positions(layout: Layout) -> Int[Array, "3 B V"]:
    """Gather the position ids of the visual tokens."""
    return jnp.take_along_axis(layout.positions, layout.visual_index[None], axis=2)
