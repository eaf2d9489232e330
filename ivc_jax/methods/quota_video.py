"""QuoTA (arXiv 2503.08689) of one video, as pure functions from the relevance of its frames on."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.methods import frame_grids
from ivc_jax.methods.frame_grids import Grids, Maps


@partial(jax.jit, static_argnums=(2, 3, 4))
def quota_assign(
    p: jax.Array, frame_mask: jax.Array, total: int, assigner: str = "v1", available: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Assign tokens to the frames of one video.

    Args:
        p: float [F], relevance in [0, 1].
        frame_mask: bool [F], which frames there are.
        total: N, tokens of the budget.
        assigner: as in `QuoTA`.
        available: tokens of a frame, which caps all assigners but "v1".

    Returns:
        Shares c, heights h, widths w and tokens n, int32 [F] each.
    """
    p, mask = jnp.asarray(p, jnp.float32)[None], jnp.asarray(frame_mask, bool)[None]
    most = jnp.full(mask.shape, available, jnp.int32)
    grids = frame_grids.assign(p, mask, jnp.array([total], jnp.int32), most, assigner)
    return grids.count[0], grids.height[0], grids.width[0], grids.tokens[0]


@partial(jax.jit, static_argnums=(4, 5))
def quota_resample(
    x: jax.Array, h: jax.Array, w: jax.Array, n: jax.Array, total: int, assigner: str = "v1"
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """Resize the maps of one video to their grids, in a buffer of `total` slots.

    Args:
        x: [F, H, W, D].
        h, w, n: as `quota_assign` returns them.

    Returns:
        Tokens [total, D] float32, 0 behind the last one; the frame, and the row and column of each
        in its grid, int32 [total]; which slots hold a token, bool [total].
    """
    F, H, W, D = x.shape
    shape = (1, F)
    grids = Grids(n[None], h[None], w[None], n[None])
    size = [jnp.full(shape, each, jnp.int32) for each in (H, W, W)]
    maps = Maps(jnp.arange(F, dtype=jnp.int32)[None] * H * W, *size)
    slots = frame_grids.lay_slots(grids, total)
    tokens = jnp.asarray(x, jnp.float32).reshape(1, F * H * W, D)
    if assigner == "v2":
        cells = jnp.indices((F, H, W), jnp.int32).reshape(3, 1, -1)
        weights = frame_grids.pool(slots, maps, *cells)
        exact = jax.lax.Precision.HIGHEST
        mixed = jnp.einsum("bkv,bvd->bkd", weights, tokens, precision=exact)
    elif assigner == "v3":
        picked = frame_grids.find_places(slots, maps, assigner)
        mixed = jnp.take_along_axis(tokens, picked[..., None], axis=1)
        mixed = jnp.where(slots.valid[..., None], mixed, 0.0)
    else:
        mixed = frame_grids.interpolate(slots, maps).mix(tokens)
    places = (slots.row[0], slots.column[0])
    return mixed[0], slots.frame[0], places, slots.valid[0]


def count_frames(seconds: float, base: int = 96, alpha: int = 64, most: int = 160) -> int:
    """Say how many frames of a video to look at: base + int(seconds / 3600 * alpha), up to `most`.

    The paper goes from 96 to 160, the released code has no upper bound; 25 % of the published
    budget comes with base 64 and alpha 32.
    """
    return min(base + math.floor(seconds / 3600 * alpha), most)


def choose_frames(total: int, count: int) -> tuple[int, ...]:
    """Choose `count` of the frames 0 .. total - 1 evenly, the first and the last included."""
    return tuple(np.linspace(0, total - 1, count).astype(int).tolist())
