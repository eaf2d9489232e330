"""Dense supervision of the vision tower: what lies under each visual token.

Every visual token says in the decoder's own codes which digit covers it (or background), in which
colour, where that digit's box is, and where on the canvas the token itself is. A tower that is not
to know places is asked for the box as seen from the token instead.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from digit_scenes.model import NUM_BINS, STEP, draw_codes
from digit_scenes.scenes import COLOUR_NAMES, Scene

Params = dict
Targets = dict[str, np.ndarray]
_COVER = 0.3  # share of a token's area that a digit must cover to own it


def make_targets(scenes: Sequence[Scene], cell: int, absolute: bool = True) -> Targets:
    """Describe what lies under each token.

    Args:
        cell: side of a visual token in pixels.
        absolute: places are on the canvas; otherwise they are counted from the token's middle,
            which is the middle word.

    Returns:
        "label" and "colour" [R, W] (last value: background), "place" [R, W, 6] in coordinate
        words: x1, y1, x2, y2 of the digit and x, y of the token's own middle; "digit" [R, W] bool.
    """
    cells = scenes[0].size // cell
    label = np.full((len(scenes), cells, cells), 10, np.int32)
    colour = np.full_like(label, len(COLOUR_NAMES))
    place = np.zeros((*label.shape, 6), np.float32)
    edges = np.arange(cells) * cell
    per_pixel = 1000 / STEP / scenes[0].size
    place[..., 4] = (edges + cell / 2) * per_pixel
    place[..., 5] = ((edges + cell / 2) * per_pixel)[:, None]
    for row, scene in enumerate(scenes):
        # a token belongs to the digit that covers most of it, [cells, cells]
        best = np.full((cells, cells), _COVER * cell**2)
        for digit in scene.digits:
            x1, y1, x2, y2 = digit.box
            wide = np.clip(np.minimum(edges + cell, x2) - np.maximum(edges, x1), 0, None)
            tall = np.clip(np.minimum(edges + cell, y2) - np.maximum(edges, y1), 0, None)
            area = np.outer(tall, wide)  # of each token under the digit's box
            won = area > best
            best[won] = area[won]
            label[row][won] = digit.label
            colour[row][won] = digit.colour
            place[row][won, :4] = np.array(digit.box) * per_pixel
    if not absolute:
        place += NUM_BINS // 2 - np.tile(place[..., 4:], 3)
    flat = lambda x: x.reshape(len(scenes), cells * cells, *x.shape[3:])  # noqa: E731
    label = flat(label)
    return {"label": label, "colour": flat(colour), "place": flat(place), "digit": label < 10}


def init_heads(key: jax.Array, width: int) -> Params:
    """Draw the readout matrices; label and colour are read in the codes themselves."""
    return {
        "place": jax.random.normal(key, (6, width, width)) * width**-0.5,
        "scale": jnp.full(8, 2.0),
    }


def read(heads: Params, tokens: jax.Array) -> dict[str, jax.Array]:
    """Map visual tokens [R, W, D] to logits over labels, colours and coordinate words."""
    table = draw_codes(tokens.shape[-1])
    tokens = tokens / jnp.sqrt(jnp.mean(tokens**2, axis=-1, keepdims=True) + 1e-6)
    # what a token says about each of its six places, in the codes of coordinate words
    seen = jnp.einsum("rwd,kde->rwke", tokens, heads["place"])  # [R, W, 6, D]
    scale = heads["scale"]
    return {
        "label": tokens @ table["label"].T * scale[6],
        "colour": tokens @ table["colour"].T * scale[7],
        "place": jnp.einsum("rwke,be->rwkb", seen, table["number"]) * scale[:6, None],
    }


def loss(
    logits: dict[str, jax.Array],
    wanted: Targets,
    place_weight: float = 1.0,
    absolute: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss and the accuracies.

    Digits and background count alike for label and colour, however rare digits are. Coordinates
    are cross entropies against a Gaussian over neighbouring words. Unless they are `absolute`, the
    token's own place is no target.
    """
    digit = wanted["digit"]
    digit_mean = lambda x: (x * digit).sum() / digit.sum().clip(1)  # noqa: E731
    ground_mean = lambda x: (x * ~digit).sum() / (~digit).sum().clip(1)  # noqa: E731

    def entropy(name: str) -> jax.Array:
        each = -jnp.take_along_axis(
            jax.nn.log_softmax(logits[name]), wanted[name][..., None], axis=-1
        )[..., 0]
        return digit_mean(each) + 0.5 * ground_mean(each)

    bins = jnp.arange(NUM_BINS)
    # [R, W, 6, bins]
    soft = jax.nn.softmax(-(((bins - wanted["place"][..., None]) / 1.5) ** 2) / 2)
    each = -(soft * jax.nn.log_softmax(logits["place"])).sum(-1)  # [R, W, 6]
    box, own = digit_mean(each[..., :4].mean(-1)), each[..., 4:].mean()
    label, colour = entropy("label"), entropy("colour")
    # in words: the mean of what is expected, [R, W, 6]
    guess = (jax.nn.softmax(logits["place"]) * bins).sum(-1)
    error = jnp.abs(guess - wanted["place"]) * STEP  # thousandths of the canvas
    right = lambda name: logits[name].argmax(-1) == wanted[name]  # noqa: E731
    metrics = {
        "label": digit_mean(right("label")),
        "colour": digit_mean(right("colour")),
        "ground": ground_mean(right("label")),
        "box_error": digit_mean(error[..., :4].mean(-1)),
    }
    if absolute:
        metrics["own_error"] = error[..., 4:].mean()
    return label + colour + place_weight * (box + own if absolute else 2 * box) / 2, metrics
