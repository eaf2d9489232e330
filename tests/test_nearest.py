"""The nearest known name."""

import pytest

from ivc_jax.nearest import nearest, suggest

KNOWN = ("dense", "fastv", "pyramiddrop", "IVC")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("fastvv", "fastv"),
        ("FastV", "fastv"),
        ("pyramidrop", "pyramiddrop"),
        ("ivc", "IVC"),
        ("zebra", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found(word, found):
    assert nearest(word, KNOWN) == found


def test_the_remark_is_nothing_where_nothing_is_near():
    assert suggest("densse", KNOWN) == "; did you mean 'dense'?"
    assert suggest("zebra", KNOWN) == ""
