"""Method strings: reading, writing, and what bad ones are told."""

import dataclasses
import logging

import numpy as np
import pytest
from helpers.models import model_config

from ivc_jax.config import Released
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import (
    FSR,
    METHODS,
    CDPruner,
    Coordinates,
    Dart,
    DivPrune,
    FastV,
    FitPrune,
    Foreground,
    HiRED,
    HoloV,
    IVCPrune,
    Method,
    MethodError,
    Nuwa,
    ProgressiveIVC,
    PruMerge,
    PyramidDrop,
    Random,
    Scope,
    SparseVLM,
    Uniform,
    VFlowOpt,
    VisionDrop,
    VisionZip,
    VisPruner,
    VScan,
    WithIVC,
    WithPoRe,
    describe,
    parse,
)
from ivc_jax.methods.base import Stage
from ivc_jax.methods.requests import RopeSettings, Values


@pytest.mark.parametrize(
    ("spec", "method"),
    [
        ("dense", Method()),
        ("ivc", IVCPrune()),
        ("ivc:layer=16,keep_ratio=0.5", IVCPrune(layer=16)),
        (" ivc : layer = 16 , keep_ratio = 1 ", IVCPrune(layer=16, keep_ratio=1.0)),
        ("ivc:layer=none,frequencies=section", IVCPrune(frequencies="section")),
        ("ivc:frequencies=0-2/8", IVCPrune(frequencies=(8, 2, 1, 0, 0))),
        (
            "ivc:combine=union,foreground_fraction=0.2",
            IVCPrune(combine="union", foreground_fraction=0.2),
        ),
        (
            "ivc:key_scope=all,keep_seeds=false,scope=sample,score_dtype=bfloat16",
            IVCPrune(key_scope="all", keep_seeds=False, scope="sample", score_dtype="bfloat16"),
        ),
        (
            "ivc:positions=relative,axes=hw,queries=all,seed_rounding=ceil,quirks=none",
            IVCPrune(positions="relative", axes="hw", queries="all", seed_rounding="ceil"),
        ),
        ("ivc:quirks=official", IVCPrune(quirks="official")),
        ("ivc:coordinates=lattice", IVCPrune(coordinates="lattice")),
        (
            "ivc:coordinates=random,random_seed=3,cos_fraction=0.05,axes=hw",
            IVCPrune(coordinates="random", random_seed=3, cos_fraction=0.05, axes="hw"),
        ),
        ("ivc_progressive:coordinates=phase", ProgressiveIVC(coordinates="phase")),
        ("fastv+ivc:coordinates=farthest", WithIVC(FastV(), coordinates="farthest")),
        ("fastv:per_image=true,rounding=floor", FastV(per_image=True, rounding="floor")),
        ("fastv+ivc:keep_ratio=0.5,cos_fraction=0.05", WithIVC(FastV(), cos_fraction=0.05)),
        ("random+ivc:seed=3,layer=2", WithIVC(Random(layer=2, seed=3))),
        ("uniform:compact_earlier_kv=false", Uniform(compact_earlier_kv=False)),
        (
            "pyramiddrop:layers=7/14/21,ratios=0.5/0.25/0.125",
            PyramidDrop(layers=(7, 14, 21), ratios=(0.5, 0.25, 0.125)),
        ),
        (
            "fastv+pore+ivc:budget=0.5,sigma=1.5",
            WithIVC(WithPoRe(FastV(budget=0.5), sigma=1.5)),
        ),
        ("sparsevlm:recycle=false,gravity=true", SparseVLM(recycle=False, gravity=True)),
        ("visiondrop:keep_ratio=0.1,causal=false", VisionDrop(keep_ratio=0.1, causal=False)),
        ("vflowopt+ivc:alpha=0.5,cell=3", WithIVC(VFlowOpt(alpha=0.5, cell=3.0))),
        ("prumerge:plus=true,keys=mean", PruMerge(plus=True, keys="mean")),
        ("vscan:rule=equal,window=6", VScan(rule="equal", window=6)),
        ("visionzip:merge=mean,class_token=true", VisionZip(merge="mean", class_token=True)),
        ("nuwa:diagonal=self_one,per_region=3", Nuwa(diagonal="self_one", per_region=3)),
        ("scope:saliency=norm,alpha=0.5", Scope(saliency="norm", alpha=0.5)),
        ("holov:inner=attention,crops=8", HoloV(inner="attention", crops=8)),
        ("fitprune:recipe=50,min_cut=0.1", FitPrune(recipe=50, min_cut=0.1)),
        ("cdpruner:negate=true,theta=0.5", CDPruner(negate=True, theta=0.5)),
        ("dart:counts=code,text_pivots=5", Dart(counts="code", text_pivots=5)),
        ("hired:regions=3x2,alpha=0.25", HiRED(regions="3x2", alpha=0.25)),
        ("vispruner:important_ratio=0.75", VisPruner(important_ratio=0.75)),
        ("divprune:per_image=false", DivPrune(per_image=False)),
        ("fsr:relevance=embedding", FSR(relevance="embedding")),
    ],
)
def test_specifications_are_read_and_written_back(spec, method):
    assert parse(spec) == method
    assert hash(parse(spec)) == hash(method)
    assert parse(describe(method)) == method
    assert describe(parse(describe(method))) == describe(method)
    assert parse(method) is method


