"""How likely given answers are: all tokens of an answer in one pass behind the prompt.

prompt       ... Q    its last logits say how likely a is
answer       a b c    the logits behind a say how likely b is, those behind b how likely c is
is run       a b      against the caches of the prompt, pruned as they are
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.engine.extend import extend, make_room
from ivc_jax.engine.finite import warn_broken
from ivc_jax.engine.prefill import Prefill, prefill, with_rope
from ivc_jax.inputs.batch import Batch, InputError, check_ids
from ivc_jax.inputs.bucket import list_steps
from ivc_jax.inputs.processor import Processor
from ivc_jax.methods.base import DENSE, Method
from ivc_jax.model import Model
from ivc_jax.nn import decoder
from ivc_jax.nn.blocks import is_stacked
from ivc_jax.parallel.batch import fetch
from ivc_jax.parallel.constraints import on_mesh
from ivc_jax.types import Inputs, KVSpan

_BUCKETS = list_steps(8, 2**16)  # lengths that answers are padded to


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely answers are, on the host.

    Attributes:
        log_likelihood: [B] float64, natural logarithm of the probability of all tokens; NaN where
            logits are not finite.
        greedy: [B] bool, whether the answer is what greedy decoding begins with.
        lengths: [B] int32, tokens of the answers.
    """

    log_likelihood: np.ndarray
    greedy: np.ndarray
    lengths: np.ndarray


def score(
    model: Model,
    batch: Batch | Inputs,
    answers: Sequence[Sequence[int]] | Sequence[str],
    method: Method | str = DENSE,
    *,
    processor: Processor | None = None,
) -> np.ndarray:
    """Return the log-likelihood of an answer to each prompt: float64 [B].

    It is the sum over the answer's tokens of log p(token | prompt, pruned, and the tokens before).
    No end token is added: to count it, end the answer with it. Where logits are not finite the
    result is NaN, and a warning names the rows.

    Args:
        batch: prompts, as for `prefill`.
        answers: one a prompt: token ids, or strings, which need the processor.
        method: how visual tokens are pruned, as for `prefill`.
        processor: makes tokens of strings; special tokens written in them are recognised.

    Raises:
        MethodError, InputError: as `prefill`.
        InputError: not one answer a prompt, an empty one, strings without a processor, or an id
            beyond the vocabulary.
    """
    if any(isinstance(answer, str) for answer in answers):
        if processor is None:
            raise InputError("answers are strings: pass processor=, or their token ids")
        answers = processor.encode(answers)
    count = len(batch) if isinstance(batch, Batch) else batch.tokens.shape[0]
    tokens, lengths = pad_answers(model.config, answers, count)  # complain before any device work
    prompt = prefill(model, batch, method)
    found = rate(model, prompt, tokens, lengths).log_likelihood
    warn_broken(model, np.isfinite(found))
    return found


def pad_answers(
    config: ModelConfig, answers: Sequence[Sequence[int]], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad answers to one of few lengths A: tokens [B, A] and lengths [B], int32.

    Args:
        config: of the model.
        answers: token ids, one answer a prompt.
        count: of the prompts.

    Raises:
        InputError: not so many answers, an empty one, or an id beyond the vocabulary.
    """
    if len(answers) != count:
        raise InputError(f"{len(answers)} answers for {count} prompts; give one answer a prompt")
    rows = [np.asarray(answer) for answer in answers]
    for number, row in enumerate(rows):
        if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
            raise InputError(f"answer {number} must be a list of token ids, at least one")
        check_ids(row, config.decoder.vocab_size, f"answer {number}")
    lengths = np.array([len(row) for row in rows], np.int32)
    longest = lengths.max(initial=1)
    if longest > _BUCKETS[-1]:
        raise InputError(f"an answer has {longest} tokens, at most {_BUCKETS[-1]} are scored")
    tokens = np.zeros((count, min(b for b in _BUCKETS if b >= longest)), np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return tokens, lengths


def rate(model: Model, prompt: Prefill, tokens: np.ndarray, lengths: np.ndarray) -> Score:
    """Score answers behind a prefill; see `score`.

    Args:
        tokens: [B, A] int32, padded.
        lengths: [B] int32, at least 1.
    """
    config, params = with_rope(model.config, prompt.rope), model.params["decoder"]
    with on_mesh(model.mesh):
        found = run_score(config, params, prompt.logits, prompt.cache, prompt.next_position, tokens)
    shares, likeliest, finite = fetch(found)  # [A, B] each
    valid = np.arange(tokens.shape[1])[:, None] < lengths  # [A, B]
    finite = (finite | ~valid).all(axis=0)  # [B]
    total = np.where(valid, shares, 0.0).sum(axis=0, dtype=np.float64)  # [B]
    return Score(
        log_likelihood=np.where(finite, total, np.nan),
        greedy=(likeliest | ~valid).all(axis=0) & finite,
        lengths=lengths,
    )


@partial(jax.jit, static_argnums=0)
def run_score(
    config: ModelConfig,
    params: dict[str, Any],
    logits: jax.Array,
    cache: tuple[KVSpan, ...],
    next_position: jax.Array,
    tokens: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compiled body of `rate`: log-probability, whether it is the likeliest, finite: [A, B] each.

    Args:
        logits: [B, vocab] behind the prompt.
        tokens: [B, A], at least two.
    """
    room = tokens.shape[1] - 1  # the last token is not run
    caches = make_room(cache, room, apart=not is_stacked(params["layers"]))
    hidden, _ = extend(
        config, params, caches, next_position, tokens[:, :-1], 0, room
    )  # [B, A - 1, D]

    def look_up(logits: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        share = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]  # [B]
        return share, logits.argmax(axis=-1) == token, jnp.isfinite(logits).all(axis=-1)

    # One token at a time: the logits of all would be [B, A, vocab].
    behind = jax.lax.map(
        lambda pair: look_up(decoder.logits(config.decoder, params, pair[0]), pair[1]),
        (hidden.swapaxes(0, 1), tokens[:, 1:].T),
    )
    first = look_up(logits, tokens[:, 0])
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, behind)
