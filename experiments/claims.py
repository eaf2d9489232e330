"""The thirteen claims that were fixed before any run: what each says, its verdict, and why.

(a) to (f) are about the bundled model and follow from the records of ablations, (g) to (m) about
kinds of models that were put to the study (`digit_scenes.study`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from coordinates import Models
from evidence import Evidence, change, is_sure, ranked, retention, score, tally

from digit_scenes.study.verdicts import CLAIMS, FAILS, HOLDS, OPEN, PART, TURNED, Count, decide

SETS = ("cos + sin, 10 % each", "cos, 10 %", "sin, 10 %", "cos + sin, 30 % each")
_SEMANTIC = ("colour", "counting", "existence")
_HARDLY = 0.05  # (b): no interval of a difference reaches further below 0
_KEPT = 99  # (d): percent of the unpruned score
_BEHIND = "not the best, none surely better"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        letter: of the claim.
        words: what it says.
        verdicts: by kind of model; of the bundled model alone under "".
        reason: the numbers that decide.
    """

    letter: str
    words: str
    verdicts: Mapping[str, str]
    reason: str

    def write_verdict(self) -> str:
        """Write the verdict; that of each kind of model where they differ."""
        found = set(self.verdicts.values())
        if len(found) == 1:
            return f"**{found.pop()}**"
        return ", ".join(f"{kind}: **{verdict}**" for kind, verdict in self.verdicts.items())

    def write_row(self) -> str:
        """Write the row of the table of claims."""
        return f"| ({self.letter}) | {self.words} | {self.write_verdict()} | {self.reason} |"


def list_claims(evidence: Evidence, models: Models) -> list[Claim]:
    """Decide all claims.

    Raises:
        ValueError: a record is missing, or has not the rows that decide.
    """
    decisions = (
        _decide_removal,
        _decide_semantic,
        _decide_hosts,
        _decide_retention,
        _decide_best,
        _decide_cuts,
    )
    return [decide(evidence) for decide in decisions] + list_study_claims(models)


def list_study_claims(models: Models) -> list[Claim]:
    """Decide the claims about kinds of models; a claim about axes has no verdict on a line."""
    found = []
    for letter, words in CLAIMS.items():
        verdicts, reasons = {}, []
        for kind in models.records:
            if verdict := decide(letter, models.differences[kind]):
                count = Count.of(models.find(kind, letter))
                verdicts[kind] = verdict
                reasons.append(
                    f"{kind}: {count.above} above, {count.below} below, {count.neither} neither"
                )
        if not verdicts:
            raise ValueError(f"no model was asked about claim ({letter})")
        found.append(Claim(letter, words, verdicts, "; ".join(reasons)))
    return found


def group_claims(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """Sort claims by what became of them, the worst first; a claim counts by its worst kind."""
    fails: Callable[[str], bool] = lambda verdict: verdict in (FAILS, TURNED)  # noqa: E731
    groups: dict[str, list[Claim]] = {
        "What does not replicate": [],
        "What replicates in part, or was not decided": [],
        "What replicates": [],
    }
    for claim in claims:
        verdicts = claim.verdicts.values()
        rank = 0 if any(map(fails, verdicts)) else 2 if {*verdicts} == {HOLDS} else 1
        [*groups.values()][rank].append(claim)
    return groups


def _judge(good: int, bad: int, total: int) -> str:
    """Count what is sure: for a claim, against it, and how much was asked."""
    if not good:
        return FAILS if bad else OPEN
    return HOLDS if good == total else PART


def _decide_removal(evidence: Evidence) -> Claim:
    series = [f"{name}: IVC" for name in SETS]
    rows = [row for row in evidence.rows("removal", "removal") if row.series in series]
    count = tally(row.cells["grounding"] for row in rows)
    return Claim(
        "a",
        "removing IVC tokens hurts grounding more than removing as many random ones",
        {"": _judge(count["worse"], count["better"], _count(rows, "removal"))},
        f"{count['worse']} of {len(rows)} settings surely worse than random,"
        f" {count['better']} surely better, {count['unclear']} neither",
    )


def _decide_semantic(evidence: Evidence) -> Claim:
    rows = evidence.rows("removal", "removal_dense", series=f"{SETS[0]}: IVC")
    _count(rows, "removal_dense")
    ends = [row.cells[f"DigitScenes_{task}"].difference_low for row in rows for task in _SEMANTIC]
    return Claim(
        "b",
        "removing IVC tokens hardly hurts colour, counting and existence",
        {"": HOLDS if min(ends) > -_HARDLY else FAILS},
        f'"hardly": no interval reaches below -{100 * _HARDLY:g} points; the lowest end over layers'
        f" and tasks is {100 * min(ends):+.1f}",
    )


def _decide_hosts(evidence: Evidence) -> Claim:
    found = {
        f"{host} at {budget} %": row.cells["grounding"]
        for budget in (50, 25)
        for host in ("fastv", "pyramiddrop")
        for row in evidence.rows("plus_ivc", f"plus_ivc_{budget}", series="+ivc", label=host)
    }
    count = tally(found.values())
    return Claim(
        "c",
        "+ IVC lifts FastV and PyramidDrop on grounding",
        {"": _judge(count["better"], count["worse"], _count(found, "plus_ivc"))},
        "; ".join(f"{name}: {change(cell)}" for name, cell in found.items()),
    )


def _decide_retention(evidence: Evidence) -> Claim:
    full, dense = (
        evidence.row("plus_ivc", "plus_ivc_50", series="plain", label=name).cells["average"]
        for name in ("ivc", "dense")
    )
    kept, low, high = retention(full, dense)
    return Claim(
        "d",
        f"IVC-Prune at 50 % retains at least {_KEPT} % on average",
        {"": HOLDS if kept >= _KEPT else FAILS},
        f"{kept:.1f} % [{low:.1f}, {high:.1f}] of the unpruned {score(dense)}",
    )


def _decide_best(evidence: Evidence) -> Claim:
    plain = evidence.rows("plus_ivc", "plus_ivc_50", series="plain")
    order = ranked([row for row in plain if row.label != "dense"], "grounding")
    _count(order, "plus_ivc_50")
    full = evidence.row("plus_ivc", "plus_ivc_50", series="plain", label="ivc").cells["grounding"]
    best = order[0].cells["grounding"]
    cells = [row.cells["grounding"] for row in order]
    surpassed = any(cell.difference > 0 and is_sure(cell) for cell in cells)
    return Claim(
        "e",
        "IVC-Prune is the best method at 50 % on grounding",
        {"": HOLDS if best.score <= full.score else FAILS if surpassed else _BEHIND},
        f"best: {order[0].label} {score(best)}; ivc {score(full)}",
    )


def _decide_cuts(evidence: Evidence) -> Claim:
    rows = [*evidence.rows("layer", "progressive_50"), *evidence.rows("layer", "progressive_25")]
    steps = [row for row in rows if row.label.startswith("cuts")]
    (single,) = {row.label for row in rows if not row.versus}
    count = tally(row.cells["average"] for row in steps)
    return Claim(
        "f",
        "one cut at the right layer beats several",
        {"": _judge(count["worse"], count["better"], _count(steps, "progressive"))},
        f"of {len(steps)} progressive runs at equal cache {count['worse']} are surely worse than"
        f" {single}, {count['better']} surely better, {count['unclear']} neither (average over"
        " tasks)",
    )


def _count(rows: Sequence | Mapping, study: str) -> int:
    """Count what decides; nothing decides nothing.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"no row of {study} decides a claim")
    return len(rows)
