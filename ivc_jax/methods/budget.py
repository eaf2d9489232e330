"""Fair budgets: the mean over decoder layers of the share of visual tokens in the cache.

With `budget` a method solves its own schedule, so that all methods can be compared at one number.
A layer counts with what its cache holds after prefill (the x axis of the papers' tables):

    fastv:layer=2,keep_ratio=0.46 on 28 layers     (2 * 1 + 26 * 0.46) / 28 = 0.5
    ivc:keep_ratio=0.5, earlier caches cut too     (28 * 0.5) / 28          = 0.5
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from ivc_jax.methods.base import Method, MethodError, Stage
from ivc_jax.methods.fields import check_keep_ratio


class BudgetError(MethodError):
    """A budget that a method cannot reach on a model."""


_STEPS = 60  # halvings; float64 has 53 bits
_SMALLEST = 1e-3  # share of the tokens; less is no selection any more
_M = TypeVar("_M", bound=Method)


def measure(stages: Sequence[Stage], num_layers: int) -> float:
    """Return the mean over layers of the share of visual tokens that the caches hold."""
    # stages (2, 0.5), (4, 0.2) on six layers: shares 1 1 .5 .5 .2 .2
    shares = [1.0] * num_layers
    for stage in stages:
        start = stage.whole_kv_layers if stage.compact_earlier_kv else stage.layer
        for layer in range(start, num_layers):
            shares[layer] = min(shares[layer], stage.keep_ratio)
    return sum(shares) / num_layers


def solve(
    family: Callable[[float], Sequence[Stage]], num_layers: int, budget: float
) -> float | None:
    """Find x in (0, 1] at which the stages family(x) have the layer mean `budget`.

    Args:
        family: its layer mean grows with x and is 1 at x = 1.

    Returns:
        x, or None if even the smallest x needs more than the budget.
    """
    if measure(family(_SMALLEST), num_layers) > budget:
        return None
    low, high = _SMALLEST, 1.0  # the budget lies between theirs
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if measure(family(middle), num_layers) <= budget else (low, middle)
        )
    return round(low, 12)  # bisection may stop a bit below a round number, which floor would see


def settle_keep_ratio(method: Method, default: float = 0.5) -> None:
    """Give a method of one cut its default keep ratio unless it has a budget; check both.

    Raises:
        MethodError: both are given, or one is outside (0, 1].
    """
    keep_ratio, budget = method.keep_ratio, method.budget
    if budget is not None:
        check_keep_ratio(budget, "budget")
        if keep_ratio is not None:
            raise MethodError(f"{method.name}: keep_ratio and budget exclude each other; give one")
        return
    if keep_ratio is None:
        object.__setattr__(method, "keep_ratio", default)  # frozen, but not yet made
    check_keep_ratio(method.keep_ratio)


def resolve(method: _M, num_layers: int) -> _M:
    """Turn the budget of a method of one cut, if it has one, into its keep ratio.

    Raises:
        BudgetError: the blocks before the cut hold more than the budget already.
    """
    if method.budget is None:
        return method

    def with_share(share: float) -> _M:
        return dataclasses.replace(method, keep_ratio=share, budget=None)

    share = solve(lambda share: with_share(share).stages, num_layers, method.budget)
    if share is None:
        refuse(method, with_share(_SMALLEST).stages, num_layers)
    return with_share(share)


def resolve_early(method: _M, num_layers: int) -> _M:
    """Do the same at the latest layer from the method's own one down that allows it, at least 1.

    Raises:
        BudgetError: the block before layer 1 holds more than the budget already.
    """
    for layer in range(method.layer, 1, -1):
        try:
            return resolve(dataclasses.replace(method, layer=layer), num_layers)
        except BudgetError:
            continue  # the blocks before the cut cost more than the budget: cut one sooner
    return resolve(dataclasses.replace(method, layer=min(method.layer, 1)), num_layers)


def refuse(method: Method, stages: Sequence[Stage], num_layers: int) -> NoReturn:
    """Raise BudgetError: the blocks before the first of `stages` cost more than the budget."""
    least = measure(stages, num_layers)
    raise BudgetError(
        f"{method.name}: budget={method.budget:g} cannot be reached on {num_layers} layers, the "
        f"{stages[0].layer} before the first cut hold every token; the least is {least:.3g}"
    )
