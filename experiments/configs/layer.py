"""Where to cut: at which layer, and once or several times?

    python experiments/run.py layer

Every cut also shortens the caches of the blocks before it, so that runs of one budget hold equally
much; the operations differ and are in the table. Hardware: two CPU cores.
Expected: docs/evidence/layer.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_BUDGETS = (0.5, 0.25)
_LAYERS = (1, 2, 3, 4, 5, 6)
_DRAWS = (0, 1)


def _sweep() -> Study:
    variants = []
    for budget in _BUDGETS:
        control = f"random, budget {budget:g}"
        for layer in _LAYERS:
            at = f"layer={layer},budget={budget}"
            variants.append(
                Variant(f"ivc:{at}", f"ivc, budget {budget:g}", x=layer, versus=control)
            )
            variants += [Variant(f"random:{at},seed={seed}", control, x=layer) for seed in _DRAWS]
    return Study(
        name="layers",
        title="Layer of the cut",
        question=(
            "IVC-Prune and random tokens, cut before each block. IVC-Prune is compared with random"
            " tokens at the same layer and budget, random tokens with the unpruned model."
        ),
        reference="dense",
        variants=tuple(variants),
        figure="lines",
        x_label="layer of the cut",
    )


def _cuts(budget: float) -> Study:
    series = f"budget {budget:g}"
    once = {f"one cut, layer {layer}": f"ivc:layer={layer},budget={budget}" for layer in _LAYERS}
    several = {
        "cuts 2, 4, 6": "layers=2/4/6",
        "cuts 3, 4, 5": "layers=3/4/5",
        "cuts 3, 5": "layers=3/5",
        "cuts 4, 5": "layers=4/5",
        "cuts 4, 6": "layers=4/6",
    }
    several = {name: f"ivc_progressive:{at},budget={budget}" for name, at in several.items()}
    return Study(
        name=f"progressive_{round(100 * budget)}",
        title=f"One cut or several, budget {budget:g}",
        question=(
            "The same selection rule in one cut and in several that end with the same share."
            " Compared with one cut before layer 5, the default of this model."
        ),
        reference=f"ivc:layer=5,budget={budget}",
        variants=tuple(Variant(spec, series, name) for name, spec in {**once, **several}.items()),
    )


STUDIES = (_sweep(), *map(_cuts, _BUDGETS))

CONFIG = ablation("layer", STUDIES, limit=32, num_scenes=8)
