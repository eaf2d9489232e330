"""IVC scores: how close RoPE brings a position to the identity or to a quarter turn.

The rotation R_m of position m is nearest to the identity where V(m) = sum_i cos(m theta_i) is
largest, and nearest to a quarter turn in every plane where U(m) = sum_i sin(m theta_i) is largest
(IVC-Prune, arXiv 2602.03060). Both depend on positions alone, so they are tables made in NumPy
while tracing, and a score is a gather. `select` and the pruning methods share everything here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.config import RopeConfig
from ivc_jax.types import typed

SCORE_DTYPES = ("float32", "bfloat16")
THIRDS = ("high", "middle", "low")  # of the planes, fastest first
WORDS = ("all", "section", *THIRDS)

Table = Float[Array | np.ndarray, "axes positions"]


def scores(
    head_dim: int,
    theta: float,
    num_positions: int,
    frequencies: Sequence[int] | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute V(m) and U(m) for the positions m = 0 .. num_positions - 1.

    Args:
        head_dim: width C of a head; it has C / 2 rotary planes.
        theta: base of the rotary embedding.
        frequencies: planes that enter the sums, as indices or as one bool a plane; default all.

    Returns:
        V and U, float64 [num_positions]: sums of cosines and of sines over the planes.
    """
    rope = RopeConfig(head_dim, float(theta))
    return _sums(rope, _planes(rope, frequencies), num_positions)


def select(
    positions: np.ndarray,
    head_dim: int,
    theta: float,
    cos_fraction: float = 0.1,
    sin_fraction: float = 0.1,
    frequencies: str | Sequence[int] | np.ndarray = "all",
    sections: tuple[int, int, int] | None = None,
    score_dtype: str = "float32",
    interleaved: bool = False,
) -> np.ndarray:
    """Choose the IVC tokens of one image.

    Args:
        positions: ids of the n tokens, int [n] (1-D rotary) or [3, n] (time, height, width).
        cos_fraction: share of the n tokens taken from the top of V, rounded half to even.
        sin_fraction: the same for U.
        frequencies: "all" planes on every axis (the released code), "section" (each axis only
            the planes that it turns; needs `sections`), a third of the planes ("high" the lowest
            indices, which turn fastest, "middle", or "low"; the first thirds are the larger ones
            where three does not divide them), or the planes to use on every axis.
        sections: planes that turn with time, height and width.
        score_dtype: "float32", or "bfloat16" for scores rounded as the released code rounds them.
        interleaved: the sections take turns (Qwen3-VL) instead of lying side by side.

    Returns:
        Ascending indices of the union, int64. Ties go to the lowest index.
    """
    positions = np.asarray(positions)  # [n] or [3, n]
    if positions.ndim not in (1, 2) or (positions.ndim == 2 and positions.shape[0] != 3):
        raise ValueError(f"positions must be [n] or [3, n], got shape {positions.shape}")
    if positions.size == 0:
        return np.zeros(0, np.int64)
    if not np.issubdtype(positions.dtype, np.integer) or positions.min() < 0:
        raise ValueError("positions must be integers and not negative")
    check_fractions(cos_fraction=cos_fraction, sin_fraction=sin_fraction)
    if score_dtype not in SCORE_DTYPES:
        raise ValueError(f"score_dtype must be one of {SCORE_DTYPES}, got {score_dtype!r}")
    sections = sections and tuple(sections)
    rope = RopeConfig(head_dim, float(theta), sections, interleaved=interleaved)
    axes = 1 if positions.ndim == 1 else 3
    tables = make_tables(
        rope, frequencies, _padded(int(positions.max()) + 1), axes, score_dtype=score_dtype
    )
    count = positions.shape[-1]  # n
    slots = np.broadcast_to(positions, (3, count))  # [3, n]
    # [3, 1, padded]
    slots = np.pad(slots, ((0, 0), (0, _padded(count) - count)))[:, None].astype(np.int32)
    valid = np.arange(slots.shape[-1])[None] < count  # [1, padded]
    counts = [  # [1, padded] each, the same at every token
        np.full(valid.shape, round(f * count), np.int32) for f in (cos_fraction, sin_fraction)
    ]
    segment = np.where(valid, 0, -1).astype(np.int32)  # [1, padded]
    # [1, padded]
    chosen = _jitted_tokens(tables, slots, segment, valid, *counts, score_dtype=score_dtype)
    return np.flatnonzero(chosen[0])


