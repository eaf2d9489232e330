"""Decode over per-span caches: a named state, one step, and a compiled loop of that step.

Token by token, each chosen from the logits of the one before it (where they are written to:
`engine.extend`):

    step 1   start     tokens[0] from the prompt's logits        caches hold the prompt
    step 2   advance   tokens[0] through the model, tokens[1]    caches hold tokens[0]
    step 3   advance   tokens[1] through the model, tokens[2]    caches hold tokens[:2]
"""

import dataclasses
from collections.abc import Sequence as Several
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig, RopeConfig
from ivc_jax.engine.extend import extend, make_room
from ivc_jax.engine.finite import warn_broken
from ivc_jax.engine.prefill import Prefill, prefill, with_rope
from ivc_jax.engine.sampling import GREEDY, Rule, Sampling, make_rule
from ivc_jax.inputs.batch import Batch, check_ids
from ivc_jax.methods.base import DENSE, Method
from ivc_jax.model import Model
from ivc_jax.nn import decoder
from ivc_jax.nn.blocks import is_stacked
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs, KVSpan


@dataclasses.dataclass(frozen=True)
class Output:
    """Generated tokens and what the prompt kept.

    Attributes:
        tokens: [B, T] int32, 0 behind the end of a sample.
        lengths: [B] int32, generated tokens of each sample, the stop token included.
        kept: per sample, ascending positions of the unpadded prompt that survived.
        kv_bytes: bytes of the cache arrays after prefill, all samples together.
        finite: [B] bool. Where it is False the logits were not finite behind the last of `lengths`:
            a dtype that overflows, or damaged weights. The sample ended there, unanswered.
    """

    tokens: jax.Array
    lengths: jax.Array
    kept: list[np.ndarray]
    kv_bytes: int
    finite: jax.Array

    def __repr__(self) -> str:
        samples, slots = self.tokens.shape
        counts = [len(kept) for kept in self.kept] or [0]
        return (
            f"Output({samples} samples, at most {slots} tokens each; {min(counts)} to"
            f" {max(counts)} prompt tokens kept, cache of {self.kv_bytes / 1e6:.3g} MB)"
        )


@flax.struct.dataclass
class State:
    """Where a decode stands between two tokens."""

    step: jax.Array  # [] int32, tokens chosen so far, 1 to T
    token: jax.Array  # [B] int32, chosen last, not in the caches yet
    tokens: jax.Array  # [B, T] int32, 0 behind the end of a sample and where none is chosen yet
    lengths: jax.Array  # [B] int32, tokens of each sample, the stop token included
    done: jax.Array  # [B] bool, a stop token was chosen, or there is none to choose
    finite: jax.Array  # [B] bool, logits were so while the sample was not done
    caches: tuple[KVSpan, ...]  # S + T - 1 slots each; their `lengths` are those of the prompt
    next_position: jax.Array  # [B] int32, position id of the first generated token
    stop_ids: jax.Array  # [any] int32
    rule: Rule  # that chooses tokens
    rope: RopeConfig = flax.struct.field(pytree_node=False)  # that turned the keys of the prompt

    @property
    def unfinished(self) -> jax.Array:
        """Whether a token is left to choose: [] bool."""
        return (self.step < self.tokens.shape[1]) & ~self.done.all()


def generate(
    model: Model,
    batch: Batch | Inputs,
    method: Method | str = DENSE,
    max_new_tokens: int = 64,
    stop_ids: tuple[int, ...] | None = None,
    *,
    sampler: Sampling | None = None,
    seed: int | Several[int] = 0,
) -> Output:
    """Answer prompts, greedily unless there is a sampler; ties go to the lowest token id.

    Samples whose logits are not finite get no answer: a warning and `Output.finite` name them.

    Args:
        method: how visual tokens are pruned, as for `prefill`; the default prunes nothing.
        max_new_tokens: T, a static size.
        stop_ids: tokens that end a sample; None takes the model's own end tokens, () generates all
            T tokens.
        sampler: draws tokens at random; None is greedy.
        seed: of the sampler, for all samples or a list of one for each. A sample's draws depend on
            its seed and the step alone: the same alone and in any batch, and the same for equal
            prompts with equal seeds.

    Raises:
        MethodError, InputError: as `prefill`; or a stop id has no embedding.
        ValueError: max_new_tokens below 1, or an impossible seed.
    """
    prompt = prefill(model, batch, method)
    return decode(model, prompt, max_new_tokens, stop_ids, sampler=sampler, seed=seed)


def decode(
    model: Model,
    prompt: Prefill,
    max_new_tokens: int = 64,
    stop_ids: tuple[int, ...] | None = None,
    *,
    sampler: Sampling | None = None,
    seed: int | Several[int] = 0,
) -> Output:
    """Continue from a prefill; arguments, errors and warnings as in `generate`."""
    rule = make_rule(sampler, seed, prompt.logits.shape[0])
    output = answer(model, prompt, max_new_tokens, stop_ids, rule)
    warn_broken(model, output.finite)
    return output


