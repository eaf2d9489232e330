"""Other rules for reference tokens: worked examples, equal counts, slow references."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import kept_sets, token_values
from helpers.reference import SAMPLES

from ivc_jax import ivc
from ivc_jax.config import RopeConfig
from ivc_jax.methods import Coordinates, IVCPrune, Random, Uniform, WithIVC, parse, references
from ivc_jax.methods.coordinates import RULES
from ivc_jax.methods.drawn import make_layout
from ivc_jax.methods.select import Segments, gather_positions, split_over_frames
from ivc_jax.methods.testing import make_config, run_cuts

OTHERS = RULES[1:]
LINE, SECTIONS = RopeConfig(16, 1e4), RopeConfig(16, 1e4, (2, 3, 3))
ROPES = {"line": LINE, "sections": SECTIONS,
         "interleaved": RopeConfig(16, 100.0, (2, 3, 3), interleaved=True)}  # fmt: skip
BUCKET = {"text_slots": 20, "visual_slots": 60, "num_images": 4, "num_positions": 99}
LAYOUT = make_layout([*SAMPLES, (5,)], **BUCKET)
SEGMENTS = {"image": Segments.by_image, "frame": Segments.by_frame, "sample": Segments.by_sample}

# Programs that run once: optimising them would cost more than it saves.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@partial(compiled, static_argnums=(0, 1, 3))
def jitted_mark(coordinates, rope, layout, within):
    return coordinates.mark(layout, rope, SEGMENTS[within](layout))


def number(layout, rope):
    """Return the layout as a model with this rotary embedding has it: on a line, if that is one."""
    line = jnp.broadcast_to(jnp.arange(layout.positions.shape[2]), layout.positions.shape)
    return layout.replace(positions=line) if rope.line else layout


def mark(rule, layout=LAYOUT, rope=SECTIONS, within="image", **fields) -> np.ndarray:
    layout = number(layout, rope)
    return np.asarray(jitted_mark(Coordinates(rule=rule, **fields), rope, layout, within))


@partial(compiled, static_argnums=(0, 1, 4))
def jitted_rule(rule, rope, layout, counts, most):
    within = Segments.by_image(layout)
    if rule == "lattice":
        return references.mark_lattice(layout, within, counts)
    closeness = ivc.make_tables(rope, "all", 64, by_axis=True)[0]
    if rule == "phase":
        return references.mark_phase(layout, closeness, within, counts, most)
    return references.mark_farthest(gather_positions(layout), closeness, within, counts, most)


def mark_pictures(rule, shapes, counts, rope=SECTIONS) -> list[list[int]]:
    """Mark so many tokens of pictures of these shapes, in one program."""
    layout = number(make_layout([(1, shape, 1) for shape in shapes]), rope)
    counts = jnp.where(layout.visual_valid, jnp.array(counts)[:, None], 0)
    marked = jitted_rule(rule, rope, layout, counts, layout.visual_slots)
    return [np.flatnonzero(row).tolist() for row in marked]


def test_lattices_of_small_grids():
    pictures = {
        # sqrt(8 * 4 / 5) is nearest to 3: rows 0, 2 and 3 hold 2, 3 and 3
        "x...x ..... x.x.x x.x.x": 8,
        "x...x ..... ..... x...x": 4,
        "x.x.x ..... ..... x.x.x": 6,
        "....... x.x.x.x .......": 4,  # one row lies in the middle
        "..... ..x.. ..... .....": 1,
        "..... ..... .....": 0,
        "xxx xxx": 6,
        "x.....x.....x.....x": 4,
        "x . x . x": 3,
        "x.x.x ..... xx.xx": 7,
    }
    grids = [text.split() for text in pictures]
    shapes = [(len(rows), len(rows[0])) for rows in grids]
    expected = [[i for i, cell in enumerate("".join(rows)) if cell == "x"] for rows in grids]
    assert mark_pictures("lattice", shapes, list(pictures.values())) == expected


def test_lattices_hold_any_count_and_reach_the_borders():
    shapes = [(h, w) for h in (1, 2, 5, 9) for w in (1, 4, 7, 13)]
    for share in (0.07, 0.2, 0.5, 0.93, 1.0):
        counts = [round(share * h * w) for h, w in shapes]
        for marked, count, (h, w) in zip(
            mark_pictures("lattice", shapes, counts), counts, shapes, strict=True
        ):
            assert len(marked) == count
            rows, columns = ({*axis} for axis in np.unravel_index(np.array(marked, int), (h, w)))
            if len(rows) > 1:
                assert {0, h - 1} <= rows
            if count >= 2 * len(rows) > 0:
                assert {0, w - 1} <= columns


def test_farthest_tokens_of_a_line_by_hand():
    """One plane, a radian a token: the first, then 3 (cos 3 = -0.99), then 5 (cos 5 = 0.28).

    Of 1, 2 and 4, all a radian from the next one, the first follows; token 6 is nearly a turn from
    the first and comes last.
    """
    sets = mark_pictures("farthest", [(1, 7)] * 5, [1, 2, 3, 4, 6], RopeConfig(2, 10.0))
    assert sets == [[0], [0, 3], [0, 3, 5], [0, 1, 3, 5], [0, 1, 2, 3, 4, 5]]


def test_farthest_tokens_of_sections_by_hand():
    """Rows turn by a radian, columns by a tenth of one.

    From (0, 0) the farthest is (2, 3); (1, 1) and (1, 2) are 0.4647 from the nearer of the two, and
    the first is taken; then (0, 3) and (2, 0) are 0.0447 from theirs.
    """
    rope = RopeConfig(4, 100.0, (0, 1, 1))
    sets = mark_pictures("farthest", [(3, 4)] * 4, [2, 3, 4, 5], rope)
    assert sets == [[0, 11], [0, 5, 11], [0, 3, 5, 11], [0, 3, 5, 8, 11]]


def test_an_axis_has_the_planes_that_it_turns():
    """The width turns by 16^-3/4 = 1/8 in sections of t t h w, by 1/4 in turns of t h w t."""
    for rule in ("farthest", "phase"):
        for interleaved, last in ((False, 15), (True, 13)):  # 13/4 is nearest to half a turn
            rope = RopeConfig(8, 16.0, (2, 1, 1), interleaved=interleaved)
            assert mark_pictures(rule, [(1, 16)], [2], rope) == [[0, last]]


def test_phase_covers_rows_and_columns_by_hand():
    """Rows are 0, 3, 5 and 1 as on the line, columns 0 and 2: two crossings less than 4 x 2.

    sqrt(6 * 7 / 3) = 3.7 is nearest to 4 rows; the last column goes without the last two rows.
    """
    tall, wide = mark_pictures("phase", [(7, 3), (3, 4)], [6, 4], RopeConfig(4, 100.0, (0, 1, 1)))
    cells = [(0, 0), (0, 2), (1, 0), (3, 0), (3, 2), (5, 0)]
    assert tall == [3 * row + column for row, column in cells]
    assert wide == [0, 3, 8, 11]


def test_on_a_line_phase_is_farthest():
    marked = mark("phase", rope=LINE)
    np.testing.assert_array_equal(marked, mark("farthest", rope=LINE))
    assert (marked != mark("farthest")).any()


def slow_farthest(positions, rope, count) -> set[int]:
    """Follow the rule by features in float64; positions [3, n]."""
    axes = rope.axis_of_plane
    angle = (positions[axes] * rope.frequencies[:, None]).T  # [n, F]
    features = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    # 1 - cos(a - b) of every plane is half of the squared distance of (cos, sin)
    distance = ((features[:, None] - features[None]) ** 2).sum(axis=-1).round(6) / 2
    chosen = [0][:count]
    while len(chosen) < count:
        chosen.append(int(distance[:, chosen].min(axis=1).argmax()))
    return set(chosen)


@pytest.mark.parametrize("kind", ROPES)
def test_farthest_equals_a_slow_reference(kind):
    rope, images = ROPES[kind], np.asarray(LAYOUT.image_id)
    marked = mark("farthest", rope=rope)
    positions = np.asarray(gather_positions(number(LAYOUT, rope)))
    for row in range(len(SAMPLES)):
        for image in range(images[row].max() + 1):
            own = np.flatnonzero(images[row] == image)
            found = np.flatnonzero(marked[row, own]).tolist()
            assert set(found) == slow_farthest(positions[:, row, own], rope, len(found))


@pytest.mark.parametrize(
    ("kind", "within", "fields"),
    [
        ("sections", "image", {}),
        ("line", "image", {"cos_fraction": 0.3, "sin_fraction": 0.05, "positions": "index"}),
        ("interleaved", "frame", {"frequencies": "middle", "position_offset": 35}),
        ("sections", "sample", {"positions": "relative", "axes": "hw", "cos_fraction": 0.5}),
    ],
)
def test_every_segment_has_as_many_as_released(kind, within, fields):
    segment = np.asarray(SEGMENTS[within](LAYOUT).number)
    member = segment[..., None] == np.arange(segment.max() + 1)  # [B, V, segments]
    released = mark("released", LAYOUT, ROPES[kind], within, **fields)
    for rule in OTHERS:
        other = mark(rule, LAYOUT, ROPES[kind], within, **fields)
        assert not (other & (segment < 0)).any()
        counts = [(member & marked[..., None]).sum(axis=1).tolist() for marked in (released, other)]
        assert counts[0] == counts[1]
        assert (released != other).any()


@pytest.mark.parametrize("rule", OTHERS)
def test_batch_mates_and_buckets_change_nothing(rule):
    together = mark(rule)
    for row, sample in enumerate(SAMPLES):
        (alone,) = mark(rule, make_layout([sample], 13, 46, 2))
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert not together[row, len(alone) :].any()
    assert not together[-1].any()


@pytest.mark.parametrize("rule", RULES)
def test_a_longer_prompt_moves_the_released_set_alone(rule):
    """Attention sees differences of positions; so do the other rules, at equal counts."""
    near, far = (make_layout([(text, (6, 7), 2)], text_slots=40) for text in (3, 38))
    near = near.replace(positions=jnp.pad(near.positions, ((0, 0), (0, 0), (0, 35))))
    fields = {"cos_fraction": 0.2, "sin_fraction": 0.0}  # V alone: the count is fixed
    same = np.array_equal(*(mark(rule, layout, **fields) for layout in (near, far)))
    assert same == (rule != "released")


def test_videos_are_covered_frame_by_frame():
    """20 of 60 tokens go to three frames as 7, 7 and 6; each is marked as a picture is."""
    counts, layout = [7, 7, 6], make_layout([(2, (3, 4, 5), 2)])
    for rule in ("lattice", "phase"):
        marked = mark(rule, layout, cos_fraction=1 / 3, sin_fraction=0.0).reshape(3, 20)
        frames = [np.flatnonzero(frame).tolist() for frame in marked]
        assert frames == mark_pictures(rule, [(4, 5)] * 3, counts)


def test_per_frame_gives_every_frame_its_own_count():
    sample = (2, (3, 4, 5), 6)
    layout, values = make_layout([sample]), [token_values(sample, 0)]
    marked = mark("lattice", layout, within="frame")[0]
    # V and U name the same two tokens of a frame; two lie at the ends of row 1
    assert np.flatnonzero(marked).tolist() == [5, 9, 25, 29, 45, 49]
    method = IVCPrune(layer=2, coordinates="lattice", per_frame=True, keep_ratio=0.25)
    (kept,) = kept_sets(method, layout, values)
    assert set(np.flatnonzero(marked).tolist()) <= set(kept)


def test_random_tokens_are_another_draw_than_that_of_the_host():
    layout = make_layout([(1, (12, 12), 1)])
    first, second = (mark("random", layout, random_seed=seed)[0] for seed in (0, 1))
    assert first.tolist() != second.tolist()
    (own,) = kept_sets(Random(layer=2, keep_ratio=float(first.mean())), layout)
    assert len(own) == first.sum()
    assert len(set(own) & set(np.flatnonzero(first).tolist())) < len(own) / 2


def test_ivc_and_its_modifier_keep_what_is_marked():
    host = Uniform(layer=2, keep_ratio=0.05)
    values = [token_values(sample, seed) for seed, sample in enumerate([*SAMPLES, (5,)])]
    alone = kept_sets(host, LAYOUT)
    for rule in ("lattice", "phase"):
        marked = [set(np.flatnonzero(row).tolist()) for row in mark(rule)]
        both = kept_sets(WithIVC(host, coordinates=rule), LAYOUT)
        assert [set(kept) for kept in both] == [
            {*own, *added} for own, added in zip(alone, marked, strict=True)
        ]
        kept = kept_sets(IVCPrune(layer=2, coordinates=rule), LAYOUT, values)
        assert [added & {*own} for own, added in zip(kept, marked, strict=True)] == marked


@pytest.mark.parametrize("spec", ["ivc_progressive", "sparsevlm+ivc", "vflowopt+ivc"])
def test_later_cuts_keep_the_tokens_of_the_first(spec):
    """Also where the host has something to carry of its own."""
    marked = [set(np.flatnonzero(row).tolist()) for row in mark("farthest")]
    method = parse(f"{spec}:coordinates=farthest,keep_ratio=0.25").resolve(make_config())
    cuts = run_cuts(method, LAYOUT)
    assert len(cuts) > 1
    for cut in cuts:
        assert [first & {*kept} for (kept, _), first in zip(cut, marked, strict=True)] == marked


def test_counts_split_over_the_frames_of_an_image():
    layout = make_layout([(1, (3, 2, 2), 2, (2, 2), 1)])
    counts = np.array([0] * 4 + [3] + [0] * 7 + [8])
    assert split_over_frames(layout, counts)[0].tolist() == [3] * 8 + [2] * 4 + [3] * 4
