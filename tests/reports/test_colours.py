"""Colours of methods: one table, told apart by colour-blind readers, named nowhere else."""

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from ivc_jax.methods import METHODS, MODIFIERS
from ivc_jax.reports import colours
from ivc_jax.reports.colours import choose_highlighted, choose_styles

ROOT = Path(__file__).parents[2]
FOLDERS = ("ivc_jax", "experiments", "benchmarks", "digit_scenes")
# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as seen without one receptor
SEEN = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
TO_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
WHITE = [0.95047, 1.0, 1.08883]
NEUTRAL = {"black", "white", "grey", "gray", "none"}
COLOUR_ARGUMENTS = {
    *("color", "colors", "c", "facecolor", "edgecolor", "ec", "fc", "mec", "mfc"),
    *("markerfacecolor", "markeredgecolor"),
}


def to_lab(colour, vision):
    """A colour in CIE L*a*b*, where a distance of about 2 is just seen."""
    share = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SEEN[vision]) @ linear, 0, 1)
    ratio = np.array(TO_XYZ) @ linear / WHITE
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("vision", SEEN)
def test_eight_colours_stay_apart(vision):
    seen = [to_lab(colour, vision) for colour in (*colours.PALETTE, colours.REST)]
    assert len(colours.PALETTE) == colours.HIGHLIGHTED == 8
    assert np.linalg.norm(to_lab("#000000", vision) - to_lab("#FFFFFF", vision)) == pytest.approx(
        100, abs=1
    )
    pairs = itertools.combinations(seen, 2)
    assert min(np.linalg.norm(one - other) for one, other in pairs) > 15


@pytest.mark.parametrize("vision", SEEN)
def test_colours_that_are_no_methods_stay_apart(vision):
    for pair in (
        (colours.RIGHT, colours.WRONG),
        (colours.RIGHT_BOX, colours.WRONG_BOX),
        *itertools.combinations((colours.REAL, colours.IMAGINARY, colours.BOTH), 2),
        *itertools.combinations(colours.CLASSES, 2),
    ):
        one, other = (to_lab(colour, vision) for colour in pair)
        assert np.linalg.norm(one - other) > 10, pair


def test_every_method_is_in_the_table_with_a_look_of_its_own():
    assert colours.METHODS.keys() == METHODS.keys()
    looks = list(colours.METHODS.values())
    assert len(set(looks)) == len(looks)
    assert {colour for colour, _ in looks} == set(colours.PALETTE)


def test_a_method_looks_the_same_whatever_is_beside_it():
    together = choose_styles(list(METHODS))
    assert all(choose_styles([name]) == {name: style} for name, style in together.items())
    assert together["ivc"] == {"color": "#000000", "marker": "o", "ls": "-", "lw": 2.6, "zorder": 5}
    assert together["dense"]["ls"] == "--"


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_a_modifier_keeps_hue_and_marker(modifier):
    plain, changed = (choose_styles([name])[name] for name in ("fastv", f"fastv+{modifier}"))
    assert (plain["color"], plain["marker"]) == (changed["color"], changed["marker"])
    assert (plain["ls"], changed["markerfacecolor"]) == ("-", "white")
    others = [choose_styles([f"fastv+{other}"])[f"fastv+{other}"]["ls"] for other in MODIFIERS]
    assert len(set(others)) == len(MODIFIERS)


def test_variants_keep_the_hue_and_no_two_look_alike():
    names = [*("ivc", "random"), *(f"random:layer={layer}" for layer in range(8))]
    names += [*("random, budget 0.5", "fastv+ivc:layer=2", "fastv+ivc+pore", "fastv+ivc")]
    styles = choose_styles(names)
    assert list(styles) == names
    for name, style in styles.items():
        assert style["color"] == colours.METHODS[re.match(r"\w+", name)[0]][0]
    looks = [tuple(map(str, style.values())) for style in styles.values()]
    assert len(set(looks)) == len(looks)


def test_unknown_names_have_a_free_colour_that_their_letters_choose():
    one = choose_styles(["mine"])["mine"]
    assert (one["color"], one["marker"]) == ("#E69F00", "d")  # the same in every process
    beside = choose_styles(["sparsevlm", "mine", "mine:layer=2", "another one"])
    assert beside["mine"]["color"] != beside["sparsevlm"]["color"]
    assert beside["mine:layer=2"]["color"] == beside["mine"]["color"]
    assert beside["mine:layer=2"]["marker"] != beside["mine"]["marker"]
    assert len({style["color"] for style in beside.values()}) == 3
    many = choose_styles([f"method {n}" for n in range(8)])
    assert {style["color"] for style in many.values()} == set(colours.PALETTE)


def test_the_best_have_a_colour_and_so_have_ivc_and_random():
    scores = {f"m{n}": n / 20 for n in range(12)} | {"random": 0.0, "ivc": 0.01}
    assert choose_highlighted(scores) == ["m6", "m7", "m8", "m9", "m10", "m11", "random", "ivc"]
    assert choose_highlighted({"b": 1.0, "a": 1.0, "c": 1.0}, most=2) == ["b", "a"]


def list_drawing_files():
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    draws = re.compile(r"import matplotlib|from matplotlib|reports import .*canvas")
    return [p for p in found if draws.search(p.read_text()) and p.name != "colours.py"]


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", list_drawing_files(), ids=name)
def test_no_drawing_code_names_colours_elsewhere(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    pattern = r"#[0-9a-fA-F]{3,8}|tab:\w+|tab10|tab20\w?|C\d|Set\d|Paired"
    assert [t for t in texts if isinstance(t, str) and re.fullmatch(pattern, t)] == []
    given = [n.value for n in nodes if isinstance(n, ast.keyword) and n.arg in COLOUR_ARGUMENTS]
    named = {value.value for value in given if isinstance(value, ast.Constant)} - NEUTRAL
    assert [each for each in named if not re.fullmatch(r"[01]?\.\d+", each)] == []


def test_the_scan_sees_the_files_that_draw():
    names = {name(path) for path in list_drawing_files()}
    assert {"ivc_jax/reports/figures.py", "ivc_jax/studies/figure.py"} < names
    assert "digit_scenes/study/figures.py" in names
