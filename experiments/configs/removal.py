"""Do IVC tokens matter? Remove them alone, and as many random tokens, at several layers.

    python experiments/run.py removal

The paper's central claim: without these tokens grounding falls, and semantic tasks hardly do. Rows
of a control are means over three draws. Hardware: two CPU cores.
Expected: docs/evidence/removal.
"""

import dataclasses

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_SETS = {  # fractions other than the published 10 %, layers
    "cos + sin, 10 % each": ("", (0, 1, 2, 3, 4)),
    "cos, 10 %": (",sin_fraction=0.0", (0, 2, 4)),
    "sin, 10 %": (",cos_fraction=0.0", (0, 2, 4)),
    "cos + sin, 30 % each": (",cos_fraction=0.3,sin_fraction=0.3", (0, 2, 4)),
}
_DRAWS = (0, 1, 2)


def _variants() -> list[Variant]:
    """List the runs; a random control has the same name, layer and count."""
    found = []
    for name, (fractions, layers) in _SETS.items():
        for layer in layers:
            spec = f"ivc_removal:layer={layer}{fractions}"
            control = f"{name}: random"
            found.append(Variant(spec, f"{name}: IVC", x=layer, versus=control))
            found += [
                Variant(f"{spec},control=random,seed={seed}", control, x=layer) for seed in _DRAWS
            ]
    return found


STUDIES = (
    Study(
        name="removal",
        title="Removing the IVC tokens alone",
        question=(
            "Rows named IVC lose the IVC tokens of the image, rows named random as many drawn at"
            " random; all other tokens stay. IVC rows are compared with random ones at the same"
            " layer, random ones with the unpruned model."
        ),
        reference="dense",
        variants=tuple(_variants()),
        figure="lines",
        x_label="layer of the cut",
    ),
    Study(
        name="removal_dense",
        title="Removing the IVC tokens, against the unpruned model",
        question="The same runs, all compared with the model that sees every token.",
        reference="dense",
        variants=tuple(
            dataclasses.replace(v, label=f"layer {v.x}", x=None, versus=None) for v in _variants()
        ),
    ),
)

CONFIG = ablation("removal", STUDIES, limit=180, num_scenes=21)
