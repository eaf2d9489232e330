"""Experts: a router sends each token through a few of many feed-forward parts, in static shapes.

No expert has a capacity: whatever the router chooses is computed, so that a token's result depends
on that token alone. Rows (a token and one of its experts) are sorted by expert, and come in parts
of one expert each, as many as there are at run time; two rows a part:

    tokens     a b c                      experts of a: 0 2, of b: 2 3, of c: 2 0
    parts      a c | a b | c . | b .      experts 0 2 2 3

Why not `jax.lax.ragged_dot`: XLA multiplies all rows by all experts for it, on CPU and on TPU. A
token with 6 of 64 experts of 1280 x 896 takes 14 ms in parts and 880 with it; 600 tokens take
0.46 s in parts, 2.0 with every expert on every token (two busy cores). Compiled for v5e, a prefill
of 10,000 tokens has 14 times the operations with it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ivc_jax.decoder_parts import ExpertsConfig
from ivc_jax.nn.layers import GatedMLP, dequantized, multiply
from ivc_jax.parallel.constraints import axis_size, partition

# Rows of a part, at most: enough to pay for taking an expert out of the stack.
_PART_ROWS = 256

Bank = dict[str, Any]  # gate_proj and up_proj [E, F, D], down_proj [E, D, F], as they are stored


class Experts(nn.Module):
    """The feed-forward part of a block with experts."""

    config: ExpertsConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, N, D] to [B, N, D]."""
        config, (B, N, D) = self.config, x.shape
        experts, weights = Router(config, name="gate")(x.reshape(-1, D))  # [B N, K] both
        bank = ExpertBank(config, D, name="experts")()
        shape = (B, N, config.chosen)
        mixed = _run_on_mesh(x, experts.reshape(shape), weights.reshape(shape), bank)
        if not config.shared_dim:
            return mixed
        return mixed + GatedMLP(config.shared_dim, D, name="shared_experts")(x)


class Router(nn.Module):
    """Chooses and weighs the experts of a token, in float32 whatever the model's dtype."""

    config: ExpertsConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map [T, D] to the experts, int32 [T, K], and their weights, float32 [T, K]."""
        config = self.config
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=0)
        weight = self.param("weight", init, (config.count, x.shape[-1]))
        exact = jax.lax.Precision.HIGHEST  # accelerators would multiply in half precision
        logits = jnp.einsum(
            "td,ed->te", x.astype(jnp.float32), weight.astype(jnp.float32), precision=exact
        )
        score = jax.nn.softmax if config.score == "softmax" else jax.nn.sigmoid
        scores = order = score(logits)  # [T, E]
        if config.biased:
            name = "e_score_correction_bias"
            order = scores + self.param(name, nn.initializers.zeros, (config.count,))
        _, experts = jax.lax.top_k(_mask_groups(config, order), config.chosen)
        weights = jnp.take_along_axis(scores, experts, axis=1)
        if config.renormalize:
            weights /= weights.sum(axis=1, keepdims=True) + 1e-20
        return experts, weights * config.scale


def _mask_groups(config: ExpertsConfig, order: jax.Array) -> jax.Array:
    """Hide the experts [T, E] of all but the best groups."""
    if config.chosen_groups == config.groups:
        return order
    by_group = order.reshape(len(order), config.groups, -1)  # [T, groups, E / groups]
    best = jax.lax.top_k(by_group, 2 if config.biased else 1)[0].sum(axis=-1)  # [T, groups]
    _, groups = jax.lax.top_k(best, config.chosen_groups)
    seen = (groups[..., None] == jnp.arange(config.groups)).any(axis=1)  # [T, groups]
    return jnp.where(seen[..., None], by_group, -jnp.inf).reshape(order.shape)


class ExpertBank(nn.Module):
    """The weights of all experts, [E, out, in]."""

    config: ExpertsConfig
    width: int

    @nn.compact
    def __call__(self) -> Bank:
        """Return them as they are stored, floats or quantised."""
        inner, outer = self.config.hidden_dim, self.width
        shapes = {
            "gate_proj": (inner, outer),
            "up_proj": (inner, outer),
            "down_proj": (outer, inner),
        }
        return {
            name: _Stack((self.config.count, *shape), name=name)() for name, shape in shapes.items()
        }


class _Stack(nn.Module):
    """A weight of every expert."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> Any:
        if not self.is_initializing():
            return self.get_variable("params", "weight")  # quantised ones have no one shape
        init = nn.initializers.lecun_normal(in_axis=2, out_axis=1, batch_axis=0)
        return self.param("weight", init, self.shape)