def check_fractions(**fractions: float) -> None:
    """Raise ValueError unless every named fraction is in [0, 1]."""
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {fraction}")


def make_tables(
    rope: RopeConfig,
    frequencies: str | Sequence[int] | np.ndarray,
    num_positions: int,
    axes: int | None = None,
    *,
    skip_time: bool = False,
    by_axis: bool = False,
    score_dtype: str = "float32",
    first_position: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate the mean cosine and the mean sine of each position axis.

    The means are formed in float64 and stored as float32 [A, num_positions], with A = 1 for 1-D
    rotary and A = 3 for M-RoPE.

    Args:
        frequencies: as in `select`.
        axes: A; by default 3 if `rope` has sections.
        skip_time: leave the time axis of M-RoPE out of the mean; its table is zero.
        by_axis: of the planes named, each axis of M-RoPE only those that it turns.
        score_dtype: "bfloat16" rounds every cosine and sine before the mean.
        first_position: the position of the first column.

    Raises:
        ValueError: no such plane, "section" without sections, or none of height and width.
    """
    axes = axes or (1 if rope.sections is None else 3)
    if not isinstance(frequencies, str):
        named = _planes(rope, frequencies)
    elif frequencies in ("all", "section"):
        named = _planes(rope, None)
    elif frequencies in THIRDS:
        named = _third(rope, frequencies)
    else:
        raise ValueError(f"frequencies must be one of {WORDS} or planes, got {frequencies!r}")
    planes = [named] * axes  # A arrays of plane numbers
    by_section = isinstance(frequencies, str) and frequencies == "section"
    if by_section or (by_axis and axes == 3):
        if rope.sections is None or axes != 3:
            raise ValueError('frequencies="section" needs M-RoPE sections and three position axes')
        planes = [named[rope.axis_of_plane[named] == axis] for axis in range(3)]
    if skip_time and axes == 3:
        planes[0] = planes[0][:0]
    if not sum(map(len, planes[-2:])):  # time turns no two tokens of a picture apart
        raise ValueError(f"frequencies={frequencies} names no plane that turns height or width")
    # Dividing by the mean number of planes keeps the three axes of "section" on one scale.
    scale = axes / sum(map(len, planes))
    # [num_positions] twice for each axis
    sums = [_sums(rope, chosen, num_positions, score_dtype, first_position) for chosen in planes]
    # [A, num_positions]
    cosine, sine = (np.stack(parts) * scale for parts in zip(*sums, strict=True))
    return cosine.astype(np.float32), sine.astype(np.float32)


@typed
def gather_scores(
    table: Table, positions: Int[Array, "3 B V"], score_dtype: str = "float32"
) -> Float[Array, "B V"]:
    """Look up a table and add the axes as t + (h + w).

    The published mean divides this sum by three. That changes no ranking and is left out in
    float32: XLA turns it into a product with a rounded third. h + w commutes, so that transposed
    cells tie exactly. With score_dtype="bfloat16" the mean itself is rounded and returned.
    """
    # A arrays [B, V]
    axes = [jnp.asarray(row)[ids] for row, ids in zip(table, positions, strict=False)]
    total = axes[0] if len(axes) == 1 else axes[0] + (axes[1] + axes[2])
    return total if score_dtype == "float32" else round_scores(total / len(axes), score_dtype)


def round_scores(scores: jax.Array, score_dtype: str) -> jax.Array:
    """Round to the precision of `score_dtype` and return float32."""
    if score_dtype == "float32":
        return scores.astype(jnp.float32)
    # Casts there and back are simplified away by some back ends; this is not.
    return jax.lax.reduce_precision(scores.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


@typed
def tokens(
    tables: tuple[Table, Table],
    positions: Int[Array, "3 B V"],
    segment: Int[Array, "B V"],
    valid: Bool[Array, "B V"],
    cos_count: Int[Array, "B V"],
    sin_count: Int[Array, "B V"],
    score_dtype: str = "float32",
) -> Bool[Array, "B V"]:
    """Mark the IVC tokens: the top of V and the top of U inside each segment.

    Args:
        tables: as `make_tables` gives them.
        cos_count: tokens to take by V from the segment that the token is in.
        sin_count: the same by U.
        score_dtype: as in `select`.
    """
    cosine, sine = (  # ranks by V and by U, [B, V] each
        rank_in_segment(gather_scores(table, positions, score_dtype), segment, valid)
        for table in tables
    )
    return valid & ((cosine < cos_count) | (sine < sin_count))


@typed
def rank_in_segment(
    scores: Float[Array, "B V"],
    segment: Int[Array, "B V"],
    valid: Bool[Array, "B V"],
    tolerance: float = 0.0,
) -> Int[Array, "B V"]:
    """Rank tokens inside their segment: 0 is the largest score, ties go to the lowest index.

    Two sorts, three with a tolerance, no V x V comparison. NaN ranks after every number. Tokens
    that are not valid get rank V, which is below no count.

    Args:
        tolerance: neighbours in the ranking that differ by no more than this part of the smaller
            one are a tie.
    """
    B, V = scores.shape
    slots = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (B, V))  # [B, V]
    # [B, V], padding behind all segments
    group = jnp.where(valid, segment, jnp.iinfo(segment.dtype).max)
    # [B, V], smallest first
    descending = jnp.where(jnp.isnan(scores), jnp.inf, -scores.astype(jnp.float32))
    # group     0  0  0  1  1      sorted by (group, -score), stable
    # first     0  0  0  3  3      running maximum of the places where a group begins
    # rank      0  1  2  0  1
    group, low, order = jax.lax.sort((group, descending, slots), num_keys=2, is_stable=True)
    if tolerance and V > 1:
        # -score   -9.00001 -9 -7     level  0 0 1      the first two go by their slots
        fall = low[:, 1:] - low[:, :-1]  # [B, V - 1], NaN between infinities alike
        size = jnp.minimum(jnp.abs(low[:, 1:]), jnp.abs(low[:, :-1]))
        apart = (fall > tolerance * size) | jnp.isinf(fall)
        apart |= group[:, 1:] != group[:, :-1]
        level = jnp.pad(jnp.cumsum(apart, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
        _, order, group = jax.lax.sort((level, order, group), num_keys=2)
    # [B, V], or [B, 1] where V is 0
    begins = jnp.concatenate([jnp.ones((B, 1), bool), group[:, 1:] != group[:, :-1]], axis=1)
    first = jax.lax.cummax(jnp.where(begins[:, :V], slots, 0), axis=1)
    _, rank = jax.lax.sort((order, slots - first), num_keys=1)  # back into the order of the tokens
    return jnp.where(valid, rank, V)


_jitted_tokens = jax.jit(tokens, static_argnames="score_dtype")


def _padded(count: int) -> int:
    # Powers of two, so that `select` compiles for few sizes.
    return 1 << (count - 1).bit_length()


def _planes(rope: RopeConfig, frequencies: Sequence[int] | np.ndarray | None) -> np.ndarray:
    count = rope.head_dim // 2
    if frequencies is None:
        return np.arange(count)
    planes = np.asarray(frequencies)
    if planes.dtype == bool and planes.shape != (count,):
        raise ValueError(f"frequencies has shape {planes.shape} for {count} planes")
    if planes.dtype == bool:
        planes = np.flatnonzero(planes)
    planes = np.unique(planes)
    if not len(planes) or planes.min() < 0 or planes.max() >= count:
        raise ValueError(f"frequencies must name planes between 0 and {count - 1}")
    return planes


def _third(rope: RopeConfig, word: str) -> np.ndarray:
    planes = np.array_split(_planes(rope, None), len(THIRDS))[THIRDS.index(word)]
    if not len(planes):
        raise ValueError(
            f"frequencies={word!r} holds none of the {rope.head_dim // 2} planes: name them instead"
        )
    return planes


def _sums(
    rope: RopeConfig,
    planes: np.ndarray,
    num_positions: int,
    score_dtype: str = "float32",
    first_position: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    positions = first_position + np.arange(num_positions, dtype=np.float64)  # [num_positions]
    angle = np.outer(positions, rope.frequencies[planes])  # [num_positions, planes], radians
    cosine, sine = np.cos(angle), np.sin(angle)
    if score_dtype == "bfloat16":
        cosine, sine = (
            wave.astype(np.float32).astype(jnp.bfloat16).astype(np.float64)
            for wave in (cosine, sine)
        )
    return cosine.sum(axis=1), sine.sum(axis=1)
