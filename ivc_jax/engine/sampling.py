"""How the next token is chosen from logits.

A rule is a small pytree that the decode loop carries in its state; the loop knows nothing more
about it. `Sampling` is what a caller asks for, `make_rule` turns it into a rule for a batch.
"""

import dataclasses
import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_SEEDS = 1 << 32  # bound on seeds, exclusive


@flax.struct.dataclass
class Greedy:
    """Take the likeliest token; ties go to the lowest id."""

    def choose(self, logits: jax.Array, step: jax.Array) -> jax.Array:
        """Choose one token a sample.

        Args:
            logits: [B, vocab] float32.
            step: [] int32, tokens chosen before.

        Returns:
            [B] int32.
        """
        # argmax takes the first of equals.
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


GREEDY = Greedy()


@flax.struct.dataclass
class Draw:
    """Draw tokens from the truncated softmax; made by `make_rule`.

    What a sample draws depends on its seed and the step alone, not on its batch mates. Settings are
    arrays, so that all of them share a program; a truncation that is not asked for is None.
    """

    seeds: jax.Array  # [B] uint32
    temperature: jax.Array  # [] float32, above 0
    top_k: jax.Array | None  # [] int32
    top_p: jax.Array | None  # [] float32

    def choose(self, logits: jax.Array, step: jax.Array) -> jax.Array:
        """Choose one token a sample; see `Greedy.choose`."""
        scaled = truncate(logits / self.temperature, self.top_k, self.top_p)  # [B, vocab]

        def draw_noise(seed: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
            return jax.random.gumbel(key, logits.shape[1:])

        # The largest of log-probabilities with Gumbel noise is a draw from the softmax. A token has
        # the same noise wherever it ranks: rounding does not move the draws of others.
        return jnp.argmax(scaled + jax.vmap(draw_noise)(self.seeds), axis=-1).astype(jnp.int32)


Rule = Greedy | Draw


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Tokens are drawn at random; truncations in the order of transformers.

    Attributes:
        temperature: divides the logits first; 0 is greedy.
        top_p: then the fewest likeliest tokens that together reach this share of probability may be
            drawn, in (0, 1]; ties go to the lowest id.
        top_k: before that, only the likeliest so many tokens and those tied with the last of them.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k must be a positive number or None, got {self.top_k!r}")


def make_rule(sampler: Sampling | None, seed: int | Sequence[int], num_samples: int) -> Rule:
    """Return the rule for a batch of B = `num_samples`.

    Args:
        sampler: None is greedy.
        seed: of every sample, or one for each.

    Raises:
        ValueError: a seed that is no whole number in 0..2^32 - 1, or not one for each sample.
    """
    if sampler is None or not sampler.temperature:
        return GREEDY
    seeds = np.asarray(seed)
    whole = seeds.dtype.kind in "iu" and seeds.size and 0 <= seeds.min() <= seeds.max() < _SEEDS
    if not whole or seeds.shape not in ((), (num_samples,)):
        raise ValueError(
            f"seed must be a whole number in 0..{_SEEDS - 1}, or a list of one for each of the"
            f" {num_samples} samples; got {seed!r}"
        )
    # NumPy: an array on one device could not join those of several processes
    return Draw(
        seeds=np.broadcast_to(seeds.astype(np.uint32), (num_samples,)),
        temperature=np.float32(sampler.temperature),
        top_k=None if sampler.top_k is None else np.int32(min(sampler.top_k, 1 << 30)),
        top_p=None if sampler.top_p == 1 else np.float32(sampler.top_p),
    )


def truncate(
    logits: jax.Array, top_k: jax.Array | None = None, top_p: jax.Array | None = None
) -> jax.Array:
    """Set the logits [B, vocab] of tokens that may not be drawn to -inf; see `Sampling`.

    With top_p = 0.8, probabilities by rank and the sum of those before:

        share     0.5  0.2  0.2  0.1
        before    0.0  0.5  0.7  0.9
        stays      x    x    x           the first always does
    """
    if top_k is None and top_p is None:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True)  # [B, vocab], stable: ties by id
    ranked = jnp.take_along_axis(logits, order, axis=-1)  # [B, vocab], descending
    if top_k is not None:
        last = jnp.take(ranked, jnp.minimum(top_k, ranked.shape[1]) - 1, axis=1)  # [B]
        ranked = jnp.where(ranked < last[:, None], -jnp.inf, ranked)
    if top_p is not None:
        share = jax.nn.softmax(ranked, axis=-1)  # [B, vocab]
        before = jnp.cumsum(share, axis=-1) - share  # [B, vocab], of the likelier ones
        ranked = jnp.where(before < top_p, ranked, -jnp.inf)
    rows = jnp.arange(len(logits))[:, None]  # [B, 1]
    return jnp.zeros_like(logits).at[rows, order].set(ranked, unique_indices=True)
