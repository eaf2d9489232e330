"""The inspector's page: what its data say, where tokens lie, what hostile text becomes."""

import base64
import io
import json
import pathlib
import re

import numpy as np
import pytest
from helpers.inspected import COLUMNS, RATIOS, ROWS, keep, make_inspection
from PIL import Image

from ivc_jax.reports import inspector
from ivc_jax.reports.panels import MOST_SLICES, make_panels


def read_data(page):
    found = re.findall(r'<script type="application/json" id="inspector-data">(.*?)</script>', page)
    return json.loads(found[0])


def unpack(text, count):
    if not text:
        return list(range(count))
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder="little")
    return np.flatnonzero(bits[:count]).tolist()


def test_sets_are_embedded_for_every_layer_and_ratio():
    data = read_data(inspector.render(make_inspection()))
    ivc, dense = data["methods"]
    assert (ivc["layers"], ivc["ratios"], ivc["at"]) == ([1, 2], list(RATIOS), [1, 1])
    for layer in range(2):
        for ratio in range(len(RATIOS)):
            kept = unpack(ivc["sets"][layer][ratio], ROWS * COLUMNS)
            assert kept == np.flatnonzero(keep(layer, ratio)).tolist()
    assert dense["sets"] == [[""]]
    # scores from the lowest to the highest, by rank where most are near 0; one row for all layers
    cosine = np.frombuffer(base64.b64decode(ivc["parts"]["cosine"]["bytes"][0]), np.uint8)
    assert (len(ivc["parts"]["cosine"]["bytes"]), cosine.min(), cosine.max()) == (1, 0, 255)
    score = np.frombuffer(base64.b64decode(ivc["parts"]["score"]["bytes"][1]), np.uint8)
    assert score.tolist() == np.rint(np.linspace(0, 255, ROWS * COLUMNS)).tolist()
    assert len(ivc["parts"]["seeds"]["bits"]) == 2


def test_the_page_needs_nothing_else_and_text_is_text():
    page = inspector.render(make_inspection())
    assert "default-src 'none'" in page
    assert "form-action 'none'" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "72 ms" not in page  # no times unless they are medians
    page = inspector.render(make_inspection(repeats=3))
    assert "medians of 3 warm runs" in page
    assert "72.0 ms" in page


def test_tokens_of_a_picture_lie_row_by_row():
    (panel,) = make_panels(lay_out((1, 2, 3)), [Image.new("RGB", (30, 20))])
    assert (panel.rows, panel.columns, panel.tokens) == (2, 3, [0, 1, 2, 3, 4, 5])
    with Image.open(io.BytesIO(panel.picture)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (30, 20))


def test_tiles_are_parts_of_their_picture():
    layout = lay_out((3, 1, 1), tiles=(2, 1))
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (20, 0, 40, 20))
    panels = make_panels(layout, [picture])
    assert [panel.title for panel in panels] == [
        "Picture, tile 1",
        "Picture, tile 2",
        "Picture, view of the whole",
    ]
    bright = []
    for panel in panels:
        with Image.open(io.BytesIO(panel.picture)) as shown:
            bright.append(round(np.asarray(shown).mean() / 255, 1))
    assert bright == [0, 1, 0.5]
    assert [panel.tokens for panel in panels] == [[0], [1], [2]]


def test_learned_tokens_are_beside_the_picture():
    layout = lay_out((1, 2, 2))
    layout["content"] = np.array([True, False, True, False])
    whole, cells = make_panels(layout, [Image.new("RGB", (8, 8))])
    assert (whole.tokens, cells.picture, cells.tokens) == ([], None, [0, 1, 2, 3])
    assert "do not lie on it" in whole.title


def test_a_video_shows_some_of_its_slices():
    count = 40
    frames = [Image.new("RGB", (4, 4), (n, n, n)) for n in range(count)]
    panels = make_panels(lay_out((count, 1, 1)), (), frames, [f"{n} s" for n in range(count)])
    assert len(panels) == MOST_SLICES
    assert (panels[0].tokens, panels[-1].tokens) == ([0], [count - 1])
    assert panels[-1].title == "39 s"


@pytest.mark.parametrize(("values", "ranks"), [([3, 1, 2], [255, 0, 128]), ([5, 5], [0, 0])])
def test_ties_share_the_lower_rank(values, ranks):
    assert inspector._rank(np.array(values, float)).tolist() == ranks


def lay_out(*grids, tiles=(1, 1)):
    cells = [np.indices(grid).reshape(3, -1).T for grid in grids]
    count = sum(map(len, cells))
    return {
        "grid": np.concatenate(cells),
        "image_id": np.repeat(np.arange(len(grids)), [len(each) for each in cells]),
        "tiles": np.tile(tiles, (count, 1)),
        "content": np.ones(count, bool),
    }


def test_size_and_speed_are_those_of_the_record():
    root = pathlib.Path(__file__).parents[2]
    record = json.loads((root / "benchmarks" / "results" / "inspector_page.json").read_text())
    text = (root / "docs" / "inspect.md").read_text()
    assert f"at commit {record['commit']}" in text
    assert record["tokens"] == 1200
    cases = ("final set", "all layers", "without a move")
    rows = [line.split(" | ")[1:] for line in text.splitlines() if " MB | " in line]
    for row, page in zip(rows, record["pages"].values(), strict=True):
        medians = [page[case]["to_the_next_frame_ms"]["median"] for case in cases]
        assert row[0] == f"{page['bytes'] / 1e6:.2f} MB"
        worst = max(page[case]["to_the_next_frame_ms"]["worst"] for case in cases)
        told = [cell.removesuffix(" |") for cell in row[1:]]
        assert told == [f"{ms:g} ms" for ms in (*medians, worst)]
        assert page["bytes"] < 5e6
        assert worst < 50
