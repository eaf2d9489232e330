"""Decoding: the loop and single steps, stop tokens, ties, rules that choose."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import STEPS

import ivc_jax
from ivc_jax.engine.decode import advance, start
from ivc_jax.inputs.batch import InputError
from ivc_jax.methods import parse
from ivc_jax.methods.base import DENSE, MethodError


@pytest.fixture(scope="module")
def prompt(model, inputs):
    return ivc_jax.prefill(model, inputs)


def run_by_hand(model, prompt, stop_ids=()):
    """Decode step by step; check on the way that a state holds what has been chosen so far."""
    states = [start(model, prompt, STEPS, stop_ids)]
    while states[-1].unfinished:
        states.append(advance(model, states[-1]))
    for count, state in enumerate(states, start=1):
        assert state.step == count
        np.testing.assert_array_equal(state.tokens[:, :count], states[-1].tokens[:, :count])
        assert not np.asarray(state.tokens[:, count:]).any()
    return states[-1]


def test_single_steps_are_those_of_the_loop(model, inputs, prompt):
    """Spans of unlike lengths, whose positions were renumbered, among them."""
    reindex = parse("pyramiddrop:positions=reindex,layers=0/2/3")
    for given in (prompt, ivc_jax.prefill(model, inputs, reindex)):
        out, state = ivc_jax.decode(model, given, STEPS, ()), run_by_hand(model, given)
        np.testing.assert_array_equal(state.tokens, out.tokens)
        np.testing.assert_array_equal(state.lengths, out.lengths)
        assert out.kv_bytes == given.kv_bytes


def test_single_steps_stop_where_the_loop_does(model, prompt):
    """When the last sample has ended, before T."""
    free = np.asarray(ivc_jax.decode(model, prompt, STEPS, ()).tokens)
    stop = tuple(free[:, 2].tolist())
    state, out = run_by_hand(model, prompt, stop), ivc_jax.decode(model, prompt, STEPS, stop)
    np.testing.assert_array_equal(state.tokens, out.tokens)
    np.testing.assert_array_equal(state.lengths, out.lengths)
    assert state.step == out.lengths.max() <= 3


@flax.struct.dataclass
class Given:
    """A rule that says what stands in it."""

    tokens: jax.Array  # [B, T]

    def choose(self, logits, step):
        return self.tokens[:, step]


def test_another_rule_chooses_in_the_same_steps(model, prompt):
    tokens = np.arange(4 * STEPS, dtype=np.int32).reshape(4, STEPS) + 20
    state = start(model, prompt, STEPS, (23,), Given(jnp.asarray(tokens)))
    while state.unfinished:
        state = advance(model, state)
    assert state.lengths.tolist() == [4, STEPS, STEPS, STEPS]
    assert state.tokens[0].tolist() == [20, 21, 22, 23, 0, 0]
    np.testing.assert_array_equal(state.tokens[1:], tokens[1:])


def test_stop_token_ends_one_sample_and_not_its_mates(model, prompt):
    free = ivc_jax.decode(model, prompt, STEPS, ())
    tokens = np.asarray(free.tokens)
    stop = int(tokens[0, 2])
    hit = tokens == stop
    ended = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, STEPS)
    assert min(ended) < max(ended)
    out = ivc_jax.decode(model, prompt, STEPS, stop_ids=(stop,))
    np.testing.assert_array_equal(out.lengths, ended)
    for row, length in enumerate(ended):
        np.testing.assert_array_equal(out.tokens[row, :length], tokens[row, :length])
        assert not np.asarray(out.tokens[row, length:]).any()


def test_answers_end_at_the_models_own_end_tokens_unless_told(model, inputs, prompt):
    stop = int(ivc_jax.decode(model, prompt, STEPS, ()).tokens[0, 2])
    ending = dataclasses.replace(model, stop_ids=(stop,))
    told = ivc_jax.decode(model, prompt, STEPS, (stop,)).lengths
    assert told[0] < STEPS
    for out in (ivc_jax.decode(ending, prompt, STEPS), ivc_jax.generate(ending, inputs, DENSE, 6)):
        np.testing.assert_array_equal(out.lengths, told)
    assert ivc_jax.decode(ending, prompt, STEPS, ()).lengths.tolist() == [STEPS] * 4


@pytest.mark.parametrize("foreign", [272, -1, 2**31])
def test_stop_ids_without_an_embedding_are_named(model, inputs, prompt, foreign):
    """272 embeddings; an answer would never end at such a token."""
    message = rf"^stop_ids: token id {foreign} has no embedding, vocab_size is 272"
    for run in (
        lambda stop: ivc_jax.decode(model, prompt, 2, stop),
        lambda stop: ivc_jax.generate(model, inputs, DENSE, 2, stop),
        lambda stop: next(ivc_jax.stream(model, inputs, DENSE, 2, stop)),
    ):
        with pytest.raises(InputError, match=message):
            run((5, foreign))


def test_a_method_may_be_named_by_its_string(model, inputs):
    spec = "ivc:layer=2,keep_ratio=0.25"
    named, given = (ivc_jax.generate(model, inputs, m, STEPS) for m in (spec, parse(spec)))
    np.testing.assert_array_equal(named.tokens, given.tokens)
    assert [len(kept) for kept in named.kept] == [len(kept) for kept in given.kept]
    with pytest.raises(MethodError, match="unknown method 'icv'"):
        ivc_jax.generate(model, inputs, "icv")


def test_max_new_tokens_below_one_is_an_error(model, prompt):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        ivc_jax.decode(model, prompt, max_new_tokens=0)


def test_ties_go_to_the_lowest_token(model, prompt):
    tied = jnp.zeros_like(prompt.logits).at[:, jnp.array([9, 4, 200])].set(1.0)
    out = ivc_jax.decode(model, prompt.replace(logits=tied), STEPS, ())
    assert out.tokens[:, 0].tolist() == [4] * 4
