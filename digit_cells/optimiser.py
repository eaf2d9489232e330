"""The optimiser of all stages: that of `digit_scenes`, warmed up, then held or along a cosine."""

import jax
import optax

from digit_scenes.optimiser import combine

_WARM_UP = 50  # steps
_MUON_RATE, _ADAM_RATE = 0.01, 2e-3
# Of the gains of normed queries and keys, where a family norms them. At the rate of other scales
# they stay near 1, with which no head tells one of 144 cells from all others; large from the start,
# heads look at a few cells of chance and learn late.
_GAINS, _GAIN_FACTOR = ("q_norm", "k_norm"), 4.0


def build(steps: int, falls: bool = True) -> optax.GradientTransformation:
    """Make the optimiser of a stage of so many steps; the rate of the last one `falls`."""
    usual = combine(*(_schedule(peak, steps, falls) for peak in (_MUON_RATE, _ADAM_RATE)))
    return optax.chain(usual, optax.masked(optax.scale(_GAIN_FACTOR), _find_gains))


def _schedule(peak: float, steps: int, falls: bool) -> optax.Schedule:
    warm_up = max(min(_WARM_UP, steps // 4), 1)
    if not falls:
        return optax.schedules.warmup_constant_schedule(peak / warm_up, peak, warm_up)
    return optax.warmup_cosine_decay_schedule(peak / warm_up, peak, warm_up, steps, peak / 50)


def _find_gains(params: optax.Params) -> optax.Params:
    def is_gain(path: tuple, leaf: jax.Array) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return any(name in _GAINS for name in names)

    return jax.tree_util.tree_map_with_path(is_gain, params)
