"""Scores as publications write them: percent, or the points of the benchmark."""

from collections.abc import Iterable

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.reports.labels import short_task

PERCENT = 100.0


def points_of(task: str) -> float:
    """Return what a score of 1 is called: 100 for percent, as for averages, or 2800 for MME."""
    return TASKS[task].scoring.points if task in TASKS else PERCENT


def heading(task: str) -> str:
    """Name a column of scores, and their unit where it is not percent."""
    points = points_of(task)
    return short_task(task) if points == PERCENT else f"{short_task(task)} (of {points:g})"


def in_points(task: str, score: float, digits: int = 1) -> str:
    """Write a score from 0 to 1 in percent with that many digits, or in whole points."""
    points = points_of(task)
    return f"{points * score:.{digits if points == PERCENT else 0}f}"


def scored_by_unit(tasks: Iterable[str]) -> list[str]:
    """List the tasks whose score is no mean over rows (MME, POPE, MMBench, HallusionBench).

    Comparisons that resample rows average the scores of rows instead.
    """
    return [task for task in tasks if task in TASKS and TASKS[task].scoring.unit is not None]
