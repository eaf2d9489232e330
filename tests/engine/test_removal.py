"""The removal of IVC tokens on a tiny model: objects stay, and attention cannot tell a shift."""

import numpy as np
import pytest
from helpers.batches import WIDE

import ivc_jax
from ivc_jax import ivc
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.inputs.layout import take_rows
from ivc_jax.methods import MethodError

REMOVAL = "ivc_removal:layer=1"
BACKGROUND = "ivc_removal:layer=0,cos_fraction=0.2,sin_fraction=0.2,among=background"
SMALL = Buckets(text=(48,), visual=(48,), patches=(128,), rows=(4,), images=(2,))


def shift_positions(inputs, by):
    """Move all position ids, as if so much stood before the prompt that nobody attends to."""
    layout = inputs.layout
    moved = layout.replace(
        positions=layout.positions + np.int32(by), num_positions=layout.num_positions + by
    )
    return inputs.replace(layout=moved, next_position=inputs.next_position + np.int32(by))


def find_removed(prompt, inputs) -> list[set[int]]:
    """List the visual tokens of each sample that are gone."""
    index, valid = map(np.asarray, (inputs.layout.visual_index, inputs.layout.visual_valid))
    return [
        set(np.flatnonzero(~np.isin(row[mask], kept)).tolist())
        for row, mask, kept in zip(index, valid, prompt.kept, strict=True)
    ]


def test_a_shift_of_all_positions_changes_no_logit(model, inputs, highest_precision):
    before = ivc_jax.prefill(model, inputs)
    after = ivc_jax.prefill(model, shift_positions(inputs, 28))
    scale = np.abs(before.logits).max()
    np.testing.assert_allclose(after.logits, before.logits, rtol=0, atol=2e-6 * scale)
    np.testing.assert_array_equal(after.next_position, before.next_position + 28)
    answers = [ivc_jax.decode(model, prompt, 6, ()).tokens for prompt in (before, after)]
    np.testing.assert_array_equal(*answers)


def test_the_same_shift_changes_the_ivc_tokens_altogether(model, inputs):
    before = find_removed(ivc_jax.prefill(model, inputs, REMOVAL), inputs)
    moved = find_removed(ivc_jax.prefill(model, shift_positions(inputs, 28), REMOVAL), inputs)
    assert [len(own) for own in before] == [2, 0, 5, 2]
    common = [len(own & other) for own, other in zip(before, moved, strict=True)]
    assert sum(common) == 1
    # the offset of the method is that shift
    offset = ivc_jax.prefill(model, inputs, f"{REMOVAL},position_offset=28")
    assert find_removed(offset, inputs) == moved


@pytest.mark.parametrize(("by", "common"), [(0, 68), (27, 6), (368, 1)])
def test_a_shift_leaves_few_ivc_tokens_of_a_real_picture(by, common):
    """Qwen2.5-VL's planes, 15 x 23 tokens; of 68 in 345 chance would leave 13."""
    cells = np.indices((1, 15, 23)).reshape(3, -1) + 15
    found = [set(ivc.select(cells + shift, 128, 1e6).tolist()) for shift in (0, by)]
    assert len(found[0]) == 68
    assert len(found[0] & found[1]) == common


@pytest.fixture(scope="module")
def marked(loaded):
    """A ragged batch that says where objects are: two pictures, none, one."""
    _, processor = loaded
    draw = np.random.default_rng(0)
    one, two, three = (
        draw.integers(0, 256, (*size, 3), np.uint8) for size in ((30, 41), (20, 50), (64, 30))
    )
    prompts = ["Is <image> like <image>, or is it not?", "Words alone.", "What is it?"]
    objects = [[[(0, 0, 20, 12)], [(8, 8, 30, 30), (0, 10, 4, 20)]], None, [[(10, 10, 30, 29)]]]
    return processor(prompts, [[one, two], None, [three]], objects=objects)


@pytest.mark.parametrize("control", ["ivc", "rank"])
def test_objects_stay_whoever_is_beside_them(model, marked, control):
    spec = f"{BACKGROUND},control={control}"
    together = collate(marked, model.config, SMALL)
    gone = find_removed(ivc_jax.prefill(model, together, spec), together)
    ivc_tokens = find_removed(ivc_jax.prefill(model, together, BACKGROUND), together)
    for row, marks in ((0, marked.objects[0]), (2, marked.objects[2])):
        assert not gone[row] & set(np.flatnonzero(marks))
        assert len(gone[row]) == len(ivc_tokens[row]) > 0
        alone = collate(take_rows(marked, [row], model.config), model.config, WIDE)
        assert find_removed(ivc_jax.prefill(model, alone, spec), alone) == [gone[row]]
    assert gone[1] == set()


def test_ivc_tokens_that_hold_an_object_are_those_that_stay(model, marked):
    inputs = collate(marked, model.config, SMALL)
    every = BACKGROUND.removesuffix(",among=background")
    background, whole = (
        find_removed(ivc_jax.prefill(model, inputs, spec), inputs) for spec in (BACKGROUND, every)
    )
    for row in (0, 2):
        assert background[row] == whole[row] - set(np.flatnonzero(marked.objects[row]))
        assert background[row] < whole[row]


def test_a_batch_that_says_nothing_of_objects_is_refused(model, inputs):
    with pytest.raises(MethodError, match="the batch does not say where objects are: call the"):
        ivc_jax.prefill(model, inputs, BACKGROUND)


def test_without_pictures_nothing_is_asked(loaded):
    model, processor = loaded
    prompt = ivc_jax.prefill(model, processor(["Words alone."]), BACKGROUND)
    assert prompt.selection is None
