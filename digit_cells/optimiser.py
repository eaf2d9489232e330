"""The optimiser of both stages: Muon for matrices, AdamW for the rest; warm up, then a cosine."""

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

_ADAM_ONLY = ("embed_tokens", "lm_head", "patch_embed", "heads")
_WARM_UP = 100  # steps


def _find_dimensions(params: optax.Params) -> optax.Params:
    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if names[-1] != "weight" or any(name in _ADAM_ONLY for name in names):
            return None
        return MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # [out, in]

    return jax.tree_util.tree_map_with_path(numbers, params)


def build(
    steps: int, muon_rate: float = 0.01, adam_rate: float = 2e-3
) -> optax.GradientTransformation:
    """Make the optimiser of a stage of so many steps."""
    warm_up = min(_WARM_UP, steps // 4)
    rise = lambda peak: optax.warmup_cosine_decay_schedule(  # noqa: E731
        peak / max(warm_up, 1), peak, warm_up, steps, peak / 50
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            rise(muon_rate),
            adam_learning_rate=rise(adam_rate),
            muon_weight_dimension_numbers=_find_dimensions,
            weight_decay=0.01,
        ),
    )
