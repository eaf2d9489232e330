"""Stage one: the tower alone, taught which digit a cell holds, and in which colour.

It sees one cell at a time, so that cells are all it is shown, and the visual tokens of a picture
are those of its cells: they are made once, for a bank of cells (`encode_bank`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from digit_scenes import optimiser
from digit_scenes.glyphs import COLOURS
from digit_scenes.loop import Params, Stage
from digit_scenes.scenes import GROUND, Cells
from ivc_jax.config import VisionConfig
from ivc_jax.nn import tower

_ROWS = 1024  # cells in a step
_COMMON = 0.5  # length of what all visual tokens have in common; contents have about 1
_SMOOTHING = 0.1  # of labels: a tower that is sure of all it has seen errs more on unseen digits


def init_params(config: VisionConfig, key: jax.Array) -> Params:
    """Draw the tower ("vision") and linear readouts of label and colour ("heads").

    Tables of places are zeros, and no stage changes that.
    """
    vision = tower.init_params(config, key)
    if "positions" in vision:
        vision["positions"] = jnp.zeros_like(vision["positions"])
    labels, colours = jax.random.split(jax.random.fold_in(key, 1))
    draw = jax.nn.initializers.lecun_normal()
    heads = {
        "label": draw(labels, (config.out_dim, GROUND + 1)),
        "colour": draw(colours, (config.out_dim, len(COLOURS) + 1)),
    }
    return {"vision": vision, "heads": heads}


def cut(pixels: jax.Array, config: VisionConfig) -> jax.Array:
    """Cut pictures of cells [n, S, S, 3] uint8 into normalised patches [n, P, values]."""
    patch, side = config.patch_size, config.spatial_merge_size
    x = (pixels / 255.0 - jnp.array(config.pixel_mean)) / jnp.array(config.pixel_std)
    x = x.reshape(-1, side, patch, side, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    x = x.reshape(-1, side * side, 3, 1, patch * patch)  # [n, P, channel, frame, pixels]
    # A still picture is a video of equal frames.
    return jnp.repeat(x, config.temporal_patch_size, axis=3).reshape(len(x), side * side, -1)


def encode(config: VisionConfig, vision: Params, pixels: jax.Array) -> jax.Array:
    """Map pictures of cells [n, S, S, 3] uint8 to their visual tokens [n, D]."""
    side = config.spatial_merge_size
    place = np.stack(np.divmod(np.arange(side * side), side), axis=-1).astype(np.int32)  # [P, 2]
    positions = jnp.broadcast_to(place, (len(pixels), *place.shape))
    return tower.encode(config, vision, cut(pixels, config), positions)[0][:, 0]


def encode_bank(config: VisionConfig, vision: Params, cells: Cells) -> np.ndarray:
    """Encode a bank of cells: float32 [n, D]."""
    run = jax.jit(functools.partial(encode, config))
    parts = range(0, len(cells.pixels), _ROWS)
    padded = np.concatenate([cells.pixels, cells.pixels[:_ROWS]])
    found = [np.asarray(run(vision, padded[start : start + _ROWS])) for start in parts]
    return np.concatenate(found)[: len(cells.pixels)]


def centre(config: VisionConfig, vision: Params, cells: Cells) -> Params:
    """Shift and scale the merger's last layer: visual tokens get unit length, like words.

    What they have in common becomes a direction of its own, the same for all. A head can look from
    any of them to the mark in front of the picture by that alone, whatever the cell holds.
    """
    tokens = encode_bank(config, vision, cells)
    middle = tokens.mean(axis=0)
    size = float(np.sqrt(np.mean(np.sum((tokens - middle) ** 2, axis=-1))))
    common = np.random.default_rng(0).standard_normal(len(middle))
    common *= _COMMON / np.linalg.norm(common)
    mlp = vision["merger"]["mlp"]
    last = {
        "weight": mlp["fc2"]["weight"] / size,
        "bias": (mlp["fc2"]["bias"] - middle) / size + common,
    }
    return {**vision, "merger": {**vision["merger"], "mlp": {**mlp, "fc2": last}}}


def make_stage(config: VisionConfig, steps: int, bank: Cells, held_out: Cells, seed: int) -> Stage:
    """Describe the training on a bank of cells."""

    def batch(random: np.random.Generator) -> dict[str, np.ndarray]:
        picks = random.integers(len(bank.label), size=_ROWS)
        return _take(bank, picks)

    def loss(params: Params, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        vision = dict(params["vision"])
        if "positions" in vision:  # they stay zeros
            vision["positions"] = jax.lax.stop_gradient(vision["positions"])
        tokens = encode(config, vision, batch["pixels"])  # [n, D]
        value, metrics = jnp.float32(0), {}
        for name, head in params["heads"].items():
            logits, wanted = tokens @ head, batch[name]
            soft = optax.smooth_labels(jax.nn.one_hot(wanted, logits.shape[-1]), _SMOOTHING)
            value += optax.softmax_cross_entropy(logits, soft).mean()
            metrics[name] = (logits.argmax(-1) == wanted).mean()
        return value, metrics

    tests = _take(held_out, np.arange(len(held_out.label)))
    measure = jax.jit(lambda params: loss(params, tests)[1])
    return Stage(
        name="tower",
        steps=steps,
        batch=batch,
        loss=loss,
        evaluate=measure,
        optimiser=optimiser.build(steps),
        trained=("vision", "heads"),
        seed=seed,
    )


def _take(cells: Cells, picks: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "pixels": cells.pixels[picks],
        "label": cells.label[picks],
        "colour": cells.colour[picks],
    }
