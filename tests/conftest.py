"""Shared fixtures: tiny random checkpoints as Hugging Face directories, made offline."""

import os

os.environ["IVC_JAX_TYPECHECK"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles many small programs and runs each once; set to 0 to test optimised code.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# The variables above are read while these modules are imported.
import functools
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ivc_jax import config as ivc_config
from ivc_jax.nn.decoder import init_params
from ivc_jax.weights import keymap

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_FIRST_SPECIAL = 256  # the tokenizer knows 256 bytes, then the marks
_ID = {token: _FIRST_SPECIAL + number for number, token in enumerate(_SPECIAL)}
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Drop compiled programs after each file.

    Each maps memory of its own; Linux allows a process 65,530 mappings, and XLA crashes beyond.
    """
    yield
    jax.clear_caches()
    gc.collect()


def _text_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 272,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024,
        "bos_token_id": _ID["<|endoftext|>"],
        "eos_token_id": _ID["<|im_end|>"],
        "use_sliding_window": False,
    }


def _vision_sizes(family: str, out_dim: int) -> dict[str, Any]:
    common = {"num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
    if family == "qwen2_vl":
        own = {"depth": 3, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": out_dim}
        return {**common, **own, "hidden_act": "quick_gelu"}
    # Windows of 2 x 2 merged cells: most small images have ragged borders.
    own = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": out_dim}
    own |= {"window_size": 16, "fullatt_block_indexes": [1, 3], "tokens_per_second": 4}
    return {**common, **own, "hidden_act": "silu"}


_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


def tiny_config(
    generation: str = "new", tied: bool = False, family: str = "qwen2_vl", **text: Any
) -> dict[str, Any]:
    """Return the `config.json` of a tiny model with unequal M-RoPE sections.

    Args:
        generation: "old" is the flat layout of the published checkpoints, "new" the nested one.
        family: "qwen2_vl" or "qwen2_5_vl".
        text: decoder sizes to change, under their Hugging Face names.
    """
    sizes = {**_text_sizes(), **text}
    vision = _vision_sizes(family, sizes["hidden_size"])
    rope = {"mrope_section": [2, 3, 3]}
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "tie_word_embeddings": tied,
        "image_token_id": _ID["<|image_pad|>"],
        "video_token_id": _ID["<|video_pad|>"],
        "vision_start_token_id": _ID["<|vision_start|>"],
        "vision_end_token_id": _ID["<|vision_end|>"],
    }
    if generation == "old":
        old = {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", **rope}}
        return {**config, **sizes, **old, "vision_config": {**vision, "in_chans": 3}}
    rope |= {"rope_type": "default", "rope_theta": 10000.0}
    text_config = {"model_type": f"{family}_text", **sizes, "rope_parameters": rope}
    vision |= {"model_type": f"{family}_vision", "in_channels": 3}
    return {**config, "text_config": text_config, "vision_config": vision}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw float32 tensors under the published names, none of them near its usual start value."""
    sizes = ivc_config.from_hf(config)
    shapes = jax.eval_shape(lambda: init_params(sizes, jax.random.key(0)))
    leaves, draw = keymap.flatten(shapes), np.random.default_rng(seed)
    tensors = {}
    for name, target in keymap.expected_tensors(shapes):
        rule = target.rule
        shape = leaves[rule.path].shape[rule.stacked :]
        shape = rule.transform.hf_shape(shape, sizes)
        values = draw.standard_normal(shape, dtype=np.float32)
        if rule.path.endswith("scale"):
            values = 1 + 0.3 * values  # norms: neither one nor near zero
        elif rule.path.endswith("bias"):
            values = 0.3 * values
        elif not rule.path.endswith("embedding"):
            values *= np.float32(np.prod(shape[1:])) ** -0.5
        tensors[name] = values
    return tensors


def new_name(name: str) -> str:
    """Rename a published tensor name to the later generation."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """Save tensors as `model.safetensors`, or as several shards and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def write_processor_files(folder: Path) -> None:
    """Write a byte-level tokenizer with the Qwen2-VL marks, and settings for 4-pixel patches."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(_SPECIAL),
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": 1024,
    }
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 16 * 16,
        "max_pixels": 64 * 64,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    stops = {"eos_token_id": [_ID["<|im_end|>"], _ID["<|endoftext|>"]], "do_sample": False}
    files = {"tokenizer_config": tokenizer_config, "preprocessor_config": images}
    for name, content in {**files, "generation_config": stops}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a function that makes tiny random checkpoint directories; treat them as read-only.

        path = tiny_hf(tied=False, generation="new", shards=1, seed=0, num_hidden_layers=3)
        path = tiny_hf(family="qwen2_5_vl")

    `generation` chooses config layout and tensor names together ("old": flat, `model.layers.0...`;
    "new": nested, `model.language_model.layers.0...`). Other keywords change decoder sizes. Equal
    arguments give the same directory.
    """
    made: dict[tuple, Path] = {}

    def make(
        *,
        tied: bool = False,
        generation: str = "new",
        shards: int = 1,
        seed: int = 0,
        family: str = "qwen2_vl",
        **text: Any,
    ) -> Path:
        key = (tied, generation, shards, seed, family, *sorted(text.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny_hf")
            config = tiny_config(generation, tied, family, **text)
            tensors = random_tensors(config, seed)
            if generation == "new":
                tensors = {new_name(name): tensor for name, tensor in tensors.items()}
            (folder / "config.json").write_text(json.dumps(config, indent=1))
            write_tensors(folder, tensors, shards)
            write_processor_files(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def load_torch() -> Callable[[Path], Any]:
    """Give a function that loads a directory in transformers: float32, eager attention, eval mode.

    Tests that ask for it skip where torch or transformers is missing.
    """
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    @functools.cache
    def load(path: Path) -> Any:
        name = json.loads((path / "config.json").read_text())["architectures"][0]
        model = getattr(transformers, name).from_pretrained(
            path, dtype="float32", attn_implementation="eager"
        )
        return model.eval().requires_grad_(False)

    return load


@pytest.fixture
def highest_precision() -> Iterator[None]:
    """Multiply float32 matrices as float32 on every backend."""
    with jax.default_matmul_precision("highest"):
        yield
