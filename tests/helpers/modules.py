"""Random modules for methods that ask for weights, of models that have none."""

import math
from pathlib import Path

import flax.struct
import jax
import numpy as np

from ivc_jax.engine.modules import name_model
from ivc_jax.methods import MethodError, describe, parse
from ivc_jax.methods.covipal import shape_params
from ivc_jax.methods.requests import Parameters, Weights
from ivc_jax.module_sizes import Sizes
from ivc_jax.weights.modules import write_module

SMALL = Sizes(width=16, heads=2, text_tokens=6)


def draw_module(sizes: Sizes, width: int, seed: int = 0) -> dict:
    """Draw parameters none of which is zero or one."""
    random = np.random.default_rng(seed)

    def draw(leaf) -> np.ndarray:
        drawn = random.normal(size=leaf.shape) / math.sqrt(leaf.shape[0] if leaf.ndim > 1 else 9)
        return (drawn + (leaf.ndim == 1)).astype(np.float32)

    return jax.tree.map(draw, shape_params(sizes, width))


@flax.struct.dataclass
class Given(Parameters):
    """The signal of `Weights`, given as a tree; nothing is said of it."""

    params: dict
    settings = {}  # noqa: RUF012

    def __call__(self, like):
        return self.params


def give_weights(spec: str, config, folder: Path) -> str:
    """Return the specification with a module for the model, if it asks for one."""
    method = parse(spec)
    try:
        cuts = method.resolve(config)
    except MethodError:  # it is the test's affair what that means
        return spec
    asked = (request for stage in cuts.stages for request in cuts.requests(stage))
    if not any(isinstance(request, Weights) for request in asked):
        return spec
    path = folder / "module.safetensors"
    params = draw_module(SMALL, config.decoder.hidden_size)
    write_module(path, params, {"model": name_model(config), "sizes": vars(SMALL)})
    written = describe(method)
    return f"{written}{',' if ':' in written else ':'}weights={path}"
