"""The optimiser of both stages: that of `digit_scenes`, warmed up and then along a cosine."""

import jax
import optax

from digit_scenes.optimiser import combine

_WARM_UP = 100  # steps
_MUON_RATE, _ADAM_RATE = 0.01, 2e-3
# Of the gains of normed queries and keys, where a family norms them. At the rate of other scales
# they stay near 1, with which no head tells one of 144 cells from all others; large from the start,
# heads look at a few cells of chance and learn late.
_GAINS, _GAIN_FACTOR = ("q_norm", "k_norm"), 10.0


def build(steps: int) -> optax.GradientTransformation:
    """Make the optimiser of a stage of so many steps."""
    warm_up = min(_WARM_UP, steps // 4)
    usual = combine(
        *(
            optax.warmup_cosine_decay_schedule(
                peak / max(warm_up, 1), peak, warm_up, steps, peak / 50
            )
            for peak in (_MUON_RATE, _ADAM_RATE)
        )
    )
    return optax.chain(usual, optax.masked(optax.scale(_GAIN_FACTOR), _find_gains))


def _find_gains(params: optax.Params) -> optax.Params:
    def is_gain(path: tuple, leaf: jax.Array) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return any(name in _GAINS for name in names)

    return jax.tree_util.tree_map_with_path(is_gain, params)
