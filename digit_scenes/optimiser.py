"""The optimiser of all stages: Muon for matrices, AdamW for the rest.

Rates are warmed up, then held or along a cosine.
"""

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

_WARM_UP = 50  # steps
_MUON_RATE, _ADAM_RATE = 0.01, 2e-3
_ADAM_ONLY = ("embed_tokens", "lm_head", "patch_embed", "heads")
# Of the gains of normed queries and keys, where a family norms them. At the rate of other scales
# they stay near 1, with which no head tells one of 144 cells from all others; large from the start,
# heads look at a few cells of chance and learn late.
_GAINS, _GAIN_FACTOR = ("q_norm", "k_norm"), 4.0


def build(steps: int, falls: bool = True) -> optax.GradientTransformation:
    """Make the optimiser of a stage of so many steps; the rate of the last one `falls`."""
    muon_rate, adam_rate = (_schedule(peak, steps, falls) for peak in (_MUON_RATE, _ADAM_RATE))
    usual = optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            muon_rate,
            adam_learning_rate=adam_rate,
            muon_weight_dimension_numbers=_find_dimensions,
            weight_decay=0.01,
        ),
    )
    return optax.chain(usual, optax.masked(optax.scale(_GAIN_FACTOR), _find_gains))


def _schedule(peak: float, steps: int, falls: bool) -> optax.Schedule:
    warm_up = max(min(_WARM_UP, steps // 4), 1)
    if not falls:
        return optax.schedules.warmup_constant_schedule(peak / warm_up, peak, warm_up)
    return optax.warmup_cosine_decay_schedule(peak / warm_up, peak, warm_up, steps, peak / 50)


def _name(path: tuple) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _find_gains(params: optax.Params) -> optax.Params:
    def is_gain(path: tuple, leaf: jax.Array) -> bool:
        return any(name in _GAINS for name in _name(path))

    return jax.tree_util.tree_map_with_path(is_gain, params)


def _find_dimensions(params: optax.Params) -> optax.Params:
    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = _name(path)
        if names[-1] != "weight" or any(name in _ADAM_ONLY for name in names):
            return None
        return MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # [out, in]

    return jax.tree_util.tree_map_with_path(numbers, params)
