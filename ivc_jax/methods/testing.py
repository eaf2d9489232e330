"""A test kit: hold a method, anybody's own, to what the engine and the reports rely on.

    from ivc_jax.methods.testing import check_method

    def test_my_method():
        check_method(MyMethod(keep_ratio=0.25))

Each promise is a function of its own, so that a test can name the one that is broken. The signals
are random, of every request that the method makes; no model is needed.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax import methods  # for its table
from ivc_jax.config import DecoderConfig, ModelConfig, RopeConfig, VisionConfig
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.drawn import Sample, draw_signals, lay_out, make_layout
from ivc_jax.methods.modifier import Modifier, unwrap
from ivc_jax.methods.requests import RopeSettings
from ivc_jax.methods.spec import describe, parse
from ivc_jax.types import Blend, Layout, Selection

ROPE = RopeConfig(16, 1e4, (2, 3, 3))  # what `RopeSettings` is answered with

# Text and two unequal images; a video of three frames with odd sides; one image.
PAIR, VIDEO, ONE = (3, (4, 5), 4, (3, 7), 5), (2, (3, 3, 4), 6), (4, (5, 6), 5)
# The smallest bucket that holds each of them alone, and one in which they are neighbours.
_SMALL = {"text_slots": 12, "visual_slots": 41, "num_images": 2}
_LARGE = {"text_slots": 20, "visual_slots": 60, "num_images": 4, "num_positions": 99}

Kept = tuple[list[int], np.ndarray | None]  # places in the unpruned prompt, weights [K, V]


def make_config(num_layers: int = 8) -> ModelConfig:
    """Make the configuration of a model that exists on paper alone, with M-RoPE."""
    decoder = DecoderConfig(num_layers, 8, 8, 1, 1, 9, RopeConfig(128, 1e6, (16, 24, 24)))
    return ModelConfig("qwen2_vl", VisionConfig(1, 8, 1, 8, 8), decoder, 1, 2, 3, 4)


def check_method(method: Method, config: ModelConfig | None = None) -> None:
    """Hold a method to the promises that every method keeps.

    Args:
        method: resolved or not.
        config: of the model to resolve it for; None is a small one with M-RoPE and 8 blocks.

    Raises:
        AssertionError: a promise is broken; the message names it and what was seen.
    """
    config = config or make_config()
    check_string(method, config)
    method = method.resolve(config)
    for check in (check_neighbours, check_equal_tokens, check_capacity, check_no_picture):
        check(method)
    if hasattr(unwrap(method)[-1], "keep_ratio"):
        check_whole(method, config)


def check_string(method: Method, config: ModelConfig) -> None:
    """Promise: equal settings are one method, whose string reads back, resolved or not."""
    with _named(method):
        for each in (method, method.resolve(config)):
            text = describe(each)
            read = parse(text)
            _hold(read == each, f"{text!r} reads back as another method, {read!r}")
            _hold(hash(read) == hash(each), f"{text!r} reads back with another hash")
            _hold(describe(read) == text, f"{text!r} is written anew as {describe(read)!r}")
    resolved = method.resolve(config)
    _hold(resolved == resolved.resolve(config), "resolving a second time changes the method")


def check_neighbours(method: Method, kinds: int | None = None) -> None:
    """Promise: batch mates, padding and larger buckets change neither the choice nor the weights.

    In the small bucket padding is infinite; in the large one it is NaN, and no cut is told its
    capacity.

    Args:
        method: resolved.
        kinds: how many kinds of visual tokens a sample has; None is all different.
    """
    layout = make_layout([ONE, (5,), VIDEO, PAIR], **_LARGE)
    together = run_cuts(method, layout, whole=True, kinds=kinds)
    small = [make_layout([sample], **_SMALL) for sample in (ONE, VIDEO, PAIR)]
    alone = [run_cuts(method, layout, padding=np.inf, kinds=kinds) for layout in small]
    for cut, found in enumerate(together):
        _hold(found[1][0] == [], f"cut {cut} keeps {found[1][0]} of a sample without pictures")
        for row, own in zip((0, 2, 3), alone, strict=True):
            (kept, weights), (wide_kept, wide) = own[cut][0], found[row]
            where = f"cut {cut}, sample {row}:"
            _hold(kept == wide_kept, f"{where} alone {kept}, in a larger bucket {wide_kept}")
            if weights is None:
                continue
            count, width = len(kept), weights.shape[1]
            error = np.abs(wide[:count, :width] - weights[:count]).max(initial=0)
            _hold(error <= 1e-6, f"{where} weights differ in a larger bucket by {error}")
            _hold(not wide[:count, width:].any(), f"{where} padding has weight")


def check_equal_tokens(method: Method) -> None:
    """Promise: among equal tokens a larger bucket makes the same choice as a small one.

    A blank picture has tokens of one kind, a simple drawing of a few. Which of equal tokens stay is
    the method's affair; it must not hang on the order in which a sum over padding was formed.
    """
    for kinds in (1, 3):
        check_neighbours(method, kinds)


def check_capacity(method: Method, least: int = 0, spares_images: bool = False) -> None:
    """Promise: `capacity` is an int that bounds what any sample keeps.

    Args:
        method: resolved.
        least: tokens that every sample with a picture keeps.
        spares_images: the first cut also keeps a token of every image.
    """
    random = np.random.default_rng(3)
    for _ in range(3):
        samples = [_draw_sample(random) for _ in range(4)]
        cuts = run_cuts(method, make_layout(samples, **_LARGE), whole=True)
        for number, (stage, found) in enumerate(zip(method.stages, cuts, strict=True)):
            for (kept, _), sample in zip(found, samples, strict=True):
                image = lay_out(sample)["image"]
                slots, images = len(image), len(set(image))
                bound = method.capacity(stage, slots, images)
                where = f"cut {number} of {sample}:"
                _hold(
                    least <= len(kept) <= bound <= slots,
                    f"{where} keeps {len(kept)} of {slots} with a capacity of {bound}",
                )
                left = len({image[token] for token in kept})
                if spares_images and number == 0:
                    _hold(left == images, f"{where} keeps tokens of {left} of {images} images")
                for more in (images + 1, 9):
                    wider = method.capacity(stage, slots, more)
                    _hold(
                        bound <= wider <= slots,
                        f"{where} capacity is {bound} for {images} images, {wider} for {more}",
                    )


def check_no_picture(method: Method) -> None:
    """Promise: in a bucket without visual slots the capacity is 0 and nothing is selected."""
    bounds = [method.capacity(stage, 0, 0) for stage in method.stages]
    _hold(not any(bounds), f"capacities of a bucket without visual slots are {bounds}")
    for cut, found in enumerate(run_cuts(method, make_layout([(5,)]))):
        _hold(found[0][0] == [], f"cut {cut} keeps {found[0][0]} of a prompt without pictures")


def check_whole(method: Method, config: ModelConfig, dense: bool = False) -> None:
    """Promise: with keep_ratio=1 every token is kept.

    Args:
        method: one with a field `keep_ratio`, its own or its host's.
        config: of the model to resolve it for.
        dense: every token also stays as it is.
    """
    whole = _keep_all(method).resolve(config)
    for cut, found in enumerate(run_cuts(whole, make_layout([PAIR], **_SMALL))):
        ((kept, weights),) = found
        _hold(kept == list(range(41)), f"keep_ratio=1: cut {cut} keeps {len(kept)} of 41 tokens")
        if dense and weights is not None:
            same = np.array_equal(weights, np.eye(41))
            _hold(same, f"keep_ratio=1: cut {cut} changes tokens that it keeps")


def check_images_apart(method: Method) -> None:
    """Promise of a method whose first cut prunes each image alone: NaN stays in its image."""
    layout, first = make_layout([PAIR], **_SMALL), 20  # tokens of the first image
    (kept, weights), (hurt, changed) = (
        run_cuts(method, layout, padding=np.inf, spoilt=spoilt)[0][0] for spoilt in (None, 3)
    )
    _hold(len(hurt) == len(kept), f"with a NaN {len(hurt)} tokens are kept instead of {len(kept)}")
    second, second_hurt = ([token for token in part if token >= first] for part in (kept, hurt))
    _hold(second == second_hurt, f"NaN in one image: of another {second_hurt}, not {second}")
    if weights is not None:
        rows = np.array(kept) >= first
        same = np.array_equal(
            changed[: len(kept)][rows, first:], weights[: len(kept)][rows, first:]
        )
        _hold(same, "NaN in one image changes weights of another")


def run_cuts(
    method: Method,
    layout: Layout,
    padding: float = np.nan,
    spoilt: int | None = None,
    whole: bool = False,
    kinds: int | None = None,
) -> list[list[Kept]]:
    """Run all cuts of a resolved method; check the form of its selections.

    Args:
        padding: as in `draw_signals`.
        spoilt: likewise, at the first cut.
        kinds: likewise.
        whole: let a cut keep as many tokens as there are; otherwise as many as its capacity says.

    Returns:
        For each cut and sample the kept tokens, by their place in the unpruned prompt, and the
        weights of the selection, or None.
    """
    unpruned, carry, results = layout, None, []
    for number, stage in enumerate(method.stages):
        spoilt = None if number else spoilt
        requests = method.requests(stage)
        signals = draw_signals(requests, layout, unpruned, carry, padding, spoilt, kinds)
        V = layout.visual_index.shape[1]
        chosen = run_stage(method, layout, signals, number, num_keep=V if whole else None)
        kept, weights, carry = listed(chosen), spread_weights(chosen, V), chosen.carry
        origin = np.asarray(layout.visual_origin)
        if weights is not None:
            weights = np.asarray(weights)
            shape = (*chosen.index.shape, V)
            _hold(weights.shape == shape, f"cut {number}: weights {weights.shape}, not {shape}")
            empty, padded = ~np.asarray(chosen.valid), ~np.asarray(layout.visual_valid).any(axis=0)
            _hold(not weights[empty].any(), f"cut {number}: a slot that is not valid has weights")
            _hold(not weights[:, :, padded].any(), f"cut {number}: padding has weight")
        rows = [None] * len(kept) if weights is None else weights
        results.append([(origin[b, kept[b]].tolist(), rows[b]) for b in range(len(kept))])
        layout = shorten(layout, chosen)
    return results


def run_stage(
    method: Method, layout: Layout, signals: dict, number: int = 0, num_keep: int | None = None
) -> Selection:
    """Run one cut of a resolved method, compiled, with signals given by request.

    Args:
        number: which of the cuts.
        num_keep: by default the method's own capacity.
    """
    stage = method.stages[number]
    V = layout.visual_index.shape[1]
    bound = method.capacity(stage, layout.visual_slots, layout.num_images)
    _hold(type(bound) is int, f"cut {number}: capacity is {bound!r} and no int")
    missing = set(method.requests(stage)) - {RopeSettings()} - set(signals)
    _hold(not missing, f"cut {number}: no signal for {missing}")
    K = num_keep or min(V, bound)
    chosen = _run_stage(method, stage, K, tuple(signals), layout, list(signals.values()))
    shapes, wanted = {chosen.index.shape, chosen.valid.shape}, (len(layout.lengths), K)
    _hold(shapes == {wanted}, f"cut {number}: a selection of shape {shapes}, not {wanted}")
    return chosen


# These programs run once: compiling them well would cost more than it saves.
@partial(
    jax.jit,
    static_argnums=(0, 1, 2, 3),
    compiler_options={"xla_backend_optimization_level": 0},
)
def _run_stage(
    method: Method, stage: Stage, num_keep: int, requests: tuple, layout: Layout, values: list
) -> Selection:
    signals: dict[Any, Any] = dict(zip(requests, values, strict=True)) | {RopeSettings(): ROPE}
    return method.select(signals, layout, stage, num_keep)


def spread_weights(chosen: Selection, visual_slots: int) -> np.ndarray | None:
    """Return the weights of a selection over all visual tokens, [B, K, V]; None without."""
    weights = chosen.weights
    if not isinstance(weights, Blend):
        return weights
    place = np.asarray(weights.index)[..., None] == np.arange(visual_slots)  # [B, K, M, V]
    return np.where(place, np.asarray(weights.weights)[..., None], 0).sum(axis=2, dtype=np.float32)


def listed(chosen: Selection) -> list[list[int]]:
    """List the kept tokens of each sample; check the form of the selection."""
    sets = []
    for index, valid in zip(np.asarray(chosen.index), np.asarray(chosen.valid), strict=True):
        count = valid.sum()
        _hold(valid[:count].all(), f"valid slots come first, got {valid.tolist()}")
        kept = index[:count].tolist()
        _hold((np.diff(index[:count]) > 0).all(), f"kept tokens must ascend, got {kept}")
        _hold((index[count:] == 0).all(), "index must be 0 where it is not valid")
        sets.append(kept)
    return sets


def shorten(layout: Layout, chosen: Selection) -> Layout:
    """Drop tokens from visual space; the sequence itself stays as it is."""

    def take(field: str, padding: int) -> jax.Array:
        kept = jnp.take_along_axis(getattr(layout, field), chosen.index, axis=1)
        return jnp.where(chosen.valid, kept, padding)

    return layout.replace(
        visual_index=take("visual_index", 0),
        visual_valid=chosen.valid,
        visual_origin=take("visual_origin", 0),
        image_id=take("image_id", -1),
        image_count=take("image_count", 0),
        grid=jnp.take_along_axis(layout.grid, chosen.index[..., None], axis=1),
    )


def _hold(kept: Any, message: str) -> None:
    # No assert: a promise also holds under python -O.
    if not kept:
        raise AssertionError(message)


def _draw_sample(random: np.random.Generator) -> Sample:
    """Draw a prompt with up to three pictures or short videos of up to 20 tokens each."""
    shapes = [(1 + random.integers(2), *random.integers(1, 4, 2)) for _ in range(3)]
    pictures = shapes[: random.integers(1, 4)]
    return (2, *(tuple(map(int, shape)) for shape in pictures), int(random.integers(1, 18)))


def _keep_all(method: Method) -> Method:
    """Return the same method with keep_ratio 1 and without another say on it."""
    if isinstance(method, Modifier):
        return dataclasses.replace(method, host=_keep_all(method.host))
    others = {"ratios", "budget"} & {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **dict.fromkeys(others), keep_ratio=1.0)


@contextlib.contextmanager
def _named(method: Method) -> Iterator[None]:
    """Let `parse` know the method, which need not be in the table."""
    kind, known = type(unwrap(method)[-1]), methods.METHODS
    if known.get(kind.name) is kind:
        yield
        return
    before = dict(known)
    known[kind.name] = kind
    try:
        yield
    finally:
        known.clear()
        known.update(before)
