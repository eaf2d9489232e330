"""Schedules as published for LLaVA-1.5-7B: counts of 576 tokens at every cut."""

import pytest

from ivc_jax.commands.main import main
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.methods import METHODS, MethodError, WithIVC, describe, parse
from ivc_jax.methods.presets import list_presets

CONFIG = parse_config(list_sizes()["llava-1.5-7b"])


def count(spec):
    """Return the first block behind each cut and the tokens that it leaves of one picture."""
    method = parse(spec).resolve(CONFIG)
    return [(stage.layer, method.capacity(stage, 576, 1)) for stage in method.stages]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("fastv@192", [(2, 166)]),
        ("fastv@128", [(2, 98)]),
        ("fastv@64", [(2, 30)]),
        ("pyramiddrop@192", [(2, 322), (8, 180), (16, 100)]),
        ("pyramiddrop@128", [(2, 241), (8, 101), (16, 42)]),
        ("pyramiddrop@64", [(2, 110), (8, 21), (16, 4)]),
        # what is recycled included; behind blocks 2, 6 and 15
        ("sparsevlm@192", [(3, 309), (7, 204), (16, 113)]),
        ("sparsevlm@128", [(3, 312), (7, 117), (16, 39)]),
        ("sparsevlm@96", [(3, 249), (7, 55), (16, 27)]),
        ("sparsevlm@64", [(3, 82), (7, 32), (16, 18)]),
        ("holov@192", [(0, 192)]),
        ("scope@128", [(0, 128)]),
        ("fsr@64", [(0, 64)]),
        ("cdpruner@128", [(0, 128)]),
        ("cdpruner@64", [(0, 64)]),
        ("cdpruner@32", [(0, 32)]),
        ("fitprune@64", [(1, 228), (2, 117), (3, 58), (4, 45), (17, 32)]),
        ("divprune@56", [(0, 56)]),
        ("dart@192", [(2, 196)]),
        ("dart@128", [(2, 132)]),
        ("dart@64", [(2, 68)]),
        ("divprune@192", [(0, 192)]),
        ("divprune@64", [(0, 64)]),
        ("fastervlm@58", [(0, 58)]),
        ("fastervlm@29", [(0, 29)]),
        ("hired@192", [(0, 192)]),
        ("embedlens@192", [(0, 192)]),
        ("embedlens@64", [(0, 64)]),
        ("embedlens@576", [(0, 576)]),  # as many slots: how many are filled depends on the picture
        ("vispruner@32", [(0, 32)]),
        ("visionzip@192", [(0, 192)]),
        ("visionzip@64", [(0, 64)]),
        ("prumerge@144", [(0, 144)]),
        ("prumerge@64", [(0, 64)]),
        ("vscan@192", [(0, 288), (16, 96)]),
        ("vscan@128", [(0, 192), (16, 64)]),
        ("vscan@64", [(0, 96), (16, 32)]),
        ("visiondrop@192", [(0, 288), (8, 211), (16, 155), (24, 114)]),
        ("visiondrop@128", [(0, 192), (8, 141), (16, 103), (24, 76)]),
        ("visiondrop@64", [(0, 96), (8, 70), (16, 52), (24, 38)]),
        ("nuwa@192", [(0, 336), (16, 48)]),
        ("nuwa@128", [(0, 224), (16, 32)]),
        ("nuwa@64", [(0, 112), (16, 16)]),
    ],
)
def test_counts_are_those_of_the_papers(spec, wanted):
    assert count(spec) == wanted


def test_a_preset_is_a_specification_with_fields_of_ones_own():
    assert parse("nuwa@64") == parse(list_presets()["nuwa@64"])
    assert parse(describe(parse("nuwa@64"))) == parse("nuwa@64")
    assert parse("nuwa@64:tau=0.1") == parse(list_presets()["nuwa@64"].replace("0.55", "0.1"))
    both = parse("scope@128+ivc:cos_fraction=0.05")
    assert both == WithIVC(parse("scope@128"), cos_fraction=0.05)
    with pytest.raises(
        MethodError, match=r"unknown preset 'scope@100'.*known presets: .*fastv@192"
    ):
        parse("scope@100")


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_runs_on_the_model_that_it_is_for(name):
    spec = list_presets()[name]
    assert spec.partition(":")[0] == name.partition("@")[0] in METHODS
    assert parse(name).resolve(CONFIG).stages
    merging = name.startswith(("visiondrop", "visionzip", "prumerge", "fsr", "nuwa"))
    assert parse(name).resolve(CONFIG).stages[0].merge_in == ("tower" if merging else "decoder")


def test_the_command_lists_them(capsys):
    assert main(["methods", "scope"]) == 0
    assert "scope@192 is scope:keep_ratio=0.3333333333333333" in capsys.readouterr().out
