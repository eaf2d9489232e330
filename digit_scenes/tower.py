"""Stage one: the vision tower alone, taught densely on crowded canvases.

Crowding is what teaches: on sparse scenes most tokens are background. At first each canvas is cut
into its four quarters, which are cheaper (attention is quadratic in patches) and still show the
tint, so that absolute places can be learned from them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digit_scenes import dense, optimiser
from digit_scenes.loop import Params, Stage
from digit_scenes.model import list_patch_positions, patchify
from digit_scenes.setting import Setting
from ivc_jax.config import VisionConfig
from ivc_jax.nn import tower


def init_params(config: VisionConfig, key: jax.Array) -> Params:
    """Draw the tower ("vision") and its auxiliary readouts ("heads")."""
    return {
        "vision": tower.init_params(config, key),
        "heads": dense.init_heads(jax.random.fold_in(key, 1), config.out_dim),
    }


def encode(
    config: VisionConfig, vision: Params, pixels: jax.Array, quarters: bool = False
) -> jax.Array:
    """Map pictures [R, S, S, 3] uint8 to visual tokens [R, W, D]; of quarters, [4R, W / 4, D]."""
    patches, size = patchify(pixels, config), pixels.shape[1]
    if quarters:
        patches = quarter(
            patches.reshape(len(patches), -1, config.merge_area * config.patch_values)
        )
        patches = patches.reshape(len(patches), -1, config.patch_values)
        size //= 2
    positions = list_patch_positions(size, config)  # [P, 2]; a quarter counts from its own corner
    positions = jnp.broadcast_to(positions, (len(patches), *positions.shape))
    return tower.encode(config, vision, patches, positions)[0]


def quarter(x: Any) -> Any:
    """Cut arrays over tokens [R, W, ...] into quarters of the square canvas [4R, W / 4, ...]."""
    # tokens   0  1 | 2  3      quarters   0 1   2 3
    #          4  5 | 6  7                 4 5   6 7
    #          -----+-----       ->
    #          8  9 | ...                  8 9   ...
    half = math.isqrt(x.shape[1]) // 2
    x = x.reshape(len(x), 2, half, 2, half, *x.shape[2:]).swapaxes(2, 3)
    return x.reshape(-1, half * half, *x.shape[5:])


def make_batch(
    random: np.random.Generator,
    setting: Setting,
    num_scenes: int,
    bounds: tuple[int, int],
    split: str = "train",
) -> dict[str, Any]:
    """Render scenes and describe what lies under their tokens."""
    scenes = setting.make_scenes(random, num_scenes, bounds, split)
    return {
        "pixels": np.stack([s.pixels for s in scenes]),
        "targets": dense.make_targets(scenes, setting.cell, setting.cues),
    }


def _loss(
    params: Params, batch: dict[str, Any], setting: Setting, quarters: bool
) -> tuple[jax.Array, Any]:
    wanted = batch["targets"]
    if quarters:
        wanted = jax.tree.map(quarter, wanted)
    tokens = encode(setting.vision, params["vision"], batch["pixels"], quarters)
    return dense.loss(dense.read(params["heads"], tokens), wanted, absolute=setting.cues)


def make_stage(
    setting: Setting,
    name: str,
    quarters: bool,
    scale: float = 1.0,
    decay: float = 0.25,
    seed: int = 0,
) -> Stage:
    """Describe one part of the tower's training; see `optimiser.build` for `scale` and `decay`."""
    if quarters:
        steps, rows, bounds = setting.steps_quarters, setting.rows_quarters, setting.crowd_quarters
    else:
        steps, rows, bounds = setting.steps_canvas, setting.rows_canvas, setting.crowd_canvas
    loss = functools.partial(_loss, setting=setting, quarters=quarters)
    held_out = make_batch(np.random.default_rng(7), setting, 16, bounds, "test")
    measure = jax.jit(lambda params, batch: loss(params, batch)[1])
    return Stage(
        name=name,
        steps=steps,
        batch=functools.partial(make_batch, setting=setting, num_scenes=rows, bounds=bounds),
        loss=loss,
        evaluate=lambda params: {k: float(v) for k, v in measure(params, held_out).items()},
        optimiser=optimiser.build(steps, scale=scale, decay=decay),
        trained=("vision", "heads"),
        seed=seed,
    )
