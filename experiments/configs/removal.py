"""Do IVC tokens matter? Remove them alone, and as many others, at several layers.

    python experiments/run.py removal
    ivc-jax run removal --model CHECKPOINT --data-dir TSVS --tasks RefCOCO_testA MMStar

The paper's central claim: without these tokens grounding falls, and semantic tasks hardly do. Rows
of a control that is drawn are means over three draws. The first two studies take from all tokens,
before each of the first blocks. The others ask what it is about these tokens, and take from the
background alone: tokens that come as early, lie as close together or have the phase of other
positions are removed in their place, after the same shares of the depth in any model. They run on
tasks whose files say where objects are (a column `objects`, or boxes as answers).
Hardware: two CPU cores. Expected: docs/evidence/removal.
"""

import dataclasses

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_SETS = {  # fractions other than the published 10 %, layers
    "cos + sin, 10 % each": ("", (0, 1, 2, 3, 4, 6)),
    "cos, 10 %": (",sin_fraction=0.0", (0, 2, 4)),
    "sin, 10 %": (",cos_fraction=0.0", (0, 2, 4)),
    "cos + sin, 30 % each": (",cos_fraction=0.3,sin_fraction=0.3", (0, 2, 4)),
}
_DRAWS = (0, 1, 2)
_EARLY = (0.0, 0.17, 0.33)  # blocks 0, 1, 3 of 8; 0, 5, 9 of 28
_DEPTHS = (*_EARLY, 0.5)
_DRAWN = {f",control={name}" for name in ("random", "rank", "block")}


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


def _background(series: str, fields: str = "") -> list[Variant]:
    """List the runs of one control over the depths; all are compared with IVC, IVC with random."""
    versus = {"random": None, "IVC": "random"}.get(series, "IVC")
    depths = _DEPTHS if series in ("random", "IVC") else _EARLY
    return [
        Variant(f"ivc_removal:depth={depth},among=background{fields}{seed}", series,
                x=depth, versus=versus)
        for depth in depths
        for seed in ([f",seed={seed}" for seed in _DRAWS] if fields in _DRAWN else [""])
    ]  # fmt: skip


def _match(name: str, title: str, question: str, controls: dict[str, str]) -> Study:
    """Compare the removal of IVC tokens with that of others.

    Args:
        controls: the fields of each, by name of the row.
    """
    variants = _background("IVC") + _background("random", ",control=random")
    for series, fields in controls.items():
        variants += _background(series, fields)
    return Study(
        name=f"removal_{name}",
        title=title,
        question=(
            f"{question} Background tokens alone are removed, as many in every row. Controls are"
            " compared with the IVC row at the same depth: above 0, to lose IVC tokens costs more."
            " IVC rows are compared with random ones, random ones with the unpruned model."
        ),
        reference="dense",
        variants=tuple(variants),
        figure="lines",
        x_label="share of the blocks before the cut",
    )


_MATCHED = (
    _match(
        "order",
        "Removing IVC tokens, or tokens of the same causal order",
        "Is it that they come early? First and last in raster order, nearest to the first corner,"
        " whole columns from the left or the right, and tokens of the same rows.",
        {
            name.replace("_", " "): f",control={name}"
            for name in ("first", "nearest", "last", "first_columns", "last_columns", "rank")
        },
    ),
    _match(
        "shape",
        "Removing IVC tokens, or tokens that lie as close together",
        "Is it that they lie together? Their mirror images, blocks elsewhere, and an even cover.",
        {
            name.replace("_", " "): f",control={name}"
            for name in ("mirror_lr", "mirror_ud", "mirror_both", "block", "lattice")
        },
    ),
    _match(
        "phase",
        "Removing IVC tokens, or the IVC tokens of shifted positions",
        "Is it their phase? The IVC tokens as they would be if the prompt before the picture were"
        " longer, which attention cannot tell; their number may differ by a few.",
        {f"positions + {offset}": f",position_offset={offset}" for offset in (15, 35, 100)},
    ),
)

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
    *_MATCHED,
)

CONFIG = ablation("removal", STUDIES, limit=32, num_scenes=8, skip_without_objects=True)
