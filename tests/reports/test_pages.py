"""Markdown reports as HTML: figures inside, tables that scroll, tags that are text."""

import pytest

from ivc_jax.reports import pages

TEXT = """# Sets of `m` & more

| name | value |
|---|---|
| <b>a</b> | 1 |

![A figure](figures/a.png)

*Drawn* <script>alert(1)</script>
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"png")
    pages.write(tmp_path, TEXT)
    assert (tmp_path / "report.md").read_text() == TEXT
    return (tmp_path / "report.html").read_text()


def test_a_figure_is_part_of_the_page(page):
    assert '<img src="data:image/png;base64,cG5n" alt="A figure"' in page
    assert "figures/" not in page


def test_tables_scroll_and_the_page_has_a_title(page):
    assert '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>' in page
    assert page.count("<table>") == page.count("</table></div>") == 1
    assert "<title>Sets of `m` &amp; more</title>" in page


def test_tags_are_text(page):
    assert "<script" not in page
    assert "<td>&lt;b&gt;a&lt;/b&gt;</td>" in page
    assert "<em>Drawn</em>" in page