def _run_on_mesh(x: jax.Array, experts: jax.Array, weights: jax.Array, bank: Bank) -> jax.Array:
    """Run each device's experts on its samples and add up what they make: [B, N, D].

    The compiler cannot split a loop over rows sorted by expert.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return run_experts(x, experts, weights, bank)
    count = _count(bank)
    split = count % axis_size("model") == 0
    rows = partition(x.shape, "data")

    def run(x: jax.Array, experts: jax.Array, weights: jax.Array, bank: Bank) -> jax.Array:
        if not split:
            return run_experts(x, experts, weights, bank)
        here = _count(bank)
        first = jax.lax.axis_index("model") * here
        own = (experts >= first) & (experts < first + here)
        made = run_experts(x, jnp.where(own, experts - first, here), weights, bank)
        return jax.lax.psum(made, "model")

    return jax.shard_map(
        run,
        in_specs=(rows, rows, rows, PartitionSpec("model") if split else PartitionSpec()),
        out_specs=rows,
        check_vma=False,
    )(x, experts, weights, bank)


def _count(bank: Bank) -> int:
    """Return E, the experts in a bank."""
    return len(jax.tree.leaves(bank)[0])


def run_experts(x: jax.Array, experts: jax.Array, weights: jax.Array, bank: Bank) -> jax.Array:
    """Add up what its experts make of each token: [B, N, D].

    Args:
        x: [B, N, D].
        experts: [B, N, K] int32; E is none of these.
        weights: [B, N, K] float32.
        bank: of the E experts.
    """
    B, N, _ = experts.shape
    tokens, rows = x.reshape(B * N, -1), experts.reshape(-1)  # [T, D], [T K]
    size = _choose_size(len(rows), _count(bank))
    made = run_parts(tokens, rows, bank, size)  # [T K, D]
    weighted = made.reshape(*experts.shape, -1) * weights[..., None]  # [B, N, K, D] float32
    return weighted.sum(axis=2).astype(x.dtype)


def _choose_size(rows: int, count: int) -> int:
    """Choose the rows of a part: about as many as an expert gets, a power of two."""
    size = 1
    while size < _PART_ROWS and size * count < rows:
        size *= 2
    return size


def run_parts(tokens: jax.Array, rows: jax.Array, bank: Bank, size: int) -> jax.Array:
    """Run rows part by part: [T K, D]; a row of no expert gets zeros.

    Args:
        tokens: [T, D].
        rows: [T K], expert of each row; E is none.
        bank: of the E experts.
        size: rows of a part.
    """
    count, total = _count(bank), len(rows)
    order = jnp.argsort(rows, stable=True)
    sizes = jnp.bincount(rows, length=count)  # [E], rows of each expert
    parts = -(-sizes // size)  # [E]
    ends = jnp.cumsum(parts)
    # Where each row goes: the parts of its expert start at a multiple of `size`.
    starts = jnp.append((ends - parts) * size - (jnp.cumsum(sizes) - sizes), 0)  # [E + 1]
    slots = min(total, total // size + count) * size
    place = starts[rows[order]] + jnp.arange(total)
    place = jnp.where(rows[order] < count, place, slots)
    place = jnp.zeros(total, jnp.int32).at[order].set(place)  # [T K]
    source = jnp.zeros(slots, jnp.int32)
    token = jnp.arange(total) // (total // len(tokens))  # [T K], of each row
    source = source.at[place].set(token, mode="drop")  # [slots]; the token of each

    def run_part(part: jax.Array, made: jax.Array) -> jax.Array:
        expert = jnp.searchsorted(ends, part, side="right")
        chosen = jax.lax.dynamic_slice_in_dim(source, part * size, size)
        taken = jax.tree.map(
            lambda stack: jax.lax.dynamic_index_in_dim(stack, expert, keepdims=False), bank
        )
        y = _feed_forward(tokens[chosen], dequantized(taken, tokens.dtype))
        return jax.lax.dynamic_update_slice_in_dim(made, y, part * size, axis=0)

    empty = jnp.zeros((slots, tokens.shape[1]), tokens.dtype)
    made = jax.lax.fori_loop(0, ends[-1], run_part, empty)
    return made.at[place].get(mode="fill", fill_value=0)


def _feed_forward(x: jax.Array, expert: Bank) -> jax.Array:
    """Run rows [n, D] through one expert, whose weights are [out, in]."""
    gate, up = multiply(x, expert["gate_proj"]), multiply(x, expert["up_proj"])  # [n, F] both
    return multiply(jax.nn.silu(gate) * up, expert["down_proj"])
