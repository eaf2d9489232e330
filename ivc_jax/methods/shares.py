"""Whole shares of a total by squares: floor(N p² / sum of p²), exactly, whatever the order.

Float32 may miss a whole number by one, and sums of it hang on the shape of a bucket. Numbers here
are rows of digits of 12 bits in int32, the weights of which are

    digit    0    1    2       3       4 ...
    weight   2^12  1    2^-12   2^-24   2^-36

Weights are what float32 makes of decimals, off by up to 2^-24 of them. A share that lacks less than
2^-22 of itself to a whole number therefore is that number: of 0.1 and 0.3, 100 gives 10 and 90.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivc_jax.types import typed

_BITS = 12
_LOW = (1 << _BITS) - 1
_DIGITS = 8
MOST = 1 << 18  # a total; larger ones would overflow
_SLACK = 4  # of 2^-24


@typed
def split_by_squares(
    weights: Float[Array, "B F"], among: Bool[Array, "B F"], total: Int[Array, " B"]
) -> Int[Array, "B F"]:
    """Split a total by the squares of weights, each share rounded down: int32 [B, F].

    Args:
        weights: at least 0; where all are 0 nothing is handed out.
        among: what takes part; the rest gets 0.
        total: below 2^18, of up to 2^16 parts.
    """
    squares, whole = square(jnp.where(among, weights, 0.0))
    estimate = _to_float(squares) / jnp.maximum(_to_float(whole), jnp.finfo(jnp.float32).tiny)
    near = jnp.floor(total[:, None] * estimate).astype(jnp.int32)  # [B, F], off by one at most
    # both in one: [8, B, 2 F]
    twice, tried = jnp.tile(squares, (1, 1, 2)), jnp.concatenate([near, near + 1], axis=1)
    reached = reach(twice, whole, total[:, None], tried)
    share = near - 1 + jnp.split(reached.astype(jnp.int32), 2, axis=1)[0]
    share += jnp.split(reached.astype(jnp.int32), 2, axis=1)[1]
    return jnp.where(among & (weights > 0), jnp.maximum(share, 0), 0)


def square(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return digits, to some scale, of the squares, [8, B, F], and of their sum, [8, B, 1]."""
    largest = weights.max(axis=1, keepdims=True, initial=0.0)
    _, exponent = jnp.frexp(largest)
    rest = jnp.ldexp(weights, -exponent)  # [B, F] below 1, exactly
    parts = []  # 36 bits: all of what is at least 2^-12
    for _ in range(3):
        rest = jnp.ldexp(rest, _BITS)
        parts.append(jnp.floor(rest).astype(jnp.int32))
        rest = rest - jnp.floor(rest)
    first, second, third = parts
    products = (  # of weights 2^-24, 2^-36, ...
        first * first,
        2 * first * second,
        second * second + 2 * first * third,
        2 * second * third,
        third * third,
    )
    digits = [jnp.zeros_like(first) for _ in range(_DIGITS)]
    for place, product in enumerate(products, start=2):
        digits[place] += product >> _BITS
        digits[place + 1] += product & _LOW
    squares = _carry(jnp.stack(digits))
    return squares, _carry(squares.sum(axis=2, keepdims=True))


def reach(
    squares: jax.Array, whole: jax.Array, total: jax.Array, share: jax.Array, slack: int = _SLACK
) -> jax.Array:
    """Say whether total * square * (1 + slack / 2^24) is at least share * whole: bool [B, F].

    Args:
        squares, whole: as `square` returns them.
        total: int32 [B, 1].
        share: int32 [B, F].
        slack: negative where the share must be exceeded.
    """
    product = _carry(squares * total)
    shifted = jnp.concatenate([jnp.zeros_like(product[:2]), product[:-2]])  # 2^-24 of it
    return _carry(product + slack * shifted - whole * share)[0] >= 0


def _carry(digits: jax.Array) -> jax.Array:
    """Bring all digits but the first into 0 .. 4095; the first takes the sign."""

    def step(carried: jax.Array, digit: jax.Array) -> tuple[jax.Array, jax.Array]:
        digit = digit + carried
        return digit >> _BITS, digit & _LOW  # rounds down, of negative numbers too

    carried, rest = jax.lax.scan(step, jnp.zeros_like(digits[0]), digits[1:], reverse=True)
    return jnp.concatenate([(digits[0] + carried)[None], rest])


def _to_float(digits: jax.Array) -> jax.Array:
    """Return digits as float32, [B, F]."""
    weights = np.float32(2.0) ** (_BITS * (1 - np.arange(_DIGITS, dtype=np.float32)))
    return (digits * weights[:, None, None]).sum(axis=0)
