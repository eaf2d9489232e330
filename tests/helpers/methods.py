"""Methods that cannot run on any model by their name alone, completed for tiny models."""

# Found by calibration on a model; any words do where the choice itself does not matter.
NEEDS = {"embedlens": "vit_sinks=1,llm_sinks=2,dead=4-6"}


def complete(spec: str) -> str:
    """Give a specification what its method needs to run; all others are returned as they are."""
    names, _, fields = spec.partition(":")
    needed = NEEDS.get(names.partition("+")[0])
    return f"{names}:{needed},{fields}".rstrip(",") if needed else spec