def test_fields_have_their_declared_types():
    method = parse("ivc:keep_ratio=1,layer=3,sin_fraction=0")
    values = method.keep_ratio, method.layer, method.coordinates.sin_fraction
    assert [type(value) for value in values] == [float, int, float]
    assert describe(IVCPrune(keep_ratio=1)) == describe(IVCPrune(keep_ratio=1.0))


def test_nested_settings_are_written_flat():
    flat = IVCPrune(layer=16, axes="hw", query_offset=1)
    assert flat == parse("ivc:layer=16,axes=hw,query_offset=1")
    nested = IVCPrune(
        16, coordinates=Coordinates(axes="hw"), foreground_rule=Foreground(query_offset=1)
    )
    assert flat == nested
    assert hash(flat) == hash(nested)
    # A change of one field leaves the others beside it.
    both = dataclasses.replace(flat, theta=100.0, layer=3)
    assert both == parse("ivc:layer=3,axes=hw,query_offset=1,theta=100")
    with pytest.raises(MethodError, match="ivc_progressive has no field 'axes'"):
        ProgressiveIVC(coordinates=Coordinates(axes="hw"))
    with pytest.raises(MethodError, match=r"fastv\+ivc has no field 'positions'"):
        WithIVC(FastV(), positions="index")
    with pytest.raises(TypeError, match="cosine"):
        IVCPrune(cosine=0.1)


def test_the_name_of_a_rule_stands_for_the_coordinates():
    named = IVCPrune(coordinates="lattice", cos_fraction=0.05)
    whole = IVCPrune(coordinates=Coordinates(rule="lattice", cos_fraction=0.05))
    assert named == whole == dataclasses.replace(IVCPrune(cos_fraction=0.05), **{
        "coordinates": Coordinates(rule="lattice", cos_fraction=0.05),
    })  # fmt: skip
    assert hash(named) == hash(whole)
    # beside settings given whole, and beside a rule given by name, other fields change alone
    assert IVCPrune(coordinates=Coordinates(rule="lattice"), cos_fraction=0.05) == whole
    assert dataclasses.replace(named, cos_fraction=None, layer=3) == parse(
        "ivc:layer=3,coordinates=lattice"
    )
    assert named.resolve(model_config(28)).coordinates.rule == "lattice"
    assert describe(named) == "ivc:keep_ratio=0.5,coordinates=lattice,cos_fraction=0.05"
    assert parse("ivc:coordinates=released") == IVCPrune()
    assert describe(parse("fastv+ivc:coordinates=lattice")) == (
        "fastv+ivc:keep_ratio=0.5,coordinates=lattice"
    )


