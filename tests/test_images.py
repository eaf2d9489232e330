"""Images of README and docs: nothing cut at an edge, alt texts, captions that explain."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
FIGURES = sorted(path for path in (ROOT / "docs").rglob("figures/*.png"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
BORDER = 4  # pixels


def count_ink(pixels, border=BORDER):
    """Pixels of the border that are not background, which is what the corner is."""
    edges = np.ones(pixels.shape[:2], bool)
    edges[border:-border, border:-border] = False
    return int((np.abs(pixels[edges].astype(int) - pixels[0, 0]).max(axis=1) > 16).sum())


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_figure_is_cut(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    assert count_ink(pixels) == 0


def test_ink_at_an_edge_is_seen():
    pixels = np.full((40, 60, 3), 255, np.uint8)
    pixels[10:30, 10:50] = 0
    assert count_ink(pixels) == 0
    pixels[20, 57] = 0
    assert count_ink(pixels) == 1


def test_all_committed_figures_are_looked_at():
    assert len(FIGURES) > 35
    pictures = {path for path in (ROOT / "docs").rglob("*.png") if path not in FIGURES}
    assert {path.name for path in pictures} == {"scene.png"}  # the example, which fills its frame


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_image_is_there_and_has_an_alt_text(path):
    for text, target in IMAGE.findall(path.read_text()):
        assert len(text.strip()) > 3, target
        assert (path.parent / target).is_file(), target


def read_captions(page):
    paragraphs = page.read_text().split("\n\n")
    return {
        found[2]: " ".join(after.split())
        for before, after in itertools.pairwise(paragraphs)
        if (found := IMAGE.fullmatch(before.strip()))
    }


@pytest.mark.parametrize("name", ["README.md", "docs/findings.md"])
def test_every_image_of_the_main_pages_has_a_caption(name):
    captions = read_captions(ROOT / name)
    assert len(captions) == len(IMAGE.findall((ROOT / name).read_text())) > 2
    for target, caption in captions.items():
        assert re.fullmatch(r"\*[^*]+\*", caption), target
        assert len(caption) > 50, target


def test_captions_explain_what_is_drawn():
    captions = read_captions(ROOT / "README.md")
    wanted = {
        "sets/figures/maps.png": ("orange", "blue", "purple", "dots", "V", "U"),
        "kept_grounding.png": ("tick", "cross", "dashed", "orange", "blue"),
        "keep/figures/keep.png": ("shaded", "dashed", "budget"),
    }
    for ending, words in wanted.items():
        (caption,) = (text for target, text in captions.items() if target.endswith(ending))
        assert [word for word in words if not re.search(rf"\b{word}", caption, re.I)] == [], ending
