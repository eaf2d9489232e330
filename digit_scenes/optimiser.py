"""The optimiser of every stage: Muon for matrices, AdamW for the rest."""

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

_ADAM_ONLY = ("embed_tokens", "lm_head", "patch_embed", "heads")


def _find_dimensions(params: optax.Params) -> optax.Params:
    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if names[-1] != "weight" or any(name in _ADAM_ONLY for name in names):
            return None
        return MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # [out, in]

    return jax.tree_util.tree_map_with_path(numbers, params)


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
