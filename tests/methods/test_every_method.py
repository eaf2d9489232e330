"""Promises that every method keeps, on signals drawn from what it asks for.

A method is held to them by its entry in the table. The engine's promises are in `test_engine`,
what a method chooses in the file of the method.
"""

import functools

import numpy as np
import pytest
from helpers.layouts import lay_out, make_layout
from helpers.models import model_config
from helpers.signals import draw_signals, run_cuts

from ivc_jax.methods import METHODS, MODIFIERS, describe, parse
from ivc_jax.methods import requests as asks
from ivc_jax.methods.fields import list_fields
from ivc_jax.methods.modifier import unwrap

CONFIG = model_config(8)
# Settings that show on small pictures what the usual ones show on large pictures alone.
SETTINGS = {"vflowopt": "cell=2.3,threshold=1.1,alpha=0.3", "ivc": "cos_fraction=0.2"}


def with_settings(name):
    return f"{name}:{SETTINGS[name]}" if name in SETTINGS else name


# Ways through a method that its defaults do not take, and modifiers on what merges or cuts twice.
VARIANTS = [
    "ivc:per_frame=true,queries=all,key_scope=all",
    "ivc:foreground=attention,scope=sample",
    "ivc_removal:control=other",
    "pyramiddrop+pore:sigma=1.5,per_image_trend=true,endpoint=true,per_image=true",
    "sparsevlm:recycle=false,gravity=true,priority_heads=0.5",
    "fsr:relevance=embedding,per_frame=false",
    "nuwa:text_score=embedding",
    "sparsevlm+ivc",
]
SPECS = [spec for spec in map(with_settings, METHODS) if parse(spec).resolve(CONFIG).stages]
SPECS += [f"fastv+{modifier}" for modifier in MODIFIERS] + VARIANTS
# These prune each image or frame alone at their first cut.
INDEPENDENT = ("random", "uniform", "ivc", "holov", "scope", "visiondrop", "fsr", "nuwa")
# These keep a token of every image at their first cut, however small it is.
SPARING = ("ivc", "holov", "scope", "visiondrop", "fsr", "nuwa", "vflowopt")
# These can number the survivors anew (`positions` of the IVC score is another thing).
RENUMBERING = [
    name
    for name, kind in METHODS.items()
    if "positions" in (fields := list_fields(kind)) and fields["positions"].default is None
]
# These never leave all tokens as they are, whatever the keep ratio.
NEVER_DENSE = ("sparsevlm", "nuwa")

PAIR = (3, (4, 5), 4, (3, 7), 5)
VIDEO = (2, (3, 3, 4), 6)
ONE = (4, (5, 6), 5)
BUCKET = {"text_slots": 12, "visual_slots": 41, "num_images": 2}
WIDE = {"text_slots": 20, "visual_slots": 60, "num_images": 4, "num_positions": 99}


def kind_of(spec):
    """Return the class of the method below the modifiers."""
    return type(unwrap(parse(spec))[-1])


every_method = pytest.mark.parametrize("spec", SPECS)


def resolved(spec, **fields):
    more = ",".join(f"{name}={value}" for name, value in fields.items())
    spec += (":" if ":" not in spec else ",") + more if more else ""
    return parse(spec).resolve(CONFIG)


@functools.cache
def alone(spec, sample):
    """Run a sample in the small bucket, whose padding is infinite."""
    return run_cuts(resolved(spec), make_layout([sample], **BUCKET), padding=np.inf)


@functools.cache
def together(spec):
    """Run the samples in the large one, where no cut is told its capacity and padding is NaN."""
    return run_cuts(resolved(spec), make_layout([ONE, (5,), VIDEO, PAIR], **WIDE), whole=True)


@every_method
def test_batch_mates_padding_and_larger_buckets_change_nothing(spec):
    for cut, found in enumerate(together(spec)):
        assert found[1][0] == []
        for row, sample in ((0, ONE), (2, VIDEO), (3, PAIR)):
            kept, weights = alone(spec, sample)[cut][0]
            assert kept == found[row][0]
            if weights is not None:
                count, width = len(kept), weights.shape[1]
                wide = found[row][1]
                np.testing.assert_allclose(wide[:count, :width], weights[:count], atol=1e-6)
                assert not wide[:count, width:].any()


