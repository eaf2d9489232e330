"""Counts, FastV, the baselines and the IVC modifier, on numbers that can be checked by eye."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.layouts import kept_sets
from hypothesis import given, settings
from hypothesis import strategies as st

from ivc_jax import ivc
from ivc_jax.methods import FastV, Random, Uniform, WithIVC, select
from ivc_jax.methods.base import Method, Stage
from ivc_jax.methods.drawn import lay_out, make_layout
from ivc_jax.methods.requests import Carry, RopeSettings
from ivc_jax.methods.testing import ROPE, run_stage, shorten


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    ratio=st.floats(0.001, 1),
    mode=st.sampled_from(["round", "floor", "ceil"]),
)
@settings(max_examples=200, deadline=None)
def test_largest_total_bounds_every_split(sizes, ratio, mode):
    counts = np.maximum(select.round_counts(ratio, sum(sizes), mode), 1)
    counts[0] = 0
    bound = select.bound_total(counts, len(sizes))
    assert counts[sizes].sum() <= bound <= sum(sizes)
    assert bound <= ratio * sum(sizes) + len(sizes) + 1e-3
    assert select.bound_total(counts, 1) == counts.max()


def test_counts_are_rounded_in_float64():
    counts = select.round_counts(0.1, 500)
    assert counts[345] == 34
    assert counts.tolist() == [round(0.1 * n) for n in range(501)]
    halves = select.round_counts(0.5, 15)
    assert halves[[13, 15]].tolist() == [6, 8]
    assert select.round_counts(0.29, 100, "floor")[100] == 28  # 28.999999999999996
    assert select.round_counts(0.333, 9, "ceil")[9] == 3


def fastv_kept(attention, images=((2, 4),), **fields):
    layout = make_layout([(2, *images, 3)])
    rows = jnp.asarray(attention, jnp.float32)[None, :, None]
    return kept_sets(FastV(**fields), layout, attention=rows)[0]


def test_fastv_worked_example():
    logits = np.array(
        [
            [2.0, 0.5, 0.1, 1.2, -0.3, 0.8, 0.0, 1.5, -0.5, 0.3, 0.7, 0.2, 1.0],
            [1.0, 0.0, 0.4, 0.2, 0.9, -0.1, 1.1, 0.3, 0.6, -0.4, 0.5, 0.5, 1.5],
        ]
    )
    rows = np.exp(logits)[:, 2:10] / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [0.04907, 0.08067, 0.06278, 0.05584, 0.07827, 0.10278, 0.04748, 0.03636]
    np.testing.assert_allclose(rows.mean(axis=0), expected, atol=5e-6)
    assert fastv_kept(rows) == [1, 2, 4, 5]
    assert fastv_kept(rows, keep_ratio=0.25) == [1, 5]


def test_fastv_ties_rounding_and_budgets():
    assert fastv_kept([[0.2, 0.1] * 3], [(1, 6)], keep_ratio=4 / 6) == [0, 1, 2, 4]
    for size, count in ((13, 6), (15, 8)):
        assert len(fastv_kept(np.ones((1, size)), [(1, size)])) == count
    assert len(fastv_kept(np.ones((1, 13)), [(1, 13)], rounding="ceil")) == 7
    falling = np.arange(12.0)[None, ::-1]
    assert fastv_kept(falling, [(1, 6), (1, 6)]) == list(range(6))
    assert fastv_kept(falling, [(1, 6), (1, 6)], per_image=True) == [0, 1, 2, 6, 7, 8]


def test_random_depends_on_seed_image_and_cell_alone():
    layout = make_layout([(2, (6, 6), (6, 6), 3), (5, (6, 6), 1)])
    first, second = kept_sets(Random(layer=2, keep_ratio=0.3), layout)
    own = [token for token in first if token < 36]
    assert len(own) == len(first) - len(own) == round(0.3 * 36)
    assert own == second
    assert [token + 36 for token in own] != first[len(own) :]
    assert kept_sets(Random(layer=2, keep_ratio=0.3, seed=1), layout)[1] != second


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8])
def test_uniform_is_even_in_every_block(ratio):
    (kept,) = kept_sets(Uniform(layer=2, keep_ratio=ratio), make_layout([((24, 30), 2)]))
    assert len(kept) == round(ratio * 720)
    grid = np.zeros((24, 30))
    grid.flat[kept] = 1
    blocks = grid.reshape(4, 6, 5, 6).sum(axis=(1, 3))
    assert abs(blocks - ratio * 36).max() < 3


@dataclasses.dataclass(frozen=True)
class _Late(Method):
    """Two stages that keep the last tokens of each image."""

    name = "late"

    @property
    def stages(self):
        return Stage(1, 0.5), Stage(2, 0.1)

    def select(self, signals, layout, stage, num_keep):
        counts = jnp.asarray(select.round_counts(stage.keep_ratio, 99))[layout.image_count]
        late = jnp.broadcast_to(jnp.arange(1.0 * layout.grid.shape[1]), layout.image_id.shape)
        keep = select.Segments.by_image(layout).top(late, counts)
        return select.from_mask(keep, num_keep)


def test_ivc_modifier_adds_the_same_set_at_every_stage():
    samples = [(3, (4, 5), 4, (5, 6), 5), (2, (6, 6), 6)]
    method, layout = WithIVC(_Late()), make_layout(samples)
    assert method.requests(method.stages[0]) == (RopeSettings(),)
    assert method.requests(method.stages[1]) == (Carry(),)
    origin, carry = np.arange(layout.visual_index.shape[1])[None].repeat(2, axis=0), None
    for number, stage in enumerate(method.stages):
        chosen = run_stage(method, layout, {Carry(): carry}, number)
        layout, carry = shorten(layout, chosen), chosen.carry
        origin = np.take_along_axis(origin, np.asarray(chosen.index), axis=1)
        for row, sample in enumerate(samples):
            valid = np.asarray(chosen.valid[row])
            assert origin[row, valid].tolist() == expected_set(sample, stage.keep_ratio)


def expected_set(sample, keep_ratio) -> list[int]:
    """Unite the last tokens and the IVC tokens of each image, by the public `ivc.select`."""
    row = lay_out(sample)
    image, slots = np.array(row["image"]), np.array(row["visual"])
    positions, expected = np.array(row["positions"])[slots].T, set()
    for number in range(image.max() + 1):
        members = np.flatnonzero(image == number)
        added = ivc.select(positions[:, members], ROPE.head_dim, ROPE.theta)
        late = members[len(members) - round(keep_ratio * len(members)) :]
        expected |= {*members[added].tolist(), *late.tolist()}
    return sorted(expected)


def test_fastv_with_ivc_is_the_union():
    sample = (3, (4, 5), 4, (3, 7), 5)
    layout = make_layout([sample])
    host = FastV(keep_ratio=0.3)
    (own,), (both,) = kept_sets(host, layout), kept_sets(WithIVC(host), layout)
    assert set(both) == set(own) | set(expected_set(sample, 0))
