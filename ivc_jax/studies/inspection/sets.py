"""The kept sets of methods over their grids of layers and keep ratios, for one prompt."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ivc_jax.engine.cost import count_block_flops
from ivc_jax.engine.observe import observe_layers
from ivc_jax.methods import describe
from ivc_jax.methods.base import Method, MethodError
from ivc_jax.model import Model
from ivc_jax.reports.inspector import Sweep
from ivc_jax.studies.inspection.choices import Choices, choose, choose_by_layer, list_observed
from ivc_jax.studies.inspection.grid import Grid, make_grid
from ivc_jax.types import Inputs, Layout

_NEAR_TIES = 0.02  # share of the tokens that may differ between two programs
_APART = (
    "tokens with nearly equal scores were kept otherwise by the prefill of the values asked for,"
    " which is shown there; so it may be at other values."
)
_SEVERAL = "cuts several times: one set as asked, no sliders."
_WHOLE = "keeps every token."
_OTHERWISE = "What it keeps at other values is not known beside its prefill: one set as asked."


def sweep(
    model: Model, inputs: Inputs, methods: Sequence[Method], kept: Sequence[Sequence[int]]
) -> list[Sweep]:
    """Say what methods keep of a prompt at every layer and keep ratio of their grids.

    Args:
        model: that is asked.
        inputs: one collated sample with visuals.
        methods: not resolved.
        kept: what each of them kept in a prefill of its own, in visual tokens. A method whose grid
            says another thing at the values that were asked for is left without one; a few tokens
            may differ, as half precision has it from program to program, and are told.
    """
    valid = np.asarray(inputs.layout.visual_valid)[0]  # [V]
    grids = [make_grid(method, model.config, int(valid.sum())) for method in methods]
    chosen = _choose_together(model, inputs, grids)
    found = []
    for number, (method, grid, mine) in enumerate(zip(methods, grids, kept, strict=True)):
        made = None
        if grid is not None:
            choices = chosen.get(number)
            if choices is None:
                grid = grid.here
                choices = _choose_alone(model, inputs, grid)
            made = choices and _describe(model, inputs.layout, grid, choices)
            made = made and _agree(made, mine)
        if made is None:
            made = _stay(method, mine, valid, _excuse(method, model, grid))
        found.append(made)
    return found


def _choose_together(
    model: Model, inputs: Inputs, grids: Sequence[Grid | None]
) -> dict[int, list[Choices]]:
    """Observe the model once for all methods of several layers; leave out those that cannot."""
    rope = model.config.decoder.rope
    groups: dict[object, list[int]] = {}  # methods under which the model computes the same
    for number, grid in enumerate(grids):
        if grid is not None and len(grid.layers) > 1 and _is_observed(grid):
            groups.setdefault(grid.methods[0][0].rope(rope), []).append(number)
    found = {}
    for numbers in groups.values():
        asked: dict[int, dict] = {}
        for number in numbers:
            grid = grids[number]
            for layer, row in zip(grid.layers, grid.methods, strict=True):
                asked.setdefault(layer, {}).update(dict.fromkeys(list_observed(row)))
        listed = {layer: tuple(requests) for layer, requests in asked.items()}
        try:
            told = observe_layers(model, inputs, listed, grids[numbers[0]].methods[0][0])
        except MethodError:
            continue  # one of them looks farther back than the cut before
        by_request = {
            layer: dict(zip(listed[layer], signals, strict=True)) for layer, signals in told.items()
        }
        for number in numbers:
            grid = grids[number]
            signals = [
                tuple(by_request[layer][request] for request in list_observed(row))
                for layer, row in zip(grid.layers, grid.methods, strict=True)
            ]
            found[number] = choose_by_layer(model, inputs.layout, grid.methods, signals)
    return found


def _is_observed(grid: Grid) -> bool:
    try:
        list_observed(grid.methods[0])
    except MethodError:
        return False
    return True


def _choose_alone(model: Model, inputs: Inputs, grid: Grid) -> list[Choices] | None:
    try:
        return [choose(model, inputs, grid.methods[0])]
    except MethodError:
        return None


def _describe(model: Model, layout: Layout, grid: Grid, choices: Sequence[Choices]) -> Sweep:
    valid = np.asarray(layout.visual_valid)[0]  # [V]
    kept = np.stack([np.asarray(each.kept)[:, 0, valid] for each in choices])  # [L, R, n]
    parts: dict[str, np.ndarray] = {
        name: np.stack([np.asarray(each.parts[name])[0, valid] for each in choices])
        for name in choices[0].parts
    }
    text = int(np.asarray(layout.lengths)[0]) - int(valid.sum())
    flops = np.array([
        [_count_flops(model, text, int(valid.sum()), row, layer) for row in kept[place].sum(axis=1)]
        for place, layer in enumerate(grid.layers)
    ])  # fmt: skip
    return Sweep(grid.layers, grid.ratios, grid.specs, grid.asked, kept, flops, parts, grid.fixed)


def _count_flops(model: Model, text: int, visual: int, kept: int, layer: int) -> float:
    """Count the operations of a prefill that is cut before block `layer`."""
    config = model.config.decoder
    tokens = [text + (visual if block < layer else kept) for block in range(config.num_layers)]
    return float(sum(count_block_flops(config, n, block) for block, n in enumerate(tokens)))


def _agree(found: Sweep, mine: Sequence[int]) -> Sweep | None:
    """Compare with a prefill's set, which is what is shown at its place; None if they are apart."""
    apart = {*mine} ^ {*found.list_kept()}
    if len(apart) > _NEAR_TIES * found.kept.shape[-1]:
        return None
    if not apart:
        return found
    kept = found.kept.copy()
    kept[found.at] = False
    kept[(*found.at, list(mine))] = True
    note = f"{found.note} {len(apart)} {_APART}".strip()
    return dataclasses.replace(found, kept=kept, note=note)


def _excuse(method: Method, model: Model, grid: Grid | None) -> str:
    if grid is not None:
        return _OTHERWISE
    return f"{method.name} {_SEVERAL if method.resolve(model.config).stages else _WHOLE}"


def _stay(method: Method, kept: Sequence[int], valid: np.ndarray, excuse: str) -> Sweep:
    """Show what was kept alone."""
    marked = np.zeros((1, 1, int(valid.sum())), bool)
    marked[0, 0, list(kept)] = True
    empty: Mapping[str, np.ndarray] = {}
    return Sweep((), (None,), ((describe(method),),), (0, 0), marked, None, empty, excuse)
