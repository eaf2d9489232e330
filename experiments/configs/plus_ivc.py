"""Do IVC tokens help other methods? Every method with and without them, at equal budgets.

    python experiments/run.py plus_ivc

Under a budget IVC tokens take their share out of it: a host gets less foreground for them.
Hardware: two CPU cores. Expected: docs/evidence/plus_ivc.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.5, 0.25)
_DRAWS = (0, 1, 2)
_HOSTS = (
    *("uniform", "fastv", "pyramiddrop", "sparsevlm", "holov", "scope", "visiondrop", "fsr"),
    *("nuwa", "vflowopt"),
)


def _pair(host: str, label: str, budget: float, fields: str = "") -> list[Variant]:
    return [
        Variant(f"{host}:budget={budget}{fields}", "plain", label),
        Variant(f"{host}+ivc:budget={budget}{fields}", "+ivc", label, versus="plain"),
    ]


def _study(budget: float) -> Study:
    full = f"ivc:budget={budget}"
    variants = [Variant("dense", "plain", "dense"), Variant(full, "plain", "ivc")]
    variants += [variant for host in _HOSTS for variant in _pair(host, host, budget)]
    for seed in _DRAWS:
        variants += _pair("random", "random", budget, f",seed={seed}")
    return Study(
        name=f"plus_ivc_{round(100 * budget)}",
        title=f"IVC tokens for other methods, budget {budget:g}",
        question=(
            "Rows +ivc are compared with the same method without, plain rows with IVC-Prune at the"
            " same budget."
        ),
        reference=full,
        variants=tuple(sorted(variants, key=lambda variant: variant.series != "plain")),
    )


STUDIES = tuple(map(_study, _BUDGETS))

CONFIG = ablation("plus_ivc", STUDIES, limit=32, num_scenes=8, skip_unreachable=True)