def draw_sample(random):
    """Draw a prompt with up to three pictures or short videos of up to 20 tokens each."""
    shapes = [(1 + random.integers(2), *random.integers(1, 4, 2)) for _ in range(3)]
    pictures = shapes[: random.integers(1, 4)]
    return (2, *(tuple(map(int, shape)) for shape in pictures), int(random.integers(1, 18)))


@every_method
def test_counts_stay_within_a_static_capacity(spec):
    method, random = resolved(spec), np.random.default_rng(3)
    for _ in range(3):
        samples = [draw_sample(random) for _ in range(4)]
        cuts = run_cuts(method, make_layout(samples, **WIDE), whole=True)
        for stage, found in zip(method.stages, cuts, strict=True):
            for (kept, _), sample in zip(found, samples, strict=True):
                image = lay_out(sample)["image"]
                capacity = method.capacity(stage, len(image), len(set(image)))
                assert type(capacity) is int
                assert 1 <= len(kept) <= capacity <= len(image)
                if spec in map(with_settings, SPARING) and stage == method.stages[0]:
                    assert len({image[token] for token in kept}) == len(set(image))
                for more in (len(set(image)) + 1, 9):
                    assert capacity <= method.capacity(stage, len(image), more) <= len(image)


@every_method
def test_a_bucket_without_pictures_selects_nothing(spec):
    method = resolved(spec)
    assert {method.capacity(stage, 0, 0) for stage in method.stages} == {0}
    for found in run_cuts(method, make_layout([(5,)])):
        assert found[0][0] == []


@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS[: -len(VARIANTS)] if "keep_ratio" in list_fields(kind_of(spec))]
)
def test_keep_ratio_one_keeps_every_token(spec):
    for found in run_cuts(resolved(spec, keep_ratio=1.0), make_layout([PAIR], **BUCKET)):
        ((kept, weights),) = found
        assert kept == list(range(41))
        if weights is not None and not spec.startswith(NEVER_DENSE):
            np.testing.assert_array_equal(weights, np.eye(41))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_nan_stays_inside_its_image(name):
    spec = with_settings(name)
    layout = make_layout([PAIR], **BUCKET)
    (sound, weights), (hurt, changed) = (
        run_cuts(resolved(spec), layout, padding=np.inf, spoilt=spoilt)[0][0]
        for spoilt in (None, 3)  # a token of the first image, which has 20
    )
    assert len(hurt) == len(sound)
    second = [token >= 20 for token in sound]
    assert [token for token in hurt if token >= 20] == np.array(sound)[second].tolist()
    if weights is not None:
        rows = np.flatnonzero(second)
        np.testing.assert_array_equal(changed[rows][:, 20:], weights[rows][:, 20:])


@pytest.mark.parametrize("spec", ["dense", *METHODS, *SPECS])
def test_equal_methods_are_one_and_their_strings_read_back(spec):
    method = parse(spec)
    assert method == parse(spec)
    assert hash(method) == hash(parse(spec))
    for each in (method, method.resolve(CONFIG)):
        assert parse(describe(each)) == each
        assert hash(parse(describe(each))) == hash(each)
        assert describe(parse(describe(each))) == describe(each)
    assert method.resolve(CONFIG) == method.resolve(CONFIG).resolve(CONFIG)


@pytest.mark.parametrize("name", RENUMBERING)
def test_positions_are_numbered_anew_with_one_axis_only(name):
    flat = model_config(8, sections=None)
    for given, config, renumbered in (
        ("none", CONFIG, False),
        ("none", flat, True),
        ("reindex", CONFIG, True),
        ("original", flat, False),
    ):
        stages = parse(f"{name}:positions={given}").resolve(config).stages
        assert {stage.renumber for stage in stages} == {renumbered}


def test_every_request_can_be_drawn():
    """A new request is met by `draw_signals`, so that no method is left out."""
    layout = make_layout([PAIR])
    requests = [kind(1) for kind in (asks.Values, asks.Keys, asks.AttentionReceived)]
    requests += [asks.AttentionRows(1, "last", 2), asks.AttentionRows(1, "text"), asks.Carry()]
    requests += [asks.TowerAttention(), asks.TowerKeys(), asks.TowerFeatures()]
    requests += [asks.PixelEntropy(), asks.Hidden(), asks.Embeddings()]
    known = {*asks.Request.__args__} - {asks.RopeSettings}
    assert {type(request) for request in requests} == known
    assert set(draw_signals(requests, layout, layout)) == set(requests)
