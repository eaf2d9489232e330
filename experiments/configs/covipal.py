"""CoViPAL's module against random tokens and IVC-Prune at equal budgets, on held-out scenes.

    python experiments/run.py covipal

Scenes are of test digits, which neither the model nor the module has seen. The module is
bundled/covipal; docs/methods.md has the command that trains it, which comes first: none is shipped.
Hardware: two CPU cores. No record of it is committed yet.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.25, 0.1)
_DRAWS = (0, 1)


def _study(budget: float) -> Study:
    trained = f"covipal:budget={budget}"
    variants = [Variant("dense", label="dense"), Variant(trained, label="covipal")]
    variants += [Variant(f"random:budget={budget},seed={seed}", label="random") for seed in _DRAWS]
    return Study(
        name=f"covipal_{round(100 * budget)}",
        title=f"A trained module, budget {budget:g}",
        question="Rows are compared with CoViPAL's module at the same budget.",
        reference=trained,
        variants=tuple(variants),
    )


STUDIES = tuple(map(_study, _BUDGETS))

CONFIG = ablation("covipal", STUDIES, limit=48, num_scenes=16)
