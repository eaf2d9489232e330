"""Removal of the IVC tokens against a slow reference, and against its controls at equal counts."""

import jax
import numpy as np
import pytest
from helpers.layouts import kept_sets
from helpers.models import model_config
from helpers.reference import SAMPLES, Slow

from ivc_jax.engine.plan import Cut, make_plan
from ivc_jax.methods import IVCPrune, IVCRemoval, MethodError, describe, parse
from ivc_jax.methods.base import Stage
from ivc_jax.methods.cells import draw_cells
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import Objects, RopeSettings

LAYOUT = make_layout(SAMPLES)
LARGE = {"cos_fraction": 0.2, "sin_fraction": 0.25}
COUNTS = [len(lay_out(sample)["image"]) for sample in SAMPLES]


def ivc_sets(samples, **fields) -> list[list[set[int]]]:
    """List the IVC set of every image of every sample, token by token in float64."""
    slow = [Slow(sample, np.zeros(0), IVCPrune(**fields)) for sample in samples]
    return [[one.coordinates(image) for image in one.images] for one in slow]


def removed_sets(method, layout=LAYOUT, samples=SAMPLES) -> list[list[set[int]]]:
    """List what each image of each sample loses."""
    lost = []
    for sample, kept in zip(samples, kept_sets(method, layout), strict=True):
        image = np.array(lay_out(sample)["image"], int)
        gone = set(range(len(image))) - set(kept)
        assert len(gone) + len(kept) == len(image)
        lost.append([gone & set(np.flatnonzero(image == number)) for number in sorted({*image})])
    return lost


@pytest.mark.parametrize(
    "fields",
    [
        LARGE,
        {"frequencies": "high", "positions": "index"},
        {"frequencies": "middle", "axes": "hw", "positions": "relative"},
        {"frequencies": "low", "theta": 30.0, "position_offset": 1000},
    ],
    ids=lambda fields: ",".join(f"{name}={value}" for name, value in fields.items()),
)
def test_everything_but_the_ivc_tokens_stays(fields):
    assert removed_sets(IVCRemoval(layer=2, **fields)) == ivc_sets(SAMPLES, **fields)


def with_control(control):
    return IVCRemoval(layer=2, control=control, seed=3, **LARGE)


@pytest.mark.parametrize("control", ["random", "other"])
def test_controls_remove_as_many_from_every_image(control):
    lost = removed_sets(with_control(control))
    draws = np.array(jax.jit(draw_cells, static_argnums=1)(LAYOUT, 3))
    for row, reference in enumerate(ivc_sets(SAMPLES, **LARGE)):
        image = np.asarray(LAYOUT.image_id[row])
        for number, wanted in enumerate(reference):
            assert len(lost[row][number]) == len(wanted) > 0
            allowed = set(np.flatnonzero(image == number))
            allowed -= wanted if control == "other" else set()
            drawn = sorted(allowed, key=lambda token: -draws[row, token])
            assert lost[row][number] == set(drawn[: len(wanted)])


def test_one_token_of_every_image_stays():
    samples = [(1, (1, 1), 2, (1, 2), 3, (2, 2), 1), (4,)]
    fractions = {"cos_fraction": 0.95, "sin_fraction": 0.95}
    assert ivc_sets(samples[:1], **fractions) == [[{0}, {1, 2}, {3, 4, 5, 6}]]
    method = IVCRemoval(layer=1, **fractions)
    assert kept_sets(method, make_layout(samples)) == [[0, 2, 6], []]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cos_fraction": 0.35, "sin_fraction": 0.6},
        {"cos_fraction": 0.25, "sin_fraction": 0.25, "control": "other"},
    ],
    ids=["default", "large", "other"],
)
def test_capacity_is_the_most_that_two_images_can_keep(fields):
    method = IVCRemoval(layer=2, **fields)
    (stage,) = method.stages

    def most(size):
        counts = [round(f * size) for f in method.coordinates.fractions]
        sets = range(max(counts), min(sum(counts), size) + 1)
        rest = [size - s if method.control == "other" else size - 1 for s in sets]
        return size - min(min(pair) for pair in zip(sets, rest, strict=True)) if size else 0

    kept = [most(size) for size in range(61)]
    for slots in range(61):
        assert method.capacity(stage, slots, 1) == max(kept[: slots + 1])
        two = max(kept[size] + kept[slots - size] for size in range(slots + 1))
        assert two <= method.capacity(stage, slots, 2) <= min(slots, two + 1)


