"""The optimiser of both stages: that of `digit_scenes`, warmed up and then along a cosine."""

import optax

from digit_scenes.optimiser import combine

_WARM_UP = 100  # steps
_MUON_RATE, _ADAM_RATE = 0.01, 2e-3


def build(steps: int) -> optax.GradientTransformation:
    """Make the optimiser of a stage of so many steps."""
    warm_up = min(_WARM_UP, steps // 4)
    return combine(
        *(
            optax.warmup_cosine_decay_schedule(
                peak / max(warm_up, 1), peak, warm_up, steps, peak / 50
            )
            for peak in (_MUON_RATE, _ADAM_RATE)
        )
    )
