"""Short names of methods and tasks for tables and figures."""

from collections.abc import Sequence

from ivc_jax.evals.tasks import BUNDLED_PREFIX


def short_task(task: str) -> str:
    """Drop the name of the bundled benchmark."""
    return task.removeprefix(BUNDLED_PREFIX)


def short_labels(specs: Sequence[str]) -> dict[str, str]:
    """Name methods without their keep ratio, and without fields that all of a name share.

    "ivc:layer=3,keep_ratio=0.5" is "ivc" unless another "ivc" has another layer.
    """
    fields = {spec: _fields(spec) for spec in specs}
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


def _fields(spec: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in spec.partition(":")[2].split(",") if pair)
    return {key: value for key, _, value in pairs if key != "keep_ratio"}
