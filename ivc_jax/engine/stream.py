"""Answers token by token, as they are chosen."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ivc_jax.engine.decode import State, advance, start
from ivc_jax.engine.finite import warn_broken
from ivc_jax.engine.prefill import prefill
from ivc_jax.engine.sampling import Sampling, make_rule
from ivc_jax.inputs.batch import Batch
from ivc_jax.methods.base import DENSE, Method
from ivc_jax.model import Model
from ivc_jax.parallel.batch import fetch
from ivc_jax.types import Inputs


@dataclasses.dataclass(frozen=True)
class Step:
    """One token of every sample, on the host.

    Attributes:
        tokens: [B] int32; 0 where the sample has no token at this step.
        valid: [B] bool, whether it has one: its answer had not ended before.
        done: [B] bool, whether its answer has ended, with this token or before.
    """

    tokens: np.ndarray
    valid: np.ndarray
    done: np.ndarray


def stream(
    model: Model,
    batch: Batch | Inputs,
    method: Method | str = DENSE,
    max_new_tokens: int = 64,
    stop_ids: tuple[int, ...] | None = None,
    *,
    sampler: Sampling | None = None,
    seed: int | Sequence[int] = 0,
) -> Iterator[Step]:
    """Yield a `Step` for each token of the longest answer, the first behind the prefill.

    The valid tokens of a sample, one behind the other, are those of `generate`, whose arguments
    these are and whose errors come from the call itself.

        for step in ivc_jax.stream(model, batch, "ivc:keep_ratio=0.5"):
            print(processor.decode(step.tokens[:, None], step.valid))

    Args:
        method: as in `generate`.
        max_new_tokens: as in `generate`.
        stop_ids: as in `generate`.
        sampler: as in `generate`.
        seed: as in `generate`.

    Raises:
        MethodError, InputError, ValueError: as `generate`.
    """
    prompt = prefill(model, batch, method)
    rule = make_rule(sampler, seed, prompt.logits.shape[0])
    return _follow(model, start(model, prompt, max_new_tokens, stop_ids, rule))


def _follow(model: Model, state: State) -> Iterator[Step]:
    before = np.zeros(state.lengths.shape, np.int32)  # [B], tokens yielded
    while True:
        step, tokens, lengths, done = fetch((state.step, state.tokens, state.lengths, state.done))
        yield Step(tokens=tokens[:, step - 1], valid=lengths > before, done=done)
        if step == tokens.shape[1] or done.all():
            break
        before, state = lengths, advance(model, state)
    warn_broken(model, state.finite)
