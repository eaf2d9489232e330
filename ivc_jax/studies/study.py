"""What an ablation asks: the variants of a method, how they are named, and how they are drawn.

A configuration holds studies beside its methods; the report then has a table and a figure of each.
"""

import dataclasses
from collections.abc import Iterable

FIGURES = ("rows", "lines", "heat")  # differences, curves over x, a map over x and y


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of a study.

    Variants with the same series, label, x and y are one row: their scores are averaged by
    example (such as the seeds of a random control).

    Attributes:
        spec: the method, such as "ivc:layer=3,keep_ratio=0.5".
        series: block of the table, line of the figure.
        label: name of the row within its series.
        x: place on the x axis ("lines", "heat").
        y: place on the y axis ("heat").
        versus: series whose row of the same label, x and y this row is compared with; None is the
            study's reference.
    """

    spec: str
    series: str = ""
    label: str = ""
    x: float | None = None
    y: float | None = None
    versus: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A question and the variants that answer it.

    Attributes:
        name: of the figure's file.
        question: a sentence for the report.
        reference: the full method; a specification among the variants, or "dense".
        figure: "rows" draws differences to the reference, "lines" scores over x, "heat" scores
            over x and y.
    """

    name: str
    title: str
    question: str
    reference: str
    variants: tuple[Variant, ...]
    figure: str = "rows"
    x_label: str = ""
    y_label: str = ""

    def __post_init__(self) -> None:
        if self.figure not in FIGURES:
            raise ValueError(f"figure must be one of {FIGURES}, got {self.figure!r}")
        if self.reference not in {"dense", *(variant.spec for variant in self.variants)}:
            raise ValueError(f"study {self.name}: no variant is the reference {self.reference!r}")
        needed = {"rows": (), "lines": ("x",), "heat": ("x", "y")}[self.figure]
        # A figure without its axes would fail hours later, when the run is over.
        for variant in self.variants:
            for name in needed:
                if getattr(variant, name) is None:
                    raise ValueError(f"study {self.name}: {variant.spec} has no {name}")


def list_methods(studies: Iterable[Study]) -> tuple[str, ...]:
    """List dense and every method of some studies, none twice."""
    specs = [variant.spec for study in studies for variant in study.variants]
    references = [study.reference for study in studies]
    # dense runs first: retention is relative to it
    return tuple(dict.fromkeys(("dense", *references, *specs)))


def read_study(content: dict) -> Study:
    """Read a study back from `dataclasses.asdict`."""
    variants = tuple(Variant(**variant) for variant in content["variants"])
    return Study(**{**content, "variants": variants})
