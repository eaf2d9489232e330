"""What is said of samples whose logits are not finite: they have no answer."""

import warnings
from typing import Any

import numpy as np

from ivc_jax.model import Model
from ivc_jax.parallel.batch import fetch


def explain_broken(model: Model) -> str:
    """Say what happened to a sample whose logits are not finite, and the remedy."""
    said = f"logits are not finite in {model.dtype}"
    if model.dtype == np.float32:
        return f"{said}: the weights are damaged or overflow; fetch the checkpoint again"
    wider = "bfloat16 or float32" if model.dtype == np.float16 else "float32"
    return f"{said}: load with dtype {wider}; if that does not help, fetch the checkpoint again"


def warn_broken(model: Model, finite: Any) -> None:
    """Warn of the samples of which `finite` [B] is False, if there are any."""
    broken = np.flatnonzero(~fetch(finite)).tolist()
    if broken:
        rows = ", ".join(map(str, broken))
        # Python shows a text once for each place that it comes from: here the caller of our caller.
        warnings.warn(f"no answer for rows {rows}: {explain_broken(model)}", stacklevel=3)
