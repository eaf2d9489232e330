"""Log-likelihoods of answers: transformers' teacher-forced ones, and those of single steps."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import WIDE, batch_of
from helpers.prompts import CASES, IMAGE, VIDEO, hf_arrays

import ivc_jax
from ivc_jax.engine.decode import advance, start
from ivc_jax.engine.score import pad_answers, rate, run_score
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.bucket import collate

# One answer a prompt, of unlike lengths.
ANSWERS = [[5, 77, 200], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [250, 250]]


def score_in_torch(reference, arrays, answers):
    """Put padded answers behind left-padded prompts and run the whole sequence at once."""
    torch = pytest.importorskip("torch")
    longest = max(map(len, answers))
    padded = np.array([answer + [0] * (longest - len(answer)) for answer in answers])
    valid = np.array([[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers])
    ids = np.concatenate([arrays["input_ids"], padded], axis=1)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors["input_ids"] = torch.from_numpy(ids)
    mask = np.concatenate([arrays["attention_mask"], valid], axis=1)
    tensors["attention_mask"] = torch.from_numpy(mask)
    kinds = (tensors["input_ids"] == IMAGE) + 2 * (tensors["input_ids"] == VIDEO)
    with torch.no_grad():
        logits = reference(**tensors, mm_token_type_ids=kinds.int()).logits.double()
    shares = torch.log_softmax(logits[:, -longest - 1 : -1], dim=-1).numpy()
    return (np.take_along_axis(shares, padded[..., None], axis=2)[..., 0] * valid).sum(axis=1)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_scores_equal_teacher_forcing_in_transformers(tiny_hf, load_torch, family):
    path = tiny_hf(family=family)
    model, _ = ivc_jax.load(path, dtype="float32")
    arrays = hf_arrays(CASES["ragged batch"])
    expected = score_in_torch(load_torch(path), arrays, ANSWERS[:3])
    batch = ivc_jax.Batch.from_hf(**arrays)
    with jax.default_matmul_precision("highest"):
        found = ivc_jax.score(model, batch, ANSWERS[:3])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.max() < -1


SEEN = []


@flax.struct.dataclass
class Dictation:
    """A rule that chooses what is given, and notes the logits that it is shown."""

    tokens: jax.Array  # [B, T]

    def choose(self, logits, step):
        jax.debug.callback(lambda value: SEEN.append(np.asarray(value, np.float64)), logits)
        return self.tokens[:, step]


PRUNED = ["ivc:layer=2,keep_ratio=0.4", "pyramiddrop:positions=reindex,layers=0/2/3", "dense"]


@pytest.mark.parametrize("spec", PRUNED)
def test_a_score_is_the_sum_over_single_steps(model, inputs, spec):
    tokens, lengths = pad_answers(model.config, ANSWERS, 4)
    prompt = ivc_jax.prefill(model, inputs, spec)
    SEEN.clear()
    state = start(model, prompt, lengths.max(), (), Dictation(jnp.asarray(tokens)))
    while state.unfinished:
        state = advance(model, state)
    jax.block_until_ready(state)
    jax.effects_barrier()
    logits = np.stack(SEEN, axis=1)  # [B, steps, vocab]
    assert logits.shape[:2] == (4, 12)
    top = logits.max(axis=-1, keepdims=True)
    shares = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    steps = np.take_along_axis(shares, tokens[:, :12, None], axis=2)[..., 0]
    expected = [row[:length].sum() for row, length in zip(steps, lengths, strict=True)]
    found = ivc_jax.score(model, inputs, ANSWERS, spec)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_greedy_answers_are_told_from_others(model, inputs):
    spec = PRUNED[0]
    prompt = ivc_jax.prefill(model, inputs, spec)
    answers = np.array(ivc_jax.decode(model, prompt, 6, ()).tokens)
    answers[2, 4] = (answers[2, 4] + 1) % 256
    found = rate(model, prompt, *pad_answers(model.config, answers, 4))
    assert found.greedy.tolist() == [True, True, False, True]
    assert found.lengths.tolist() == [6] * 4


def test_mates_buckets_and_lengths_change_nothing_and_share_a_program(model, inputs):
    together = ivc_jax.score(model, inputs, ANSWERS)
    programs = run_score._cache_size()
    other = ivc_jax.score(model, inputs, [[5, 77, 200, 1], [9], list(range(11)), [250, 250]])
    np.testing.assert_allclose(other[[1, 3]], together[[1, 3]], rtol=0, atol=1e-5)
    assert run_score._cache_size() == programs
    alone = ivc_jax.score(model, collate(batch_of(2), model.config, WIDE), [ANSWERS[2]])
    np.testing.assert_allclose(alone[0], together[2], rtol=0, atol=1e-4)


def test_strings_are_what_the_processor_reads(loaded, inputs):
    model, processor = loaded
    texts = ["yes", " no", "(2, 3)<|im_end|>", "7"]
    ids = [processor.writer.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert ids[2][-1] == 258
    found = ivc_jax.score(model, inputs, texts, processor=processor)
    np.testing.assert_array_equal(found, ivc_jax.score(model, inputs, ids))


def test_bad_answers_are_named(model, inputs):
    for answers, message in [
        (["a"] * 4, "answers are strings: pass processor="),
        (ANSWERS[:3], "3 answers for 4 prompts"),
        ([[1], [], [1], [1]], "answer 1 must be a list of token ids, at least one"),
        ([[1], [0.5], [1], [1]], "answer 1 must be a list of token ids"),
        ([[1], [1], [1, 272], [1]], "answer 2: token id 272 has no embedding, vocab_size is"),
        ([[1], [1], [1], [-1]], "answer 3: token id -1 has no"),
    ]:
        with pytest.raises(InputError, match=message):
            ivc_jax.score(model, inputs, answers)


def test_logits_that_are_not_finite_have_no_score(model, inputs):
    prompt = ivc_jax.prefill(model, inputs)
    broken = prompt.replace(logits=prompt.logits.at[1, 7].set(jnp.inf))
    found = rate(model, broken, *pad_answers(model.config, ANSWERS, 4))
    assert np.isnan(found.log_likelihood).tolist() == [False, True, False, False]
    assert not found.greedy[1]