def test_descriptions_are_short():
    assert describe(Method()) == "dense"
    assert describe(IVCPrune(layer=16)) == "ivc:layer=16,keep_ratio=0.5"
    assert describe(IVCPrune(frequencies=(0, 1, 2, 5, 7, 8))) == (
        "ivc:keep_ratio=0.5,frequencies=0-2/5/7-8"
    )
    assert describe(parse("fastv+ivc:sin_fraction=0.05")) == (
        "fastv+ivc:keep_ratio=0.5,sin_fraction=0.05"
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("average", "unknown method 'average'; known methods: dense, random, uniform, ivc"),
        ("fastvv", r"method 'fastvv'; did you mean 'fastv'\? known methods: dense"),
        (
            "ivc:cos_fractoin=0.1",
            r"'cos_fractoin'; did you mean 'cos_fraction'\? known fields: axes",
        ),
        ("", "unknown method ''; known"),
        ("fastv+pdrop", r"unknown modifier 'pdrop'; did you mean 'rope'\? known modifiers: ivc"),
        (
            "ivc:ratio=0.5",
            r"no field 'ratio'; did you mean 'keep_ratio'\? known fields: .*keep_ratio, keep_seeds",
        ),
        ("dense:layer=1", "no field 'layer'; known fields: none"),
        (
            "fastv+ivc:seed=1",
            "no field 'seed'; known fields: coordinates, cos_fraction, .*per_image",
        ),
        ("fastv+ivc:host=ivc", "no field 'host'"),
        ("ivc:layer", "expected field=value, got 'layer'"),
        ("ivc:", "expected field=value"),
        ("ivc:layer=1,layer=2", "layer is given twice"),
        ("ivc:layer=16.0", "layer='16.0' is not int or none"),
        ("ivc:layer=", "layer='' is not int"),
        ("ivc:keep_ratio=half", "keep_ratio='half' is not float"),
        ("fastv:budget=0.5+ivc", r"before the colon: NAME\+ivc:budget=0.5"),
        ("fastv:per_image=1", "per_image='1' is not bool"),
        ("ivc:keep_ratio=0", r"keep_ratio must be in \(0, 1\], got 0"),
        ("ivc:keep_ratio=1.01", r"keep_ratio must be in \(0, 1\]"),
        ("random:keep_ratio=nan", r"keep_ratio must be in \(0, 1\], got nan"),
        ("ivc:layer=0", "choose layer >= 1"),
        ("fastv:layer=0", "choose layer >= 1"),
        ("random:layer=-1", "layer must not be negative"),
        ("random:seed=-1", "seed must be in"),
        ("ivc:cos_fraction=1.5", "cos_fraction must be in"),
        ("ivc:frequencies=most", "frequencies must be"),
        ("ivc:frequencies=3-1", "frequencies must be plane indices"),
        (
            "fastv+ivc:coordinates=latice",
            "unknown coordinates 'latice'; did you mean 'lattice'[?] known coordinates: released, "
            "lattice, farthest, phase, random$",
        ),
        ("ivc:coordinates=4", "unknown coordinates '4'; known coordinates: released, lattice"),
        ("ivc:coordinates=lattice,random_seed=1", "has an effect with coordinates=random only"),
        ("ivc:coordinates=random,random_seed=-1", "^random_seed must be in"),
        ("ivc:rule=lattice", "no field 'rule'"),
        ("ivc:combine=sum", "combine must be one of"),
        ("ivc:foreground_fraction=0.4", "combine=union only"),
        ("ivc:query_offset=-1", "query_offset"),
        ("ivc:key_scope=text", r"key_scope must be one of \('image', 'all'\), got 'text'"),
        ("ivc:score_dtype=float16", "score_dtype must be one of"),
        ("ivc:quirks=official,scope=sample", "quirks=official fixes scope=image"),
        ("fastv:rounding=up", "rounding must be one of"),
        ("ivc+ivc", "keeps the IVC tokens already"),
        ("fastv+ivc+ivc", "keeps the IVC tokens already"),
        ("dense+ivc", "needs a method that prunes"),
        (None, "named by a string"),
    ],
)
def test_bad_specifications_say_what_is_known(spec, message):
    with pytest.raises(MethodError, match=message):
        parse(spec)


@pytest.mark.parametrize(
    ("name", "layer"), [("qwen2-vl-7b", 19), ("qwen2.5-vl-7b", 16), ("qwen2.5-vl-3b", 22)]
)
def test_default_layers_of_published_models(name, layer):
    config = parse_config(list_sizes()[name])
    assert IVCPrune().resolve(config).layer == layer


@pytest.mark.parametrize(
    ("num_layers", "released", "layer"), [(28, None, 19), (28, 16, 16), (2, None, 1)]
)
def test_default_layers(num_layers, released, layer):
    config = dataclasses.replace(model_config(num_layers), released=Released(layer=released))
    for method in (IVCPrune(), Random(), Uniform()):
        assert method.resolve(config).stages == (Stage(layer, 0.5, compact_earlier_kv=True),)
    assert IVCPrune(layer=1).resolve(config).layer == 1
    with pytest.raises(MethodError, match="layer is not set"):
        _ = IVCPrune().stages


UNION = Released(16, "union", 0.2, True, 0.05, 0.05, key_scope="all")


