"""Short names of methods and tasks for tables and figures."""

from collections.abc import Sequence

from ivc_jax.evals.benchmarks.tasks import BUNDLED_PREFIX

_SIZES = ("keep_ratio", "budget")


def short_task(task: str) -> str:
    """Drop the name of the bundled benchmark."""
    return task.removeprefix(BUNDLED_PREFIX)


def short_labels(specs: Sequence[str], without: Sequence[str] = ()) -> dict[str, str]:
    """Name methods without keep ratio and budget, and without fields that all of a name share.

    "ivc:layer=3,keep_ratio=0.5" is "ivc" unless another "ivc" has another layer.

    Args:
        without: further fields to leave out, such as "seed".
    """
    fields = {spec: _fields(spec, (*_SIZES, *without)) for spec in specs}
    labels = {}
    for spec in specs:
        name = spec.partition(":")[0]
        peers = [fields[other] for other in specs if other.partition(":")[0] == name]
        telling = [
            f"{key}={value}"
            for key, value in fields[spec].items()
            if any(peer.get(key) != value for peer in peers)
        ]
        labels[spec] = f"{name}:{','.join(telling)}" if telling else name
    return labels


def budget_of(spec: str) -> float | None:
    """Return the budget that a specification names."""
    text = _fields(spec).get("budget")
    return float(text) if text else None


def size_of(spec: str, keep_ratio: float) -> tuple[str, float]:
    """Return what methods are compared at: their budget, or their keep ratio if they have none."""
    budget = budget_of(spec)
    return ("keep_ratio", keep_ratio) if budget is None else ("budget", budget)


def _fields(spec: str, without: Sequence[str] = ()) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in spec.partition(":")[2].split(",") if pair)
    return {key: value for key, _, value in pairs if key not in without}
