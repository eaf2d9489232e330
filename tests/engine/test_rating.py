"""Frames are rated each alone, by the probability of a letter; objects come in short answers."""

import numpy as np
import pytest

import ivc_jax
from ivc_jax.engine import rating
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.video import Clip


@pytest.fixture(scope="module")
def loaded(tiny_hf):
    return ivc_jax.load(tiny_hf(family="qwen2_vl"), dtype="float32")


def draw(count, side=56):
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8))


def test_relevance_is_the_probability_of_the_letter_over_the_whole_vocabulary(loaded):
    model, processor = loaded
    frames, scorer = draw(3), ivc_jax.FrameScorer(model, processor, batch_size=2)
    question = scorer.write("who?", ["red cup", "dog"])
    assert "red cup, dog" in question
    assert "who?" not in question
    assert "who?" in scorer.write("who?", [])
    found = scorer([question] * 3, frames)
    for frame, value in zip(frames, found, strict=True):
        logits = np.asarray(ivc_jax.prefill(model, processor([question], [[frame]])).logits[0])
        share = np.exp(logits - logits.max())
        (token,) = processor.encode(["A"])[0]
        assert value == pytest.approx((share / share.sum())[token], rel=1e-4)


def test_every_frame_of_a_prompt_gets_a_number_in_its_order(loaded, monkeypatch):
    """An image between videos; slices of two frames average them, the last one repeated."""
    _, processor = loaded
    asked = []

    def rate(scorer, questions, frames):
        asked.append((list(questions), len(frames)))
        return np.arange(len(frames), dtype=np.float32) / 10

    monkeypatch.setattr(rating.FrameScorer, "__call__", rate)
    image, *frames = draw(8)
    clip = Clip(np.stack(frames[3:]), (0, 2, 4, 5), 4.0, 8)
    found = ivc_jax.rate_frames(
        loaded,
        processor,
        ["<video> x <image> y <video>", "one?", "none?"],
        [[image], [image], None],
        [[np.stack(frames[:3]), clip], None, None],
        entities=[["dog"], ["cat"], []],
    )
    ((questions, count),) = asked
    assert count == 8
    assert all("dog" in question for question in questions)
    np.testing.assert_allclose(found[0], [0.05, 0.2, 0.3, 0.45, 0.65], rtol=1e-6)
    assert found[1:] == [[1.0], []]  # one frame has nothing to be compared with
    batch = processor(
        ["<video> x <image> y <video>"], [[image]], [[np.stack(frames[:3]), clip]],
        relevance=found[:1],
    )  # fmt: skip
    assert ivc_jax.prefill(loaded[0], batch, "quota").kept


def test_objects_are_found_in_up_to_three_answers(loaded, monkeypatch):
    answers = iter([["Yes.", "no", "yes"], ["[dog, joy]", "a cat"], ["[dog]", "cat"]])
    asked = []

    class Writer:
        def __call__(self, prompts):
            asked.append(prompts)
            return prompts

        def decode(self, tokens, lengths):
            return next(answers)

    class Out:
        tokens = lengths = None

    monkeypatch.setattr(rating, "generate", lambda *args, **options: Out)
    found = rating.decouple(None, Writer(), ["where is the dog?", "why?", "whose cat?"])
    assert found == [["dog"], [], []]
    assert [len(prompts) for prompts in asked] == [3, 2, 2]
    assert "why?" not in "".join(asked[1])
    assert "[dog, joy]" in asked[2][0]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[dog, 'red car', \"hat\" ]", ["dog", "red car", "hat"]),
        ("Sure: [a] and [b]", ["a"]),
        ("[]", []),
        ("none", []),
        ("[open", []),
    ],
)
def test_the_first_list_in_brackets_is_read(text, names):
    assert rating.read_list(text) == names


def test_words_of_a_prompt_are_read_without_marks():
    assert rating.read_query("<video> When? <image>") == "When?"
    message = {
        "role": "user",
        "content": [{"type": "image", "image": 0}, {"type": "text", "text": "Who?"}],
    }
    assert rating.read_query([message]) == "Who?"


def test_an_answer_of_several_tokens_is_refused(loaded):
    with pytest.raises(InputError, match="has no token 'certainly not'"):
        ivc_jax.FrameScorer(*loaded, answer="certainly not")
