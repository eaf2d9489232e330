"""Promises that every method keeps, on signals drawn from what it asks for.

A method is held to them by its entry in the table; `ivc_jax.methods.testing` holds the promises
themselves. The engine's are in `test_engine`, what a method chooses in the file of the method.
"""

import dataclasses

import numpy as np
import pytest
from helpers.methods import complete
from helpers.models import model_config

from ivc_jax.methods import METHODS, MODIFIERS, parse, select, testing
from ivc_jax.methods import requests as asks
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.drawn import draw_signals, make_layout
from ivc_jax.methods.fields import list_fields
from ivc_jax.methods.modifier import unwrap

CONFIG = testing.make_config()
# Settings that show on small pictures what the usual ones show on large pictures alone.
SETTINGS = {
    "covipal": "width=32,heads=4",
    "vflowopt": "cell=2.3,threshold=1.1,alpha=0.3",
    "ivc": "cos_fraction=0.2",
}


def with_settings(name):
    return f"{name}:{SETTINGS[name]}" if name in SETTINGS else complete(name)


# Ways through a method that its defaults do not take, and modifiers on what merges or cuts twice.
VARIANTS = [
    "ivc:per_frame=true,queries=all,key_scope=all",
    "ivc:foreground=attention,scope=sample",
    "ivc:combine=tiles,quirks=official",
    "ivc:coordinates=farthest,per_frame=true",
    "ivc:coordinates=phase,scope=sample",
    "ivc_progressive:coordinates=random,random_seed=2",
    "ivc_removal:control=other",
    "ivc_removal:control=rank,among=background",
    "ivc_removal:control=mirror_both,among=background",
    "ivc_removal:control=block",
    "pyramiddrop+pore:sigma=1.5,per_image_trend=true,endpoint=true,per_image=true",
    "sparsevlm:recycle=false,gravity=true,priority_heads=0.5",
    "fsr:relevance=embedding,per_frame=false",
    "nuwa:text_score=embedding",
    "fitprune:recipe=80,min_cut=0",
    "cdpruner:negate=true,theta=0.5",
    "dart:counts=code,per_image=true,text_pivots=2",
    "dart:layer=0,visual_pivots=2",
    "hired:alpha=0.25,allocation=code,regions=1x3",
    "hired:regions=3x2,leftover=false",
    "vispruner:important_ratio=0.3,step=3,similarity=tower",
    "fastervlm+ivc",
    "divprune:per_frame=true",
    "divprune:per_image=false",
    "visionzip:keep_ratio=0.2,merge=mean,keys=rotated",
    "prumerge:plus=true,keep_ratio=0.3,merge=mean",
    "prumerge:adaptive=true,plus=true,neighbours=3",
    "prumerge+ivc",
    "vscan:rule=equal,window=2,ratios=0.6/0.1",
    "vscan+ivc",
    "covipal:width=16,heads=2,per_image=true,cross=true,pooled=5",
    "covipal:width=16,heads=2,layer=3,places=false,text_tokens=3",
    "covipal+ivc:width=16,heads=2",
    "sparsevlm+ivc",
    "nuwa+ivc:coordinates=lattice",
    "embedlens:dead=1/4-6,strict=true,words=2",
    "embedlens:dead=1/4-6,vit_sinks=2,remove=dead,control=random,seed=3",
    "embedlens+ivc:dead=1/4-6,control=matching",
    "embedlens:prototypes=directions.safetensors",
    "quota:assigner=v2",
    "quota:assigner=v3,total=30",
    "quota:scores=cosine,keep_ratio=0.8",
    "quota:ivc=frame,layer=3",
    "quota:ivc=sample,layer=3,keep_ratio=0.9",
    "quota+ivc:keep_ratio=0.9",
    "quota+ivc:assigner=v2",
]
SPECS = [spec for spec in map(with_settings, METHODS) if parse(spec).resolve(CONFIG).stages]
SPECS += [f"fastv+{modifier}" for modifier in MODIFIERS] + VARIANTS
# These prune each image or frame alone at their first cut.
INDEPENDENT = (
    "random",
    "uniform",
    "ivc",
    "holov",
    "scope",
    "visiondrop",
    "visionzip",
    "prumerge",
    "vscan",
    "fsr",
    "nuwa",
    "divprune",
    "cdpruner",
    "fastervlm",
    "hired",
    "vispruner",
    "embedlens",
)
# These keep a token of every image at their first cut, however small it is.
SPARING = (
    "ivc",
    "holov",
    "scope",
    "visiondrop",
    "fsr",
    "nuwa",
    "vflowopt",
    "divprune",
    "visionzip",
    "prumerge",
    "vscan",
    "cdpruner",
    "fastervlm",
    "hired",
    "vispruner",
    "embedlens",
)
# These can number the survivors anew (`positions` of the IVC score is another thing).
RENUMBERING = [
    name
    for name, kind in METHODS.items()
    if "positions" in (fields := list_fields(kind)) and fields["positions"].default is None
]
# These never leave all tokens as they are, whatever the keep ratio.
NEVER_DENSE = ("sparsevlm", "nuwa", "prumerge")