def test_fractions_of_zero_remove_nothing():
    method = IVCRemoval(layer=2, cos_fraction=0.0, sin_fraction=0.0)
    assert method.stages == (Stage(2, 1.0, compact_earlier_kv=True),)
    assert kept_sets(method, LAYOUT) == [list(range(count)) for count in COUNTS]


def test_stages_and_requests():
    assert IVCRemoval().resolve(model_config()).layer == 19
    first = IVCRemoval(layer=0, cos_fraction=0.25, compact_earlier_kv=False)
    (stage,) = first.resolve(model_config()).stages
    assert stage == Stage(0, 0.75)
    assert first.requests(stage) == (RopeSettings(),)
    assert make_plan(5, first)[0] == Cut(stage)
    for depth, blocks, layer in ((0.0, 28, 0), (0.17, 6, 1), (0.33, 28, 9), (0.99, 8, 7)):
        method = IVCRemoval(depth=depth).resolve(model_config(blocks))
        assert (method.layer, method.depth) == (layer, None)
    background = IVCRemoval(layer=0, among="background")
    (stage,) = background.stages
    assert stage.keep_ratio == 1.0  # every IVC token may hold an object
    assert background.requests(stage) == (RopeSettings(), Objects())
    with pytest.raises(MethodError, match="sections"):
        IVCRemoval(frequencies="section").resolve(model_config(sections=None))


@pytest.mark.parametrize(
    "spec",
    [
        "ivc_removal",
        "ivc_removal:layer=0,sin_fraction=0.0,frequencies=0-2/8,positions=index,axes=hw",
        "ivc_removal:frequencies=low,position_offset=50,theta=100.0,control=other,seed=3",
        "ivc_removal:compact_earlier_kv=false,control=random",
        "ivc_removal:depth=0.25,control=mirror_lr,among=background",
    ],
)
def test_specifications_are_written_back(spec):
    assert describe(parse(spec)) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("layer=-1", "layer must not be negative"),
        ("cos_fraction=1.5", "cos_fraction must be in"),
        ("sin_fraction=1", "sin_fraction=1 removes whole images"),
        ("control=most", r"control must be one of \('ivc', 'random', 'other', .* got 'most'"),
        ("among=objects", r"among must be one of \('all', 'background'\), got 'objects'"),
        ("depth=1.0", r"depth must be in \[0, 1\), got 1.0"),
        ("depth=0.5,layer=3", "layer and depth exclude each other"),
        (
            "control=rank,cos_fraction=0.45",
            r"control=rank needs as many tokens outside the IVC set",
        ),
        ("positions=none", "positions must be one of"),
        ("axes=t", "axes must be one of"),
        ("frequencies=lowest", "frequencies must be one of .*'low'.* got 'lowest'"),
        ("seed=-1", "seed must be in"),
        (
            "control=other,cos_fraction=0.3,sin_fraction=0.3",
            r"cos_fraction \+ sin_fraction <= 0\.5",
        ),
        ("keep_ratio=0.5", "no field 'keep_ratio'"),
    ],
)
def test_bad_input_is_named(fields, message):
    with pytest.raises(MethodError, match=message):
        parse(f"ivc_removal:{fields}")


def test_ivc_tokens_cannot_be_dropped_and_kept():
    with pytest.raises(MethodError, match=r"drops tokens that \+ivc would keep"):
        parse("ivc_removal+ivc")
