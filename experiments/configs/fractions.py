"""How many IVC tokens, and by which positions?

    python experiments/run.py fractions

The published method takes 10 % of the tokens by V and 10 % by U, at absolute positions, prefix
included. A position offset is what a longer prompt before the image would do: rotary attention
depends on differences of positions and does not change, the IVC set does. Hardware: two CPU cores.
Expected: docs/evidence/fractions.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_FRACTIONS = {0.5: (0.0, 0.1, 0.3), 0.25: (0.0, 0.05, 0.1, 0.2, 0.3)}
_OFFSETS = (8, 16, 32, 128, 512)
_KEPT = (0.5, 0.25)
_PUBLISHED = 0.1


def _write(**fractions: float) -> str:
    """Write the fractions that differ from the published ones, which a record does not name."""
    return "".join(f",{name}={share}" for name, share in fractions.items() if share != _PUBLISHED)


def _grid(keep_ratio: float) -> Study:
    chosen = _FRACTIONS[keep_ratio]
    full = f"ivc:keep_ratio={keep_ratio}"
    variants = tuple(
        Variant(full + _write(cos_fraction=cosine, sin_fraction=sine), "fractions", "",
                x=cosine, y=sine)
        for cosine in chosen
        for sine in chosen
        if cosine + sine <= keep_ratio + 0.1
    )  # fmt: skip
    return Study(
        name=f"fractions_{round(100 * keep_ratio)}",
        title=f"Shares of IVC tokens, keep ratio {keep_ratio:g}",
        question=(
            "Foreground fills up what the IVC tokens leave; where these are more than the keep"
            " ratio, all of them stay. Compared with the published 10 % by V and 10 % by U."
        ),
        reference=full,
        variants=variants,
        figure="heat",
        x_label="cos fraction (of visual tokens)",
        y_label="sin fraction (of visual tokens)",
    )


def _positions(keep_ratio: float) -> Study:
    full = f"ivc:keep_ratio={keep_ratio}"
    choices = [("positions", "absolute", full)]
    choices += [("positions", k, f"{full},positions={k}") for k in ("relative", "index")]
    choices += [("axes", "height and width", f"{full},axes=hw")]
    choices += [("prefix", f"+{offset}", f"{full},position_offset={offset}") for offset in _OFFSETS]
    return Study(
        name=f"positions_{round(100 * keep_ratio)}",
        title=f"Positions in the IVC score, keep ratio {keep_ratio:g}",
        question=(
            "Absolute ids of the prompt (released code), ids counted from the image, raster numbers"
            " (the paper's algorithm box), or the ids that a longer prompt before the image would"
            " give. Compared with absolute ids."
        ),
        reference=full,
        variants=tuple(Variant(spec, series, label) for series, label, spec in choices),
    )


STUDIES = (*map(_grid, _KEPT), *map(_positions, _KEPT))

CONFIG = ablation("fractions", STUDIES, limit=32, num_scenes=8)
