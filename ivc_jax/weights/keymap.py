"""Which Hugging Face tensor becomes which parameter, as a table that reads in both directions.

A row names the tensor as the published Qwen2-VL and Qwen2.5-VL checkpoints do; what a family lacks
(biases of RMS norms, fc1 or gate_proj) has no parameter, and its row is not used. The regex also
accepts the later generation of names:

    model.layers.3.mlp.up_proj.weight          model.language_model.layers.3.mlp.up_proj.weight
    visual.blocks.3.norm1.weight               model.visual.blocks.3.norm1.weight

A name with `{layer}` is one slice of a stack whose first axis counts layers.
"""

import dataclasses
import enum
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ivc_jax.config import ModelConfig


class Transform(enum.Enum):
    """How the values of a tensor are laid out on the two sides."""

    SAME = "same"
    TRANSPOSE = "transpose"  # PyTorch [out, in], here [in, out]
    CONVOLUTION = "convolution"  # PyTorch [D, channel, time, row, column], here [values, D]

    def to_ours(self, tensor: Any) -> Any:
        """Turn a Hugging Face tensor (NumPy or JAX) into our layout; a view where possible."""
        if self is Transform.SAME:
            return tensor
        return tensor.reshape(tensor.shape[0], -1).T

    def to_hf(self, array: Any, config: ModelConfig) -> Any:
        """Turn our array (NumPy or JAX) into the layout of a Hugging Face tensor."""
        if self is Transform.SAME:
            return array
        if self is Transform.TRANSPOSE:
            return array.T
        return array.T.reshape(self.hf_shape(array.shape, config))

    def hf_shape(self, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
        """Return the shape of the Hugging Face tensor behind our array of `shape`."""
        if self is not Transform.CONVOLUTION:
            return shape if self is Transform.SAME else shape[::-1]
        vision = config.vision
        side = vision.patch_size
        return (shape[-1], vision.in_channels, vision.temporal_patch_size, side, side)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table: `name` is a template, `path` a slash-separated parameter path."""

    name: str
    path: str
    transform: Transform = Transform.SAME

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading layer axis."""
        return "{layer}" in self.name

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regex of the tensor's name in both generations; group `layer` holds the layer."""
        head, _, rest = self.name.partition(".")
        heads = {"model": r"model\.(?:language_model\.)?", "visual": r"(?:model\.)?visual\."}
        rest = re.escape(rest).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d*)")
        return re.compile(heads.get(head, re.escape(head) + r"\.") + rest)


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one tensor goes: a parameter and, for a stack, the layer inside it."""

    rule: Rule
    layer: int | None


def _linear(name: str, path: str, bias: bool) -> list[Rule]:
    kernel = Rule(f"{name}.weight", f"{path}/kernel", Transform.TRANSPOSE)
    return [kernel, Rule(f"{name}.bias", f"{path}/bias")] if bias else [kernel]


def _layer_norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


_LAYER, _OURS = "model.layers.{layer}", "decoder/layers"
_BLOCK, _TOWER = "visual.blocks.{layer}", "vision/blocks"

RULES: tuple[Rule, ...] = (
    Rule("visual.patch_embed.proj.weight", "vision/patch_embed/kernel", Transform.CONVOLUTION),
    *_layer_norm(f"{_BLOCK}.norm1", f"{_TOWER}/norm1"),
    *_layer_norm(f"{_BLOCK}.norm2", f"{_TOWER}/norm2"),
    *_linear(f"{_BLOCK}.attn.qkv", f"{_TOWER}/attn/qkv", bias=True),
    *_linear(f"{_BLOCK}.attn.proj", f"{_TOWER}/attn/proj", bias=True),
    *_linear(f"{_BLOCK}.mlp.fc1", f"{_TOWER}/mlp/fc1", bias=True),
    *_linear(f"{_BLOCK}.mlp.fc2", f"{_TOWER}/mlp/fc2", bias=True),
    *_linear(f"{_BLOCK}.mlp.gate_proj", f"{_TOWER}/mlp/gate_proj", bias=True),
    *_linear(f"{_BLOCK}.mlp.up_proj", f"{_TOWER}/mlp/up_proj", bias=True),
    *_linear(f"{_BLOCK}.mlp.down_proj", f"{_TOWER}/mlp/down_proj", bias=True),
    *_layer_norm("visual.merger.ln_q", "vision/merger/ln_q"),
    *_linear("visual.merger.mlp.0", "vision/merger/mlp/fc1", bias=True),
    *_linear("visual.merger.mlp.2", "vision/merger/mlp/fc2", bias=True),
    Rule("model.embed_tokens.weight", "decoder/embed_tokens/embedding"),
    Rule(f"{_LAYER}.input_layernorm.weight", f"{_OURS}/input_layernorm/scale"),
    *_linear(f"{_LAYER}.self_attn.q_proj", f"{_OURS}/q_proj", bias=True),
    *_linear(f"{_LAYER}.self_attn.k_proj", f"{_OURS}/k_proj", bias=True),
    *_linear(f"{_LAYER}.self_attn.v_proj", f"{_OURS}/v_proj", bias=True),
    *_linear(f"{_LAYER}.self_attn.o_proj", f"{_OURS}/o_proj", bias=False),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", f"{_OURS}/post_attention_layernorm/scale"),
    *_linear(f"{_LAYER}.mlp.gate_proj", f"{_OURS}/mlp/gate_proj", bias=False),
    *_linear(f"{_LAYER}.mlp.up_proj", f"{_OURS}/mlp/up_proj", bias=False),
    *_linear(f"{_LAYER}.mlp.down_proj", f"{_OURS}/mlp/down_proj", bias=False),
    Rule("model.norm.weight", "decoder/norm/scale"),
    *_linear("lm_head", "decoder/lm_head", bias=False),
)

# Buffers that can be recomputed; some versions of the library saved them.
_EXCUSED = re.compile(r"(.*\.)?(rotary_emb|rotary_pos_emb)\.(original_)?inv_freq")


def is_excused(name: str, config: ModelConfig) -> bool:
    """Tell whether a checkpoint may hold this tensor without anybody reading it."""
    # A tied checkpoint sometimes repeats the embedding under the name of the output head.
    tied_head = config.decoder.tie_embeddings and name == "lm_head.weight"
    return tied_head or _EXCUSED.fullmatch(name) is not None


def find_target(name: str, rules: tuple[Rule, ...] = RULES) -> Target | None:
    """Look a Hugging Face tensor name up in the table; None if no row matches.

    Raises:
        ValueError: two rows match.
    """
    matches = [(rule, match) for rule in rules if (match := rule.pattern.fullmatch(name))]
    if len(matches) > 1:
        paths = ", ".join(rule.path for rule, _ in matches)
        raise ValueError(f"tensor name {name!r} matches several rows of the key table: {paths}")
    if not matches:
        return None
    rule, match = matches[0]
    return Target(rule, int(match["layer"]) if rule.stacked else None)


def flatten(params: Any) -> dict[str, Any]:
    """Return the leaves of a parameter tree by slash-separated path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def expected_tensors(params: Any) -> Iterator[tuple[str, Target]]:
    """Yield the published name and the target of every tensor behind a parameter tree.

    Args:
        params: the tree, or its shapes from `jax.eval_shape`.

    Raises:
        ValueError: a parameter has no row in the table.
    """
    leaves = flatten(params)
    if unknown := sorted(set(leaves) - {rule.path for rule in RULES}):
        raise ValueError(f"parameters without a row in the key table: {', '.join(unknown)}")
    for rule in RULES:
        if rule.path not in leaves:
            continue
        if not rule.stacked:
            yield rule.name, Target(rule, None)
            continue
        for layer in range(leaves[rule.path].shape[0]):
            yield rule.name.format(layer=layer), Target(rule, layer)


def to_hf_names(params: Any, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of every tensor of a published checkpoint, from our parameters.

    Arrays are contiguous NumPy in the parameters' dtype and in PyTorch's layout; one exists at a
    time. A model with tied embeddings yields no `lm_head.weight`.

    Raises:
        ValueError: a parameter has no row in the table.
    """
    leaves = flatten(params)
    for name, target in expected_tensors(params):
        leaf = leaves[target.rule.path]
        array = np.asarray(leaf if target.layer is None else leaf[target.layer])
        yield name, np.ascontiguousarray(target.rule.transform.to_hf(array, config))