every_method = pytest.mark.parametrize("spec", SPECS)


def resolved(spec):
    return parse(spec).resolve(CONFIG)


@every_method
def test_batch_mates_padding_and_larger_buckets_change_nothing(spec):
    testing.check_neighbours(resolved(spec))


@every_method
def test_equal_tokens_are_chosen_alike_in_a_larger_bucket(spec):
    testing.check_equal_tokens(resolved(spec))


@every_method
def test_counts_stay_within_a_static_capacity(spec):
    spares_images = spec in map(with_settings, SPARING)
    testing.check_capacity(resolved(spec), least=1, spares_images=spares_images)


@every_method
def test_a_bucket_without_pictures_selects_nothing(spec):
    testing.check_no_picture(resolved(spec))


@pytest.mark.parametrize(
    "spec",
    [
        spec
        for spec in SPECS[: -len(VARIANTS)]
        if "keep_ratio" in list_fields(type(unwrap(parse(spec))[-1]))
    ],
)
def test_keep_ratio_one_keeps_every_token(spec):
    testing.check_whole(parse(spec), CONFIG, dense=not spec.startswith(NEVER_DENSE))


@pytest.mark.parametrize("name", INDEPENDENT)
def test_nan_stays_inside_its_image(name):
    testing.check_images_apart(resolved(with_settings(name)))


@pytest.mark.parametrize("spec", ["dense", *METHODS, *SPECS])
def test_equal_methods_are_one_and_their_strings_read_back(spec):
    assert parse(spec) == parse(spec)
    assert hash(parse(spec)) == hash(parse(spec))
    testing.check_string(parse(spec), CONFIG)


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
    layout = make_layout([testing.PAIR])
    requests = [kind(1) for kind in (asks.Values, asks.Keys, asks.AttentionReceived)]
    requests.append(asks.RawValues(1))
    requests += [asks.AttentionRows(1, "last", 2), asks.AttentionRows(1, "text"), asks.Carry()]
    requests += [asks.TowerAttention(), asks.TowerKeys(), asks.TowerFeatures()]
    requests += [asks.TowerKeys(heads="joined", rotated=True), asks.ClassFeatures()]
    requests += [asks.PixelEntropy(), asks.Hidden(), asks.Embeddings(), asks.Objects()]
    requests.append(asks.WordEmbeddings())
    requests.append(asks.Weights("any"))
    requests += [asks.Relevance(), asks.Learned()]
    known = {*asks.Request.__args__} - {asks.RopeSettings}
    assert {type(request) for request in requests} == known
    assert set(draw_signals(requests, layout, layout)) == set(requests)


@dataclasses.dataclass(frozen=True)
class LongValues(Method):
    """Somebody's own method: keep the tokens whose value vectors are longest."""

    name = "long_values"
    keep_ratio: float = 0.5

    @property
    def stages(self):
        return (Stage(2, self.keep_ratio),)

    def requests(self, stage):
        return (asks.Values(stage.layer - 1),)

    def select(self, signals, layout, stage, num_keep):
        values = signals[asks.Values(stage.layer - 1)].visual  # [B, V, G, C]
        within = select.Segments.by_image(layout)
        counts = select.round_counts(stage.keep_ratio, layout.visual_slots)
        keep = within.top((values**2).sum(axis=(2, 3)), within.look_up(counts))
        return select.from_mask(keep, num_keep)

    def capacity(self, stage, visual_slots, num_images):
        counts = select.round_counts(stage.keep_ratio, visual_slots)
        return select.bound_total(counts, num_images)


class Loud(LongValues):
    """The bound of the bucket instead of the count of the sample."""

    def select(self, signals, layout, stage, num_keep):
        return select.from_mask(layout.visual_valid, num_keep)


class Pooled(LongValues):
    """A rank that hangs on what the mean over the slots, padding included, is."""

    def select(self, signals, layout, stage, num_keep):
        values = signals[asks.Values(stage.layer - 1)].visual.sum(axis=(2, 3))  # [B, V]
        within = select.Segments.by_image(layout)
        counts = select.round_counts(stage.keep_ratio, layout.visual_slots)
        far = abs(values - np.float32(layout.visual_slots % 7))
        return select.from_mask(within.top(far, within.look_up(counts)), num_keep)


class Greedy(LongValues):
    """A capacity that is a float."""

    def capacity(self, stage, visual_slots, num_images):
        return stage.keep_ratio * visual_slots


def test_the_kit_takes_a_method_that_is_in_no_table():
    before = dict(METHODS)
    testing.check_method(LongValues())
    testing.check_method(LongValues(keep_ratio=0.25), model_config(3, sections=None))
    assert before == METHODS


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Loud, "alone .* in a larger bucket"),
        (Pooled, "alone .* in a larger bucket"),
        (Greedy, "capacity is 30.0 and no int"),
    ],
)
def test_the_kit_names_the_broken_promise(kind, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_method(kind())
