"""Which Hugging Face tensor becomes which parameter: rules that read in both directions.

A family lists its rules. A rule's `name` is the published name of a tensor, with

    {layer}              stands in the path of the parameter too
    {expert}             the first axis of a parameter counts these
    [model.]             a part that only other generations of the name have
    (model.)             a part that some generations lack

and a rule may take some rows of a fused tensor only. Two key heads with two query heads each:

    wqkv   q0 q1 k0 v0  q2 q3 k1 v1      rules of that name, with `rows` in units of head_dim:
                                         q_proj 0 1 4 5    k_proj 2 6    v_proj 3 7
"""

import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ivc_jax.config import ModelConfig

# what names count, in this order
_COUNTED = re.compile(r"\{(layer|expert)\}")
_NUMBER = re.compile(r"(?<=/)\d+(?=/)")  # of a block, in a path
_CELL = 4  # patches
# group 1: of other generations, group 2: published
_OPTIONAL = re.compile(r"\[([^]]*)\]|\(([^)]*)\)")


class Transform(enum.Enum):
    """How the values of a tensor are laid out on the two sides."""

    SAME = "same"
    CONVOLUTION = "convolution"  # PyTorch [D, channel, (time,) row, column], here [D, values]
    ROW = "row"  # [1, ...], here [...]
    TOKEN = "token"  # [1, 1, ...], here [...]
    CELL = "cell"  # [out, channel, patch of a 2 x 2 cell], here [out, patch, channel]; both flat

    @property
    def mixes_columns(self) -> bool:
        """Whether an axis of ours is made of several there: a part of it is a part of none."""
        return self in (Transform.CONVOLUTION, Transform.CELL)

    @property
    def leading(self) -> int:
        """Axes of size one that the Hugging Face tensor has in front."""
        return {Transform.ROW: 1, Transform.TOKEN: 2}.get(self, 0)

    def to_ours(self, tensor: Any) -> Any:
        """Turn a Hugging Face tensor (NumPy or JAX) into our layout; a view if it can be."""
        if self is Transform.CONVOLUTION:
            return tensor.reshape(tensor.shape[0], -1)
        if self is Transform.CELL:
            return tensor.reshape(len(tensor), -1, _CELL).swapaxes(1, 2).reshape(tensor.shape)
        return tensor.reshape(tensor.shape[self.leading :])

    def to_hf(self, array: Any, config: ModelConfig) -> Any:
        """Turn our array (NumPy or JAX) into the layout of a Hugging Face tensor; a view if it can
        be."""
        if self is Transform.CELL:
            return array.reshape(len(array), _CELL, -1).swapaxes(1, 2).reshape(array.shape)
        return array.reshape(self.hf_shape(array.shape, config))

    def hf_shape(self, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
        """Return the shape of the Hugging Face tensor behind our array of `shape`."""
        if self is not Transform.CONVOLUTION:
            return (*(1,) * self.leading, *shape)
        vision = config.vision
        # a tower without time has no axis for it
        time = (vision.temporal_patch_size,) if vision.temporal_patch_size > 1 else ()
        side = vision.patch_size
        return (shape[0], vision.in_channels, *time, side, side)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a family's table.

    Attributes:
        name: template of the tensor's name.
        path: slash-separated path of the parameter, with `{layer}` if it lies in a block.
        transform: between the two layouts.
        rows: the rows of the Hugging Face tensor that this parameter takes, in its own order; the
            rules that share a name share out its tensor. None is all of them.
        layers: the first layer of the names that lies among these blocks, and the one behind
            their last (None: to the end), for models whose blocks are not all alike.
    """

    name: str
    path: str
    transform: Transform = Transform.SAME
    rows: Callable[[ModelConfig], np.ndarray] | None = None
    layers: tuple[int, int | None] = (0, None)

    @functools.cached_property
    def published(self) -> str:
        """The name as it is written, still with `{layer}` and `{expert}`."""
        return _OPTIONAL.sub(lambda part: part[2] or "", self.name)

    @functools.cached_property
    def axes(self) -> int:
        """Leading axes of the parameter that the name counts."""
        return len(_COUNTED.findall(self.name)) - len(_COUNTED.findall(self.path))

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regex of the name in all generations, with groups `layer` and `expert`."""
        # "(model.)norm" becomes "<model.>norm", then "(?:model\.)?norm"
        regex = _OPTIONAL.sub(lambda part: f"<{part[1] or part[2]}>", self.name)
        regex = re.escape(regex).replace("<", "(?:").replace(">", ")?")
        # no leading zeros: "01" would be a second name
        return re.compile(re.sub(r"\\\{(layer|expert)\\\}", r"(?P<\1>0|[1-9]\\d*)", regex))

    def match(self, name: str) -> "Target | None":
        """Return where the tensor of this name goes by this rule, None if it is not its."""
        found = self.pattern.fullmatch(name)
        if found is None:
            return None
        index = [int(found[axis]) for axis in _COUNTED.findall(self.name)]  # layer, expert
        if index:
            first, stop = self.layers
            if index[0] < first or (stop is not None and index[0] >= stop):
                return None
            index[0] -= first  # place among these blocks
        return Target(self, tuple(index))


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one tensor goes: the parameter of a block (and the place of its expert there)."""

    rule: Rule
    index: tuple[int, ...] = ()  # (), (layer,) or (layer, expert)

    @property
    def path(self) -> str:
        """Slash-separated path of the parameter."""
        return self.rule.path.format(layer=self.index[0]) if self.index else self.rule.path

    @property
    def place(self) -> tuple[int, ...]:
        """Place in the leading axes of the parameter: () or (expert,)."""
        return self.index[len(self.index) - self.rule.axes :]

    @property
    def name(self) -> str:
        """The published name of the tensor."""
        index = list(self.index)
        if index:
            index[0] += self.rule.layers[0]  # number of the layer in the file
        axes = _COUNTED.findall(self.rule.name)
        return self.rule.published.format(**dict(zip(axes, index, strict=True)))


def map_linear(name: str, path: str, bias: bool = True) -> list[Rule]:
    """Return the rules of a linear layer."""
    weight = Rule(f"{name}.weight", f"{path}/weight")
    return [weight, Rule(f"{name}.bias", f"{path}/bias")] if bias else [weight]


def map_norm(name: str, path: str) -> list[Rule]:
    """Return the rules of a norm with a bias."""
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


def find_targets(name: str, rules: Iterable[Rule]) -> tuple[Target, ...]:
    """Look a Hugging Face tensor name up: one target, or several that share its rows; or none.

    Raises:
        ValueError: several rules want the whole tensor, or one parameter wants it twice.
    """
    targets = tuple(target for rule in rules if (target := rule.match(name)))
    paths = [target.rule.path for target in targets]
    whole = any(target.rule.rows is None for target in targets)
    if len(targets) > 1 and (whole or len(set(paths)) < len(paths)):
        raise ValueError(
            f"tensor name {name!r} matches several rows of the key table: {', '.join(paths)}"
        )
    return targets


def join(path: tuple) -> str:
    """Write a path of `jax.tree_util` with slashes: "decoder/layers/3/norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(params: Any) -> dict[str, Any]:
    """Return the leaves of a parameter tree by slash-separated path."""
    return {join(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def find_block(path: str) -> tuple[int, ...]:
    """Return the number of the block that a path names: (3,) of "decoder/layers/3/norm", or ()."""
    return tuple(map(int, _NUMBER.findall(path)))


def drop_block(path: str) -> str:
    """Return the path of a parameter whose blocks are stacked: "decoder/layers/norm"."""
    return _NUMBER.sub("", path).replace("//", "/")


def list_targets(params: Any, rules: Sequence[Rule]) -> dict[str, list[Target]]:
    """Return the targets of every tensor behind a parameter tree, by its published name.

    Args:
        params: the tree, or its shapes from `jax.eval_shape`.
        rules: of the family.

    Raises:
        ValueError: a parameter has no row in the table.
    """
    leaves = flatten(params)
    blocks: dict[str, list[str]] = {}
    for path in sorted(leaves, key=find_block):
        # "decoder/layers/3/norm" is one of "decoder/layers/{layer}/norm"
        blocks.setdefault(_NUMBER.sub("{layer}", path), []).append(path)
    if unknown := sorted(set(blocks) - {rule.path for rule in rules}):
        raise ValueError(f"parameters without a row in the key table: {', '.join(unknown)}")
    tensors: dict[str, list[Target]] = {}
    for rule in rules:
        for path in blocks.get(rule.path, ()):
            for place in np.ndindex(leaves[path].shape[: rule.axes]):  # () or (expert,)
                target = Target(rule, (*find_block(path), *place))
                tensors.setdefault(target.name, []).append(target)
    return tensors


def join_shapes(
    targets: Sequence[Target], leaves: dict[str, Any], config: ModelConfig
) -> tuple[int, ...]:
    """Return the shape of the Hugging Face tensor that goes to these targets.

    Args:
        targets: all of one tensor.
        leaves: the parameters by path, or their shapes; blocks apart.
        config: of the model.
    """
    shapes = [
        target.rule.transform.hf_shape(leaves[target.path].shape[target.rule.axes :], config)
        for target in targets
    ]
    # Rows add up: three parts [8, 5] [4, 5] [4, 5] are a tensor [16, 5].
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def list_shapes(
    params: Any, config: ModelConfig, rules: Sequence[Rule]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a published checkpoint by name; see `to_hf_names`."""
    leaves = flatten(params)
    expected = list_targets(params, rules)
    return {name: join_shapes(targets, leaves, config) for name, targets in expected.items()}


def to_hf_names(
    params: Any, config: ModelConfig, rules: Sequence[Rule]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of every tensor of a published checkpoint, from our parameters.

    Arrays are contiguous NumPy in the parameters' dtype and in PyTorch's layout; one exists at a
    time. A model with tied embeddings yields no output head.

    Raises:
        ValueError: a parameter has no row in the table.
    """
    leaves = flatten(params)
    for name, targets in list_targets(params, rules).items():
        parts = []
        for target in targets:
            leaf = leaves[target.path]
            array = np.asarray(leaf[target.place] if target.place else leaf)  # [out, in], [out]
            parts.append(np.ascontiguousarray(target.rule.transform.to_hf(array, config)))
        if targets[0].rule.rows is None:
            yield name, parts[0]
            continue
        # rows of all parts: every one is written below
        tensor = np.empty(join_shapes(targets, leaves, config), parts[0].dtype)
        for target, part in zip(targets, parts, strict=True):
            tensor[target.rule.rows(config)] = part
        yield name, tensor
