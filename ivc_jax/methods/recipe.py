"""FitPrune's recipes: how many tokens leave behind each block. The released ones, and the search.

A recipe holds for the model and the sequence that it was found on, LLaVA-1.5-7B with 576 tokens.
Read as shares left by depth, linear in between, it says something about any decoder.
"""

from collections.abc import Callable, Sequence

import numpy as np

_TOKENS, _BLOCKS = 576, 32

# Tokens that leave behind each block, by the reduction of FLOPs asked for in percent
# (ywh187/FitPrune, scripts/v1_5/eval). 30 and 40 save 28 and 39 percent.
_RELEASED = {
    30: "0 0 7 6 4 5 16 40 24 21 24 4 2 3 4 0 16 0 11 26 6 32 3 1 0 1 2 2 4 0 0 0",
    40: "0 1 21 13 14 11 41 53 29 15 14 5 1 4 5 1 26 1 13 28 6 27 2 1 0 0 1 1 2 0 0 0",
    50: "3 7 49 24 29 17 59 41 26 8 10 6 2 5 7 2 30 3 13 27 5 23 2 1 0 0 1 1 2 0 0 0",
    55: "6 17 69 31 34 19 59 30 23 6 8 7 2 5 8 2 29 4 12 25 4 19 2 1 0 0 1 0 1 0 0 0",
    60: "14 33 89 36 36 20 55 21 18 4 7 5 2 5 7 4 26 5 11 24 4 18 2 1 0 0 1 0 1 0 0 0",
    70: "48 79 118 41 33 17 36 9 9 2 3 2 1 3 4 8 18 7 8 20 4 13 2 1 0 0 1 0 1 0 0 0",
    80: "128 127 118 35 26 8 13 3 2 1 0 0 0 2 1 8 7 8 5 11 2 6 1 1 0 0 0 1 0 0 0 0",
    90: "262 153 80 19 13 1 2 0 0 0 0 0 0 0 0 1 1 2 1 2 0 1 0 0 0 0 0 1 0 0 0 0",
}
RECIPES = tuple(_RELEASED)


def read_left(recipe: int) -> np.ndarray:
    """Return the share of tokens left at depths 0, 1/32, ..., 1 by a released recipe: [33]."""
    lost = np.array([0, *map(int, _RELEASED[recipe].split())])
    return (_TOKENS - lost.cumsum()) / _TOKENS


def measure_left(left: np.ndarray) -> float:
    """Return the mean over blocks of the share that their caches hold."""
    return float(left[:-1].mean())


def mix_recipes(value: float, measure: Callable[[np.ndarray], float]) -> np.ndarray:
    """Interpolate between the two released recipes around a value; no pruning is one, too.

    Args:
        value: what `measure` shall give; below all recipes the last one is returned.
        measure: a linear function of the shares left.
    """
    known = [np.ones(_BLOCKS + 1), *map(read_left, RECIPES)]
    values = np.array([measure(left) for left in known])  # falls
    place = np.interp(value, values[::-1], np.arange(len(known))[::-1])
    first = min(int(place), len(known) - 2)
    part = place - first
    # A recipe itself comes out bit for bit.
    return known[first] if part == 0 else (1 - part) * known[first] + part * known[first + 1]


def read_depths(left: np.ndarray, layers: Sequence[int], num_layers: int) -> tuple[float, ...]:
    """Read the shares left before blocks `layers` of a decoder.

    Args:
        left: at depths evenly spaced from 0 to 1, [depths].
    """
    depths = np.arange(len(left)) / (len(left) - 1)
    return tuple(map(float, np.interp(np.array(layers) / num_layers, depths, left)))


def choose_cuts(left: np.ndarray, num_layers: int, min_cut: float) -> tuple[int, ...]:
    """Merge cuts behind consecutive blocks until each takes `min_cut` of the unpruned tokens.

    What is too little behind the last of them is not cut. There is one cut at least, behind the
    block that takes most.

    Returns:
        The first block behind each cut.
    """
    layers, last = [], 1.0
    shares = read_depths(left, range(1, num_layers), num_layers)
    for layer, share in enumerate(shares, start=1):
        if last - share >= max(min_cut, 1e-9):
            layers.append(layer)
            last = share
    lost = -np.diff([1.0, *shares])
    return tuple(layers) or (1 + int(np.argmax(lost)),)


def read_trial(
    lost: np.ndarray, tokens: int, reduction: float, cost: Callable[[float], float]
) -> tuple[np.ndarray, bool]:
    """Turn what one alpha takes from samples into a recipe.

    Args:
        lost: tokens that leave behind each block, [samples, L].
        tokens: of a sample before any pruning.
        reduction: share of the FLOPs to save, in (0, 1).
        cost: FLOPs of a block on so many tokens.

    Returns:
        The recipe [L], and whether it saves that much. Where blocks at the present count are cheap
        enough, nothing leaves any more.
    """
    blocks = lost.shape[1]
    recipe, spent, target = np.zeros(blocks, int), 0.0, (1 - reduction) * blocks * cost(tokens)
    for block in range(blocks):
        present = tokens - recipe.sum()
        if spent + (blocks - block) * cost(present) <= target:
            return recipe, True
        spent += cost(present)
        recipe[block] = int(np.floor(lost[:, block].mean()))
    return recipe, False


def search_recipe(
    run: Callable[[float], np.ndarray],
    tokens: int,
    reduction: float,
    cost: Callable[[float], float],
    interval: float = 0.01,
) -> tuple[np.ndarray, float]:
    """Find the least alpha that saves enough, by bisection in [0, 1]; arguments as `read_trial`.

    Args:
        run: what an alpha takes: [samples, L].
        interval: where to stop.

    Returns:
        The recipe of the last alpha that has met the target, and this alpha. (The released script
        prints the last one tried.)

    Raises:
        ValueError: no alpha tried saves as much.
    """
    low, high, found = 0.0, 1.0, None
    while high - low > interval:
        alpha = (low + high) / 2
        recipe, reached = read_trial(run(alpha), tokens, reduction, cost)
        if reached:
            high, found = alpha, recipe
        else:
            low = alpha
    if found is None:
        raise ValueError(f"no recipe saves {reduction:.0%} of the FLOPs: ask for less")
    return found, high
