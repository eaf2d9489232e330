"""Records -> docs/findings.md: thirteen claims fixed beforehand, and what was measured.

    python experiments/findings.py docs/evidence docs/findings.md

Every number of the text comes from a file under docs/evidence; the words between them were written
after looking. A verdict follows from a rule that stands beside its claim (`claims.py`).
"""

import pathlib
import sys
from collections.abc import Sequence

from claims import Claim, group_claims, list_claims
from coordinates import Models, write_change
from evidence import Evidence, change, is_sure, ranked, retention, score, tally

from ivc_jax.evals.running.records import write_atomically
from ivc_jax.reports.rendering import make_environment
from ivc_jax.studies.figure import CAPTIONS
from ivc_jax.studies.table import Cell

RULE_BUDGETS = (50, 33, 22, 11, 5)  # percent


def count_rules(evidence: Evidence) -> dict[tuple[str, str], dict[str, int]]:
    """Count by row and rule how it locates beside the released rule, over the budgets asked."""
    cells: dict[tuple[str, str], list[Cell]] = {}
    for budget in RULE_BUDGETS:
        for row in evidence.rows("rules", f"rules_{budget}"):
            if row.series != "released":
                cells.setdefault((row.label, row.series), []).append(row.cells["grounding"])
    return {key: tally(cells[key]) for key in sorted(cells, key=lambda key: key[0])}


def render(folder: pathlib.Path) -> str:
    """Write the page from the records below a folder.

    Raises:
        ValueError: records are missing, or are not what they should be.
    """
    evidence, models = Evidence(folder), Models(folder / "cells")
    claims = list_claims(evidence, models)
    helpers = (score, change, is_sure, tally, retention, ranked, write_change, count_rules)
    return (
        make_environment(__file__)
        .get_template("findings.md.jinja")
        .render(
            evidence=evidence,
            models=models,
            claims=claims,
            groups=group_claims(claims),
            rows=Claim.write_row,
            captions=CAPTIONS,
            rule_budgets=RULE_BUDGETS,
            **{helper.__name__: helper for helper in helpers},
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page from the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 2:
        print("usage: findings.py EVIDENCE PAGE", file=sys.stderr)
        return 2
    try:
        write_atomically(pathlib.Path(given[1]), render(pathlib.Path(given[0])))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
