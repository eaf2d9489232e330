"""HiRED: the worked numbers of tiles, a slow reference of tiles and of grids."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_config
from helpers.received import fix_attention, list_frames, rank_down

from ivc_jax.methods import MethodError, parse
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.fastervlm import FasterVLM
from ivc_jax.methods.hired import HiRED
from ivc_jax.methods.requests import TowerAttention
from ivc_jax.methods.testing import listed, run_stage

G = [2, 1, 3, 4, 8, 9, 7, 2.5, 10, 12, 3.5, 1.5, 5, 6, 2.2, 4.5]
WHOLE = [6, 2, 8, 3, 11, 16, 12, 5, 9, 10, 1, 13, 7, 14, 15, 4]
TILES = [
    [12, 4, 10, 9, 16, 11, 3, 14, 7, 5, 15, 1, 8, 6, 2, 13],
    [11, 9, 14, 4, 16, 13, 7, 5, 10, 12, 6, 1, 8, 3, 2, 15],
    [12, 11, 1, 16, 13, 15, 9, 5, 8, 6, 2, 3, 14, 4, 10, 7],
    [15, 5, 9, 11, 13, 3, 7, 1, 16, 6, 10, 2, 14, 12, 4, 8],
]
FULL = [4, 5, 6, 8, 9, 11, 13, 14]
CONFIG = model_config(4)
EARLY, LATE = TowerAttention(0), TowerAttention()
SAMPLES = [(2, (8, 8), 3), (1, (5, 7), 2, (3, 3), 4), (2, (3, 4, 5), 6), (1, (1, 1), 3)]
# All tests share it, so that each method compiles once.
BUCKET = {"text_slots": 30, "visual_slots": 90, "num_images": 3}


def run(method, samples, early, late, tiles=None):
    """Run on samples; of those in `tiles` (columns, rows) frames are tiles, and a thumbnail."""
    layout = make_layout([*samples, *[(5,)] * (4 - len(samples))], **BUCKET)
    for row, sizes in (tiles or {}).items():
        named = jnp.where(layout.visual_valid[row, :, None], jnp.array(sizes), 0)
        layout = layout.replace(tiles=layout.tiles.at[row].set(named))
    method = method.resolve(CONFIG)
    signals = {EARLY: fix_attention(layout, early), LATE: fix_attention(layout, late)}
    return listed(run_stage(method, layout, signals))[: len(samples)]


@pytest.mark.parametrize(
    ("fields", "full", "tiles"),
    [
        ("keep_ratio=0.2,allocation=code", FULL, [[], [2, 4, 15], [3, 5], [0, 8, 12]]),
        ("keep_ratio=0.2,leftover=false", FULL, [[4], [4], [3, 5, 12], [8]]),
        ("keep_ratio=0.2", FULL, [[4, 10], [4, 15], [3, 5, 12], [8]]),
        (
            "keep_ratio=0.4,alpha=0.25,allocation=code",
            FULL,
            [
                [4, 7, 10, 15],
                [0, 1, 2, 4, 5, 8, 9, 15],
                [0, 1, 3, 4, 5, 12],
                [0, 3, 4, 8, 12, 13],
            ],
        ),
        (
            "keep_ratio=0.15,alpha=1.0,allocation=code",
            [0, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14],
            [[], [], [], []],
        ),
    ],
)
def test_worked_examples_of_tiles(fields, full, tiles):
    late, early = np.concatenate([*TILES, WHOLE]) / 100, np.concatenate([[9.0] * 64, G])
    (kept,) = run(parse(f"hired:{fields}"), [(1, (5, 4, 4), 2)], [early], [late], {0: (2, 2)})
    found = [[token - 16 * part for token in kept if token // 16 == part] for part in range(5)]
    assert found == [*tiles, full]


def test_worked_example_of_nothing_for_the_whole():
    late, early = np.concatenate([*TILES, WHOLE]), np.concatenate([[9.0] * 64, G])
    method = parse("hired:keep_ratio=0.5,alpha=0.0,allocation=code")
    (kept,) = run(method, [(1, (5, 4, 4), 2)], [early], [late], {0: (2, 2)})
    assert np.bincount(np.array(kept) // 16).tolist() == [10, 10, 10, 10]


def test_worked_example_of_one_partition():
    for regions in ("1x1", "2x2"):
        alpha = 1.0 if regions == "2x2" else 0.5
        method = HiRED(keep_ratio=0.4, regions=regions, alpha=alpha)
        assert run(method, [(1, (4, 4), 2)], [G], [WHOLE]) == [[4, 5, 6, 11, 13, 14]]


def share(amount, weights, takers, leftover):
    """Round down shares of an amount; the largest fractions get what is left."""
    if not sum(weights[i] for i in takers):
        weights = dict.fromkeys(takers, 1.0)
    total = sum(weights[i] for i in takers)
    shares = {i: amount * weights[i] / total for i in takers}
    given = {i: int(np.floor(x * (1 + 1e-6))) for i, x in shares.items()}
    if leftover:
        order = sorted(takers, key=lambda i: (-round(max(shares[i] - given[i], 0), 5), i))
        for i in order[: amount - sum(given.values())]:
            given[i] += 1
    return given


def split(budget, weights, room, leftover):
    """Split a budget over regions with a room each."""
    quota = share(budget, weights, list(room), leftover)
    while leftover and any(quota[i] > room[i] for i in room):
        excess = sum(max(quota[i] - room[i], 0) for i in room)
        quota = {i: min(quota[i], room[i]) for i in room}
        takers = [i for i in room if quota[i] < room[i]]
        for i, more in share(excess, weights, takers, leftover).items():
            quota[i] += more
    return {i: min(quota[i], room[i]) for i in room}


def choose(view, others, g, f, method, total):
    """Keep tokens of the view {token: region}, then of the others, in float64."""
    first = min(int(np.floor(method.alpha * total)), len(view))
    names = list(view)
    kept = [names[i] for i in rank_down([f[t] for t in names])[:first]]
    regions = sorted({*others.values()})
    if method.allocation == "paper":
        worth = {r: sum(g[t] for t in names if view[t] == r) for r in regions}
    else:
        best = rank_down([g[t] for t in names])[: int((1 - method.alpha) * len(names))]
        count = max(regions) + 1
        worth = {r: sum(i * count // len(names) == r for i in best) for r in regions}
    free = {r: [t for t in others if others[t] == r and t not in kept] for r in regions}
    leftover = method.allocation == "paper" if method.leftover is None else method.leftover
    quota = split(total - first, worth, {r: len(free[r]) for r in regions}, leftover)
    for r in regions:
        kept += [free[r][i] for i in rank_down([f[t] for t in free[r]])[: quota[r]]]
    return kept or [names[rank_down([f[t] for t in names])[0]]][:total]


def reference(sample, g, f, method):
    rows, columns = map(int, (method.regions or "2x2").split("x"))
    kept = []
    for tokens, cells, first in list_frames(sample):
        height, width = (max(cell[axis] for cell in cells) + 1 for axis in (0, 1))
        down, across = min(rows, height), min(columns, width)
        view = {
            token: row * down // height * across + column * across // width
            for token, (row, column) in zip(tokens, cells, strict=True)
        }
        total = max(int(np.floor(method.keep_ratio * len(tokens))), int(first))
        kept += choose(view, view, g, f, method, total) if total else []
    return sorted(kept)


METHODS = [
    HiRED(keep_ratio=0.2),
    HiRED(keep_ratio=0.5, alpha=0.3, regions="3x2"),
    HiRED(keep_ratio=0.33, alpha=0.0),
    HiRED(keep_ratio=0.7, alpha=0.2, leftover=False),
    HiRED(keep_ratio=0.4, allocation="code"),
    HiRED(keep_ratio=0.9),
    HiRED(keep_ratio=1.0),
    HiRED(keep_ratio=0.01),
]


def draw(samples, seed):
    random = np.random.default_rng(seed)
    counts = [len(lay_out(sample)["image"]) for sample in samples]
    return (
        [np.exp(2 * random.normal(size=n)).astype(np.float32) / n for n in counts] for _ in range(2)
    )


@pytest.mark.parametrize("method", METHODS)
def test_equals_a_slow_reference_of_grids(method):
    early, late = draw(SAMPLES, 3)
    together = run(method, SAMPLES, early, late)
    for row, sample in enumerate(SAMPLES):
        assert together[row] == reference(sample, early[row], late[row], method)
        assert together[row] == run(method, [sample], [early[row]], [late[row]])[0]


@pytest.mark.parametrize("tiles", [(2, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_slow_reference_of_tiles(method, tiles):
    side, (columns, rows) = 4, tiles
    k = columns * rows
    sample = (2, (k + 1, side, side), 3)
    early, late = draw([sample], k)
    cells = [(i // side, i % side) for i in range(side * side)]
    view = {
        k * 16 + i: row * rows // side * columns + column * columns // side
        for i, (row, column) in enumerate(cells)
    }
    others = {i: i // 16 for i in range(16 * k)}
    total = max(1, int(np.floor(method.keep_ratio * 16 * (k + 1))))
    expected = sorted(choose(view, others, early[0], late[0], method, total))
    # beside a picture that is one tile, whose regions are those of the grid
    samples = [sample, SAMPLES[1]]
    more = draw(SAMPLES[1:2], 9)
    early, late = (own + other for own, other in zip((early, late), more, strict=True))
    found = run(method, samples, early, late, {0: tiles})
    assert found[0] == expected
    assert found[1] == reference(SAMPLES[1], early[1], late[1], method)


def test_tiles_without_a_view_of_the_whole_are_pictures_of_their_own():
    sample, method = (1, (4, 4, 4), 2), HiRED(keep_ratio=0.33, alpha=0.5)
    early, late = draw([sample], 4)
    kept = run(method, [sample], early, late, {0: (2, 2)})
    assert kept == [reference(sample, early[0], late[0], method)]


def test_regions_worth_nothing_get_equal_parts():
    method = HiRED(keep_ratio=0.5, alpha=0.0)
    (kept,) = run(method, [(1, (4, 4), 2)], [[0.0] * 16], [np.arange(16.0)])
    assert kept == [4, 5, 6, 7, 12, 13, 14, 15]


@pytest.mark.parametrize("scale", [0.1, 1 / 9, 0.01])
def test_whole_shares_are_not_lost_to_rounding(scale):
    method = HiRED(keep_ratio=0.5, alpha=0.0, regions="3x1", leftover=False)
    early = np.repeat([2, 3, 7], 8) * scale
    (kept,) = run(method, [(1, (3, 8), 2)], [early], [np.arange(24.0)])
    assert np.bincount(np.array(kept) // 8).tolist() == [2, 3, 7]


def test_one_region_is_the_choice_of_fastervlm():
    early, late = draw(SAMPLES[:2], 5)
    both = [
        run(method, SAMPLES[:2], early, late)
        for method in (HiRED(keep_ratio=0.25, regions="1x1"), FasterVLM(keep_ratio=0.25))
    ]
    assert both[0][0] == both[1][0]  # 16 of 64, either way rounded


def test_what_follows_from_the_model_and_what_is_refused():
    method = HiRED().resolve(CONFIG)
    assert (method.regions, method.leftover, method.block) == ("2x2", True, 0)
    assert HiRED(allocation="code").resolve(CONFIG).leftover is False
    for regions in ("0x2", "2", "axb"):
        with pytest.raises(MethodError, match="regions are rows x columns"):
            parse(f"hired:regions={regions}")
    with pytest.raises(MethodError, match="alpha"):
        HiRED(alpha=1.5)