def answer(
    model: Model,
    prompt: Prefill,
    max_new_tokens: int,
    stop_ids: tuple[int, ...] | None = None,
    rule: Rule = GREEDY,
) -> Output:
    """Continue from a prefill and leave it to the caller to look at `Output.finite`."""
    arguments = _read_prompt(model, prompt, max_new_tokens, stop_ids)
    config, params = with_rope(model.config, prompt.rope), model.params["decoder"]
    with on_mesh(model.mesh):
        tokens, lengths, finite = run_decode(config, max_new_tokens, params, *arguments, rule)
    return Output(tokens, lengths, prompt.kept, prompt.kv_bytes, finite)


def start(
    model: Model,
    prompt: Prefill,
    max_new_tokens: int = 64,
    stop_ids: tuple[int, ...] | None = None,
    rule: Rule = GREEDY,
) -> State:
    """Choose the first token after a prefill and make room for the others.

    Args:
        max_new_tokens: T, bound on the tokens that are chosen in all.
        stop_ids: as in `generate`.
        rule: that chooses tokens.

    Raises:
        InputError: a stop id has no embedding.
        ValueError: max_new_tokens below 1.
    """
    arguments = _read_prompt(model, prompt, max_new_tokens, stop_ids)
    apart = not is_stacked(model.params["decoder"]["layers"])
    with on_mesh(model.mesh):
        return _run_start(prompt.rope, max_new_tokens, apart, *arguments, rule)


def advance(model: Model, state: State) -> State:
    """Run the last token through the model and choose the next; `state` must be unfinished.

    The caches of `state` become those of the result: it is used up.
    """
    config = with_rope(model.config, state.rope)
    with on_mesh(model.mesh):
        rest = state.replace(caches=())
        return _run_advance(config, model.params["decoder"], state.caches, rest)


def _read_prompt(
    model: Model, prompt: Prefill, max_new_tokens: int, stop_ids: tuple[int, ...] | None
) -> tuple:
    """Return what a decode reads of a prompt: logits, cache, next position; and stop ids."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    # NumPy: an array on one device could not join those of several processes
    stop = np.asarray(model.stop_ids if stop_ids is None else stop_ids, np.int64).reshape(-1)
    check_ids(stop, model.config.decoder.vocab_size, "stop_ids")
    return prompt.logits, prompt.cache, prompt.next_position, stop.astype(np.int32)


@partial(jax.jit, static_argnums=(0, 1))
def run_decode(
    config: ModelConfig,
    max_new_tokens: int,
    params: dict[str, Any],
    logits: jax.Array,
    cache: tuple[KVSpan, ...],
    next_position: jax.Array,
    stop_ids: jax.Array,
    rule: Rule = GREEDY,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compiled body of `decode`; returns tokens [B, T], lengths [B] and finite [B]."""
    apart = not is_stacked(params["layers"])
    state = _start(
        config.decoder.rope, max_new_tokens, apart, logits, cache, next_position, stop_ids, rule
    )

    def body(state: State) -> State:
        return _advance(config, params, state.caches, state)

    state = jax.lax.while_loop(lambda state: state.unfinished, body, state)
    return state.tokens, state.lengths, state.finite


def _start(
    turn: RopeConfig,
    max_new_tokens: int,
    apart: bool,
    logits: jax.Array,
    cache: tuple[KVSpan, ...],
    next_position: jax.Array,
    stop_ids: jax.Array,
    rule: Rule,
) -> State:
    """Traced body of `start`."""
    B = logits.shape[0]
    empty = State(
        step=jnp.int32(0),
        token=jnp.zeros(B, jnp.int32),
        tokens=jnp.zeros((B, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(B, jnp.int32),
        done=jnp.zeros(B, bool),
        finite=jnp.ones(B, bool),
        # The last generated token is never fed back, so it needs no slot.
        caches=make_room(cache, max_new_tokens - 1, apart),
        next_position=next_position,
        stop_ids=stop_ids,
        rule=rule,
        rope=turn,
    )
    return _choose(empty, logits)


def _advance(
    config: ModelConfig, params: dict[str, Any], caches: tuple[KVSpan, ...], state: State
) -> State:
    """Traced body of `advance`, and of the loop."""
    tokens, room = state.token[:, None], state.tokens.shape[1] - 1
    hidden, caches = extend(
        config, params, caches, state.next_position, tokens, state.step - 1, room
    )
    logits = decoder.logits(config.decoder, params, hidden[:, 0])  # [B, vocab]
    return _choose(state.replace(caches=caches), logits)


def _choose(state: State, logits: jax.Array) -> State:
    """Choose a token from logits [B, vocab]; samples that are done get none."""
    token = state.rule.choose(logits, state.step)  # [B]
    sound = jnp.isfinite(logits).all(axis=-1)  # [B]; what is chosen from others means nothing
    counts = sound & ~state.done
    return state.replace(
        step=state.step + 1,
        token=token,
        tokens=state.tokens.at[:, state.step].set(jnp.where(counts, token, 0)),
        lengths=state.lengths + counts,
        done=state.done | ~sound | jnp.isin(token, state.stop_ids),
        finite=state.finite & (state.done | sound),
    )


_run_start = jax.jit(_start, static_argnums=(0, 1, 2))
# Caches are donated: the step writes into them, where it would copy all of them.
_run_advance = jax.jit(_advance, static_argnums=0, donate_argnums=2)
