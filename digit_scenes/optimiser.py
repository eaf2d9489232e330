"""The optimiser of every stage: Muon for matrices, AdamW for the rest, warm up, hold, decay."""

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

_ADAM_ONLY = ("embed_tokens", "lm_head", "patch_embed", "heads")


def schedule(peak: float, steps: int, warmup: int = 30, decay: float = 0.25) -> optax.Schedule:
    """Rise over `warmup` steps, hold, and fall to a twentieth over the last part `decay`."""
    falling = max(int(steps * decay), 1)
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / warmup, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, peak / 20, falling),
        ],
        [warmup, max(steps - falling, warmup)],
    )


def _find_dimensions(params: optax.Params) -> optax.Params:
    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if names[-1] != "weight" or any(name in _ADAM_ONLY for name in names):
            return None
        return MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # [out, in]

    return jax.tree_util.tree_map_with_path(numbers, params)


def build(
    steps: int,
    muon_rate: float = 0.02,
    adam_rate: float = 2e-3,
    scale: float = 1.0,
    decay: float = 0.25,
) -> optax.GradientTransformation:
    """Make the optimiser of a stage; `scale` multiplies both rates, `decay` ends with a fall."""
    return combine(
        schedule(muon_rate * scale, steps, decay=decay),
        schedule(adam_rate * scale, steps, decay=decay),
    )


def combine(muon_rate: optax.Schedule, adam_rate: optax.Schedule) -> optax.GradientTransformation:
    """Make an optimiser of two schedules; gradients are clipped."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            muon_rate,
            adam_learning_rate=adam_rate,
            muon_weight_dimension_numbers=_find_dimensions,
            weight_decay=0.01,
        ),
    )
