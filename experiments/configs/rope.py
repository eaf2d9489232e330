"""Which rotary frequencies matter: in the IVC score, and in the model's own attention?

    python experiments/run.py rope

Planes are numbered from the fastest; the bundled model has 24: 0-5 turn with time, 6-14 with the
row, 15-23 with the column. In the score a choice of planes moves the IVC set; in the attention the
planes left out stop turning, nothing is pruned. A keep ratio of 0.25 leaves little room beside the
IVC tokens, so that they count; 0.5 is the published one. Hardware: two CPU cores; the same command
goes on after a kill. Expected: docs/evidence/rope.
"""

from ivc_jax.commands.settings import ablation
from ivc_jax.studies.study import Study, Variant

_PLANES = 24
_BANDS = tuple(f"{first}-{first + 3}" for first in range(0, _PLANES, 4))
_AXES = {"time": "0-5", "height": "6-14", "width": "15-23"}
_THIRDS = {"high": "0-7", "middle": "8-15", "low": "16-23"}
_THETAS = (3.0, 30.0, 1e2, 1e4)  # the model's own is 10


def _others(planes: str) -> str:
    """Name all planes but a run of them."""
    first, _, last = planes.partition("-")
    first, last = int(first), int(last or first)
    parts = [(0, first - 1), (last + 1, _PLANES - 1)]
    return "/".join(f"{a}-{b}" for a, b in parts if a <= b)


def _score(keep_ratio: float, single: bool) -> Study:
    full = f"ivc:keep_ratio={keep_ratio}"
    choices = [("all", "all planes", full), ("all", "no IVC tokens",
               f"{full},cos_fraction=0.0,sin_fraction=0.0")]  # fmt: skip
    choices += [("words", "own section of each axis", f"{full},frequencies=section")]
    choices += [("thirds", name, f"{full},frequencies={name}") for name in _THIRDS]
    choices += [("all but a band", f"-{b}", f"{full},frequencies={_others(b)}") for b in _BANDS]
    choices += [("theta", f"{theta:g}", f"{full},theta={theta}") for theta in _THETAS]
    if single:
        choices += [
            ("one plane", str(plane), f"{full},frequencies={plane}") for plane in range(_PLANES)
        ]
    return Study(
        name=f"score_{round(100 * keep_ratio)}",
        title=f"Frequencies in the IVC score, keep ratio {keep_ratio:g}",
        question=(
            "The IVC set is chosen by sums over some of the planes. Everything is compared with the"
            " full method, whose sums run over all planes."
        ),
        reference=full,
        variants=tuple(Variant(spec, series, label) for series, label, spec in choices),
    )


def _attention() -> Study:
    stopped = [("only these turn", f"{name} third", _others(run)) for name, run in _THIRDS.items()]
    stopped += [("stopped", f"{name} third", run) for name, run in _THIRDS.items()]
    stopped += [("stopped", f"axis {name}", run) for name, run in _AXES.items()]
    stopped += [("stopped", f"band {band}", band) for band in _BANDS]
    stopped += [("stopped", "all planes", f"0-{_PLANES - 1}")]
    stopped += [("one plane stopped", str(plane), str(plane)) for plane in range(_PLANES)]
    variants = [Variant(f"dense+rope:stop_planes={run}", *names) for *names, run in stopped]
    variants += [
        Variant(f"dense+rope:attention_theta={theta}", "theta", f"{theta:g}") for theta in _THETAS
    ]
    return Study(
        name="attention",
        title="Frequencies in the model's own attention",
        question=(
            "No token is pruned. The planes named stop turning in every block of the decoder, or"
            " the base of the embedding is another one than the model was trained with. Everything"
            " is compared with the unchanged model."
        ),
        reference="dense",
        variants=tuple(variants),
    )


STUDIES = (_score(0.25, single=True), _score(0.5, single=False), _attention())

CONFIG = ablation("rope", STUDIES, limit=32, num_scenes=8)
