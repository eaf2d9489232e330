"""Models of released widths with random weights, and prompts of any length for them."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import ivc_jax
from ivc_jax.config import DecoderConfig, ModelConfig
from ivc_jax.families import find_family, list_sizes, parse_config
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.types import Inputs
from ivc_jax.weights import keymap
from ivc_jax.weights.placement import abstract_params

TEXT = 64  # text tokens of a prompt
SMALL_VOCABULARY = {
    "vocab_size": 512,
    **{"image_token_id": 500, "video_token_id": 501},
    **{"vision_start_token_id": 502, "vision_end_token_id": 503},
}
_TINY = {
    **{"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
    **SMALL_VOCABULARY,
}
# Where the tower is not the question it is a toy: visual tokens are handed over as vectors.
_TOY_TOWER = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 2}


def choose_sizes(size: str, blocks: int, **changed: Any) -> dict[str, Any]:
    """Return the `config.json` of a Qwen2-VL decoder of so many blocks with a toy tower.

    Args:
        size: "tiny", "2b" or "7b".
        blocks: of the decoder.
        changed: other sizes.
    """
    sizes = dict(list_sizes()[f"qwen2-vl-{'2b' if size == 'tiny' else size}"])
    sizes |= _TINY if size == "tiny" else {}
    sizes |= {"num_hidden_layers": blocks, "architectures": ["Qwen2VLForConditionalGeneration"]}
    sizes |= changed
    tower = {**sizes["vision_config"], **_TOY_TOWER, "hidden_size": sizes["hidden_size"]}
    return {**sizes, "vision_config": tower}


def make_inputs(config: ModelConfig, visual: int, batch: int = 1, seed: int = 0) -> Inputs:
    """Make equal prompts of `TEXT` tokens around one picture, with random visual tokens.

    Args:
        config: of the model.
        visual: visual tokens V of a sample; a power of two.
        batch: samples.
        seed: of the visual tokens.

    Returns:
        Inputs of exactly these sizes, nothing padded, whose `visual` [B, V, D] is filled in: no
        tower runs.
    """
    rows = 1 << (visual.bit_length() - 1) // 2  # 512 -> 16 x 32
    columns, merge = visual // rows, config.vision.spatial_merge_size
    image = [config.image_token_id] * visual
    half = TEXT // 2 - 1
    tokens = [*range(100, 100 + half), config.vision_start_id, *image, config.vision_end_id]
    tokens += range(200, 200 + half)
    prompts = ivc_jax.Batch.from_hf(
        input_ids=np.array([tokens] * batch),
        pixel_values=np.zeros((batch * visual * merge**2, config.vision.patch_values), np.float32),
        image_grid_thw=np.array([[1, merge * rows, merge * columns]] * batch),
    )
    inputs = collate(prompts, config, Buckets(text=(TEXT,), visual=(visual,)))
    shape = (batch, visual, config.decoder.hidden_size)
    features = np.random.default_rng(seed).standard_normal(shape, np.float32)
    # as small as embeddings of text
    return inputs.replace(visual=features * shape[-1] ** -0.5)


def place_inputs(inputs: Inputs, dtype: str) -> Inputs:
    """Put inputs on the device, visual tokens in the model's dtype."""
    return jax.device_put(inputs.replace(visual=jnp.asarray(inputs.visual, dtype)))


def draw_params(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """Draw random parameters; those of one shape are one array, so that a deep model fits."""
    leaves, structure = jax.tree.flatten(abstract_params(config, jnp.dtype(dtype)))
    draw = np.random.default_rng(0)
    made: dict[tuple[int, ...], jax.Array] = {}
    for leaf in leaves:
        if leaf.shape not in made:
            values = draw.random(leaf.shape, np.float32)
            values -= 0.5
            values *= 0.05
            made[leaf.shape] = jnp.asarray(values, leaf.dtype)
    return jax.tree.unflatten(structure, [made[leaf.shape] for leaf in leaves])


def write_checkpoint(folder: Path, sizes: Mapping[str, Any], dtype: str = "float32") -> int:
    """Write a random checkpoint as released ones lie, tensor by tensor.

    Matrices have variance 1 / inputs, norms are 1, so that activations stay of order 1.

    Returns:
        The bytes of its tensors.
    """
    config, kind = parse_config(sizes), np.dtype(getattr(ml_dtypes, dtype, dtype))
    rules = find_family(sizes).rules
    shapes = keymap.list_shapes(abstract_params(config, kind), config, rules)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + kind.itemsize * int(np.prod(shape))
        code = {"float32": "F32", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values lie aligned
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in _draw(shapes):
            file.write(values.astype(kind, copy=False).tobytes())
    (folder / "config.json").write_text(json.dumps(sizes))
    return end


@contextlib.contextmanager
def keep_checkpoint(scratch: Path | None, sizes: Mapping[str, Any], dtype: str) -> Iterator[Path]:
    """Give the folder of a random checkpoint.

    Args:
        scratch: where it stays, and is found again; None is a temporary folder.
        sizes: its `config.json`.
        dtype: of its tensors.
    """
    if scratch is None:
        with tempfile.TemporaryDirectory() as name:
            write_checkpoint(Path(name), sizes, dtype)
            yield Path(name)
        return
    content = json.dumps(sizes, sort_keys=True) + dtype
    folder = scratch / hashlib.sha256(content.encode()).hexdigest()[:16]
    if not (folder / "config.json").exists():  # written last
        write_checkpoint(folder, sizes, dtype)
    yield folder


def _draw(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        if len(shape) > 1:
            values = draw.standard_normal(shape, np.float32)
            values *= np.float32(np.prod(shape[1:])) ** -0.5
        elif name.endswith("weight"):
            values = np.ones(shape, np.float32)
        else:  # a bias
            values = 0.1 * draw.standard_normal(shape, np.float32)
        yield values


def count_block_params(config: DecoderConfig) -> int:
    """Return the numbers in the matrices of one block: q and o, k and v, gate, up and down."""
    heads, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.hidden_size * (2 * heads + 2 * groups + 3 * config.intermediate_size)


def count_flops(config: DecoderConfig, tokens: list[int]) -> float:
    """Return the operations of blocks on so many tokens each: what a prefill cannot do without.

    Causal attention is counted once, below the diagonal: n² H C multiplications in all, half for
    scores and half for the mix of values.
    """
    heads = config.num_heads * config.head_dim
    return sum(2.0 * (n * count_block_params(config) + n**2 * heads) for n in tokens)
