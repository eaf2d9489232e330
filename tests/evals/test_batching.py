"""Buckets chosen from the data, and sizes known before a pixel is decoded."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

import ivc_jax
from ivc_jax.evals.running.batching import Example, choose_ranges, cover_sizes, plan_batches
from ivc_jax.inputs.batch import Batch, InputError
from ivc_jax.inputs.bucket import Size, measure_sample, pad
from ivc_jax.inputs.layout import arrange


def size(visual, text=20):
    return Size(text, visual, 4 * visual, 1, 1, visual + text)


def examples(*visuals, task=0):
    return [Example(task, position, size(v)) for position, v in enumerate(visuals)]


def test_like_sizes_share_batches_large_ones_first():
    plans = plan_batches(examples(64, 256, 70, 1024, 256, 64, 240, 1020, 256), 2, 1, 3)
    assert [plan.shape.visual for plan in plans] == [1024, 256, 256, 70, 70]
    assert [plan.positions for plan in plans] == [(3, 7), (1, 4), (6, 8), (0, 2), (5, 5)]
    assert [plan.count for plan in plans] == [2, 2, 2, 2, 1]  # the last one repeats its row


def test_shapes_hold_all_their_rows_and_text_is_rounded():
    shape = cover_sizes([Size(17, 30, 120, 1, 1, 40), Size(3, 50, 260, 3, 2, 60)], rows=4)
    assert (shape.text, shape.visual, shape.patches) == (32, 50, 260)
    assert (shape.rows, shape.images, shape.positions) == (12, 2, 82)


def test_one_bucket_where_more_would_save_little():
    """20 + 100 slots against 20 + 98: within five percent, so that one program serves both."""
    assert len(choose_ranges([size(98)] * 8 + [size(100)] * 8, 4, most=6)) == 1
    assert len(choose_ranges([size(50)] * 8 + [size(100)] * 8, 4, most=6)) == 2
    assert len(choose_ranges([size(50)] * 8 + [size(100)] * 8, 4, most=1)) == 1
    # a bucket of its own would pad this single row to a whole batch
    assert len(choose_ranges([size(50)] + [size(100)] * 7, 8, most=6)) == 1


def test_tasks_share_shapes_but_no_batches():
    both = examples(64, 64, 64) + examples(64, 64, task=1)
    plans = plan_batches(both, 2, 2, 6)
    assert [(plan.task, plan.positions) for plan in plans] == [
        (0, (0, 1)), (0, (2, 2)), (1, (0, 1)),
    ]  # fmt: skip
    assert len({plan.shape for plan in plans}) == 1
    assert plans[0].shape.rows == 1  # of a shard: one sample each


def test_rows_of_a_shard_share_its_pictures():
    holders = [0, 0, 0, 3, 3, 5, 5, 5, 5, 9]
    rows = [Example(0, n, size(64), holder) for n, holder in enumerate(holders)]
    # 0 0 | 0 3 || 3 5 | 5 5 || 5 9 | 9 9      batches of two shards, the last one repeated
    plans = plan_batches(rows, 4, 2, 6, share=True)
    assert [plan.positions for plan in plans] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 9, 9)]
    assert {plan.shape.rows for plan in plans} == {2}
    assert plan_batches(rows, 5, 1, 6, share=True)[0].shape.rows == 2
    assert plan_batches(rows, 5, 1, 6)[0].shape.rows == 5


@hypothesis.given(
    strategies.lists(strategies.integers(1, 3000), min_size=1, max_size=300),
    strategies.sampled_from([1, 4, 16]),
    strategies.integers(1, 8),
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_every_row_runs_once_in_a_shape_that_holds_it(visuals, batch_size, most):
    plans = plan_batches(examples(*visuals), batch_size, 1, most)
    ran = [position for plan in plans for position in plan.positions[: plan.count]]
    assert sorted(ran) == list(range(len(visuals)))
    assert len({plan.shape for plan in plans}) <= most
    assert all(len(plan.positions) == batch_size for plan in plans)
    assert all(visuals[p] <= plan.shape.visual for plan in plans for p in plan.positions)


def test_the_cuts_are_the_cheapest():
    """Against every way to cut six sizes into three ranges."""
    visuals = [10, 30, 35, 90, 200, 210]
    sizes = [size(v) for v in visuals for _ in range(4)]

    def cost(a, b):
        ranges = ((0, a), (a, b), (b, 6))
        return sum(4 * (j - i) * (max(visuals[i:j]) + 20) for i, j in ranges)

    best = min(cost(a, b) for a in range(1, 5) for b in range(a + 1, 6))
    groups = choose_ranges(sizes, 4, most=3)
    largest = [max(sizes[index].visual for index in group) for group in groups]
    slots = [len(group) * (top + 20) for group, top in zip(groups, largest, strict=True)]
    assert sum(slots) == best


def test_measured_sizes_are_those_of_the_real_sample(tiny_hf):
    for family in ("qwen2_vl", "qwen2_5_vl"):
        config = ivc_jax.load(tiny_hf(family=family), dtype="float32")[0].config
        processor = ivc_jax.load(tiny_hf(family=family), dtype="float32")[1]
        for sides in ([], [(40, 56)], [(17, 90), (64, 64)]):
            images = [Image.new("RGB", side) for side in sides]
            batch = processor(prompts=["What?"], images=[images])
            (sample,) = arrange(batch, config)
            footprints = [segment.footprint for segment in sample.segments]
            real = measure_sample(len(sample.tokens), footprints, sample.next_position, config)
            assert processor.measure("What?", sides) == real
            shape = cover_sizes([real], 1)
            if sides:
                assert pad([sample], config, shape).visual_source.shape == (1, real.visual)


def test_measuring_names_what_cannot_be_used(tiny_hf):
    processor = ivc_jax.load(tiny_hf(), dtype="float32")[1]
    with pytest.raises(InputError, match="image 1: aspect ratio 300 exceeds 200"):
        processor.measure("What?", [(40, 40), (3000, 10)])
    with pytest.raises(InputError, match="the model's limit is 1024 positions"):
        processor.measure("What? " * 300, [])


def test_joined_batches_keep_samples_and_visuals_in_order():
    parts = [Batch((np.array([n], np.int32),)) for n in range(3)]
    assert [int(tokens[0]) for tokens in Batch.join(parts).tokens] == [0, 1, 2]
