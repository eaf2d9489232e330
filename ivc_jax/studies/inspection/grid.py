"""The layers and keep ratios at which the inspector shows what a method keeps.

Keep ratios are 0.05, 0.1, ... 0.3, 0.4, ... 1, finer where little stays, and the one that was
asked for. Layers are all before which the method can cut; of long prompts on deep models evenly
chosen ones, so that the page stays small, the one that was asked for among them.
"""

import dataclasses
from collections.abc import Sequence

from ivc_jax.config import ModelConfig
from ivc_jax.methods import describe
from ivc_jax.methods.base import Method, MethodError
from ivc_jax.methods.modifier import unwrap

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MOST_CELLS = 60_000  # tokens times layers: at most some 200 KB a method; 28 layers of 2,100 tokens


@dataclasses.dataclass(frozen=True)
class Grid:
    """A method at several layers and keep ratios.

    Attributes:
        layers: of the cuts.
        ratios: ascending, or (None,) of a method without one to choose.
        methods: resolved, by layer and keep ratio.
        specs: of the same, as `ivc_jax.methods.parse` reads them.
        asked: places of the layer and the keep ratio that were asked for.
        fixed: why a slider is missing; "" if none is.
    """

    layers: tuple[int, ...]
    ratios: tuple[float | None, ...]
    methods: tuple[tuple[Method, ...], ...]
    specs: tuple[tuple[str, ...], ...]
    asked: tuple[int, int]
    fixed: str = ""

    @property
    def here(self) -> "Grid":
        """The same with the layer that was asked for alone."""
        place = self.asked[0]
        return dataclasses.replace(
            self,
            layers=(self.layers[place],),
            methods=(self.methods[place],),
            specs=(self.specs[place],),
            asked=(0, self.asked[1]),
        )


def make_grid(method: Method, config: ModelConfig, tokens: int) -> Grid | None:
    """Vary layer and keep ratio of a method as far as it has them; None without a single cut.

    Args:
        method: not resolved.
        config: of the model.
        tokens: visual tokens of the prompt.
    """
    resolved = method.resolve(config)
    if len(resolved.stages) != 1:
        return None
    (stage,), fields = resolved.stages, vars(unwrap(method)[-1])
    moves, shrinks = "layer" in fields, "keep_ratio" in fields
    layers = _choose_layers(config.decoder.num_layers, tokens, stage.layer) if moves else None
    ratio = unwrap(resolved)[-1].keep_ratio if shrinks else None
    ratios = sorted({*RATIOS, ratio}) if shrinks else [None]
    found: dict[int, list[tuple[Method, str]]] = {}
    for layer in layers or [stage.layer]:
        row = [_vary(method, config, layer if moves else None, each) for each in ratios]
        if layer == stage.layer:  # as it is: a budget says more than its keep ratio
            row[ratios.index(ratio)] = resolved, describe(method)
        if all(row):
            found[layer] = row
    if stage.layer not in found:
        return None
    return Grid(
        tuple(found),
        tuple(ratios),
        tuple(tuple(each for each, _ in row) for row in found.values()),
        tuple(tuple(spec for _, spec in row) for row in found.values()),
        (list(found).index(stage.layer), ratios.index(ratio)),
        _explain(method.name, stage.layer, moves, shrinks),
    )


def _vary(
    method: Method, config: ModelConfig, layer: int | None, ratio: float | None
) -> tuple[Method, str] | None:
    """Return a method at another layer and keep ratio, resolved, and what it is called."""
    values = {"layer": layer, "keep_ratio": ratio}
    values = {name: value for name, value in values.items() if value is not None}
    try:
        changed = with_values(method, **values)
        resolved = changed.resolve(config)
    except MethodError:
        return None  # not before this block, or not so few tokens
    single = len(resolved.stages) == 1 and layer in (None, resolved.stages[0].layer)
    return (resolved, describe(changed)) if single else None


def with_values(method: Method, **values: float) -> Method:
    """Return a method with other values of fields; a modifier changes those of its host.

    A keep ratio takes the place of a budget.

    Raises:
        MethodError: values that it cannot take.
    """
    if hasattr(method, "host"):
        return dataclasses.replace(method, host=with_values(method.host, **values))
    if "keep_ratio" in values and "budget" in vars(method):
        values = {**values, "budget": None}
    return dataclasses.replace(method, **values)


def _choose_layers(count: int, tokens: int, asked: int) -> Sequence[int]:
    most = max(2, MOST_CELLS // max(tokens, 1))
    step = -(-count // most)
    return sorted({*range(asked % step, count, step)})


def _explain(name: str, layer: int, moves: bool, shrinks: bool) -> str:
    if moves:
        return "" if shrinks else f"{name} has no keep ratio to choose."
    place = f"always cuts before block {layer}" if layer else "cuts before the decoder"
    return f"{name} {place}: no layer to choose" + ("." if shrinks else ", and no keep ratio.")