@pytest.mark.parametrize(
    ("spec", "means"),
    [
        ("ivc", "combine=union,foreground_fraction=0.2,keep_seeds=true"),
        ("ivc:combine=union,foreground_fraction=0.3", "combine=union,keep_seeds=true"),
        ("ivc:combine=fill", "combine=fill,keep_seeds=true"),
        # only filling up meets a number that is asked for
        ("ivc:keep_ratio=0.25", "combine=fill,keep_seeds=true"),
        ("ivc:budget=0.6", "combine=fill,keep_seeds=true"),
        ("ivc:keep_seeds=false", "combine=union,foreground_fraction=0.2"),
        ("ivc:query_offset=1,cos_fraction=0.1", "combine=union,foreground_fraction=0.2,"
         "keep_seeds=true"),
        ("ivc_progressive", ""),
    ],
)  # fmt: skip
def test_what_is_not_given_is_what_was_released(spec, means):
    """Every field that the release differs in, as if it were written; a given one stays."""
    config = dataclasses.replace(model_config(32), released=UNION)
    usual = "layer=16,cos_fraction=0.05,sin_fraction=0.05,key_scope=all,query_offset=2"
    if spec == "ivc_progressive":
        usual = usual.removeprefix("layer=16,")
    given, known = (text.partition(":")[2].split(",") for text in (spec, f":{usual},{means}"))
    names = {part.partition("=")[0] for part in given}
    left = [part for part in known if part and part.partition("=")[0] not in names]
    written = f"{spec.partition(':')[0]}:{','.join([*filter(None, given), *left])}"
    assert parse(spec).resolve(config) == parse(written).resolve(config)
    assert parse(spec).resolve(config) == parse(written).resolve(model_config(32))


def test_removed_and_added_sets_are_the_released_ones_too():
    config = dataclasses.replace(model_config(32), released=UNION)
    (stage,) = parse("ivc_removal").resolve(config).stages
    assert stage == Stage(16, 0.95, compact_earlier_kv=True)
    assert parse("fastv+ivc").resolve(config).coordinates.fractions == (0.05, 0.05)
    shrunk = parse("fastv+ivc:budget=0.25,sin_fraction=0.1").resolve(config)
    assert shrunk.coordinates.fractions == (0.025, 0.05)
    asked = parse("ivc:foreground=attention").resolve(config)
    assert asked.foreground_rule.key_scope == "image"  # rows of the model have their own


def test_a_model_without_a_released_layer_is_noted_once(caplog):
    caplog.set_level(logging.INFO, logger="ivc_jax")
    known = dataclasses.replace(model_config(36), released=Released(layer=22))
    for config in (known, model_config(45), model_config(45)):
        IVCPrune().resolve(config)
    (record,) = caplog.records
    assert "qwen2_vl with 45 blocks: pruning before block 30" in record.getMessage()


def test_resolving_checks_the_planes():
    with pytest.raises(MethodError, match="between 0 and 63"):
        IVCPrune(frequencies=(64,)).resolve(model_config())
    with pytest.raises(MethodError, match="sections"):
        WithIVC(FastV(), frequencies="section").resolve(model_config(sections=None))
    time_alone = {"frequencies": (0, 1)}
    assert IVCPrune(coordinates="lattice", **time_alone).resolve(model_config()).layer
    for rule in ("farthest", "phase"):
        for axes in ("thw", "hw"):
            with pytest.raises(MethodError, match="names no plane that turns height or width"):
                IVCPrune(coordinates=rule, axes=axes, **time_alone).resolve(model_config())
    # side by side the last third is of width alone
    slow = {"frequencies": "low", "layer": 2}
    assert IVCPrune(coordinates="farthest", **slow).resolve(model_config())
    assert IVCPrune(coordinates="phase", **slow).resolve(model_config(sections=None))
    with pytest.raises(MethodError, match="phase needs planes of height and of width, and freq"):
        IVCPrune(coordinates="phase", **slow).resolve(model_config())


def test_stages_and_requests():
    (stage,) = IVCPrune(layer=16).stages
    assert IVCPrune(layer=16).requests(stage) == (Values(15), RopeSettings())
    assert FastV().stages == (Stage(2, 0.5, compact_earlier_kv=False),)
    (union,) = IVCPrune(layer=4, combine="union").stages
    assert union.keep_ratio == pytest.approx(0.6)
    (lazy,) = IVCPrune(layer=4, compact_earlier_kv=False).stages
    assert not lazy.compact_earlier_kv


def test_equal_methods_are_one_static_argument():
    assert len({IVCPrune(layer=3), IVCPrune(layer=3, frequencies="all"), parse("ivc:layer=3")}) == 1
    assert len({kind() for kind in METHODS.values()}) == len(METHODS)
    assert IVCPrune(frequencies=[2, 1]) == IVCPrune(frequencies=np.array([1, 2]))
    with pytest.raises(MethodError, match="indices"):
        IVCPrune(frequencies=(True, False))
