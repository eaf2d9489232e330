"""Stage one: the vision tower alone, taught densely on crowded canvases.

Crowding is what teaches: on sparse scenes most tokens are background. At first each canvas is cut
into its four quarters, which are cheaper (attention is quadratic in patches) and still show the
tint, so that absolute places can be learned from them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digit_scenes import dense, digits, optimiser
from digit_scenes.loop import Params, Stage
from digit_scenes.model import GRID, MERGE, VISION, patch_positions, patchify
from digit_scenes.scenes import SIZE, render
from ivc_jax.nn.tower import VisionTower

_tower = VisionTower(VISION)
_AREA = MERGE * MERGE


def init_params(key: jax.Array) -> Params:
    """Draw the tower ("vision") and its auxiliary readouts ("heads")."""
    patches = jnp.zeros((1, _AREA, VISION.patch_values))
    positions = jnp.zeros((1, _AREA, 2), jnp.int32)
    return {
        "vision": _tower.init(key, patches, positions)["params"],
        "heads": dense.init_heads(jax.random.fold_in(key, 1), VISION.out_dim),
    }


def encode(vision: Params, pixels: jax.Array, quarters: bool = False) -> jax.Array:
    """Map pictures [R, S, S, 3] uint8 to visual tokens [R, W, D]; of quarters, [4R, W / 4, D]."""
    patches = patchify(pixels)
    positions = patch_positions(SIZE)
    if quarters:
        patches = quarter(patches.reshape(len(patches), GRID * GRID, -1))
        patches = patches.reshape(*patches.shape[:1], -1, VISION.patch_values)
        positions = patch_positions(SIZE // 2)
    positions = jnp.broadcast_to(positions, (len(patches), *positions.shape))
    return _tower.apply({"params": vision}, patches, positions)


def quarter(x: Any) -> Any:
    """Cut arrays over tokens [R, 144, ...] into quarters of the canvas [4R, 36, ...]."""
    half = GRID // 2
    x = x.reshape(len(x), 2, half, 2, half, *x.shape[2:]).swapaxes(2, 3)
    return x.reshape(-1, half * half, *x.shape[5:])


def make_batch(
    random: np.random.Generator, num_scenes: int, fewest: int, most: int, split: str = "train"
) -> dict[str, Any]:
    """Render scenes and describe what lies under their tokens."""
    source = digits.load(split)
    scenes = [
        render(random, source, int(random.integers(fewest, most + 1))) for _ in range(num_scenes)
    ]
    return {"pixels": np.stack([s.pixels for s in scenes]), "targets": dense.targets(scenes)}


def _loss(params: Params, batch: dict[str, Any], quarters: bool) -> tuple[jax.Array, Any]:
    wanted = batch["targets"]
    if quarters:
        wanted = jax.tree.map(quarter, wanted)
    tokens = encode(params["vision"], batch["pixels"], quarters)
    return dense.loss(dense.read(params["heads"], tokens), wanted)


def stage(
    name: str,
    steps: int,
    num_scenes: int,
    fewest: int,
    most: int,
    quarters: bool,
    scale: float = 1.0,
    decay: float = 0.25,
    seed: int = 0,
) -> Stage:
    """Describe one part of the tower's training; see `optimiser.build` for `scale` and `decay`."""
    loss = functools.partial(_loss, quarters=quarters)
    held_out = make_batch(np.random.default_rng(7), 16, fewest, most, "test")
    measure = jax.jit(lambda params: loss(params, held_out)[1])
    return Stage(
        name=name,
        steps=steps,
        batch=functools.partial(make_batch, num_scenes=num_scenes, fewest=fewest, most=most),
        loss=loss,
        evaluate=lambda params: {k: float(v) for k, v in measure(params).items()},
        optimiser=optimiser.build(steps, scale=scale, decay=decay),
        trained=("vision", "heads"),
        seed=seed,
    )
