"""How few tokens do? Keep ratios from 0.05 to 1, with and without the IVC tokens.

    python experiments/run.py keep

A budget below 0.5 shrinks the cos and sin fractions with it, so that IVC tokens keep their part of
what stays. FastV and PyramidDrop start where the first blocks allow it. Hardware: two CPU cores.
Expected: docs/evidence/keep.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_SHALLOWEST = 0.2  # FastV keeps the first block whole: an eighth of the caches at least
_DRAWS = (0, 1, 2)


def _variants() -> list[Variant]:
    found = []
    for budget in _BUDGETS:
        at = f"budget={budget}"
        bare = f"ivc:cos_fraction=0.0,sin_fraction=0.0,{at}"
        found.append(Variant(f"ivc:{at}", "ivc", x=budget, versus="random"))
        found.append(Variant(bare, "foreground alone", x=budget, versus="ivc"))
        found += [Variant(f"random:{at},seed={seed}", "random", x=budget) for seed in _DRAWS]
        found.append(Variant(f"uniform:{at}", "uniform", x=budget, versus="ivc"))
        if _SHALLOWEST <= budget < 1:
            found.append(Variant(f"fastv:{at}", "fastv", x=budget, versus="ivc"))
            found.append(Variant(f"pyramiddrop:{at}", "pyramiddrop", x=budget, versus="ivc"))
    return found


STUDIES = (
    Study(
        name="keep",
        title="Accuracy and budget",
        question=(
            "Scores at equal shares of the visual tokens in the caches. Foreground alone is"
            " IVC-Prune without IVC tokens. IVC-Prune is compared with random tokens, random tokens"
            " with the unpruned model, the others with IVC-Prune at the same budget."
        ),
        reference="dense",
        variants=tuple(_variants()),
        figure="lines",
        x_label="budget (share of visual tokens in the cache)",
    ),
)

CONFIG = ablation("keep", STUDIES, limit=32, num_scenes=8, skip_unreachable=True)
