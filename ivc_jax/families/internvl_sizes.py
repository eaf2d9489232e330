"""Sizes of published InternVL2.5 and InternVL3 models, as their files state them."""

from collections.abc import Mapping
from typing import Any

_TOWER_300M: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
_TOWER_6B: dict[str, Any] = {
    **_TOWER_300M,
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
}
_DYNAMIC = {"type": "dynamic", "factor": 2.0}


def _size_decoder(
    hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocab: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_scaling": _DYNAMIC,
        "rms_norm_eps": 1e-5 if vocab < 100000 else 1e-6,  # InternLM2's, Qwen2's
        "tie_word_embeddings": False,
    }


# Vocabularies: InternLM2's with the marks of pictures, Qwen2's likewise.
_INTERNLM2, _QWEN2 = 92553, 151674
_DECODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "internlm2-1.8b": ("InternLM2ForCausalLM", _size_decoder(2048, 8192, 24, 16, 8, _INTERNLM2)),
    "internlm2-7b": ("InternLM2ForCausalLM", _size_decoder(4096, 14336, 32, 32, 8, _INTERNLM2)),
    "internlm2-20b": ("InternLM2ForCausalLM", _size_decoder(6144, 16384, 48, 48, 8, _INTERNLM2)),
    "qwen2.5-0.5b": ("Qwen2ForCausalLM", _size_decoder(896, 4864, 24, 14, 2, _QWEN2)),
    "qwen2.5-1.5b": ("Qwen2ForCausalLM", _size_decoder(1536, 8960, 28, 12, 2, _QWEN2)),
    "qwen2.5-3b": ("Qwen2ForCausalLM", _size_decoder(2048, 11008, 36, 16, 2, _QWEN2)),
    "qwen2.5-7b": ("Qwen2ForCausalLM", _size_decoder(3584, 18944, 28, 28, 4, _QWEN2)),
    "qwen2.5-14b": ("Qwen2ForCausalLM", _size_decoder(5120, 13824, 48, 40, 8, _QWEN2)),
    "qwen2.5-32b": ("Qwen2ForCausalLM", _size_decoder(5120, 27648, 64, 40, 8, _QWEN2)),
    "qwen2.5-72b": ("Qwen2ForCausalLM", _size_decoder(8192, 29568, 80, 64, 8, _QWEN2)),
}
# model -> (decoder, whether it has the tower of 6 B parameters)
_CHAT: Mapping[str, tuple[str, bool]] = {
    "internvl2.5-1b": ("qwen2.5-0.5b", False),
    "internvl2.5-2b": ("internlm2-1.8b", False),
    "internvl2.5-4b": ("qwen2.5-3b", False),
    "internvl2.5-8b": ("internlm2-7b", False),
    "internvl2.5-26b": ("internlm2-20b", True),
    "internvl2.5-38b": ("qwen2.5-32b", True),
    "internvl2.5-78b": ("qwen2.5-72b", True),
}
_HF: Mapping[str, tuple[str, bool]] = {
    "internvl3-1b": ("qwen2.5-0.5b", False),
    "internvl3-2b": ("qwen2.5-1.5b", False),
    "internvl3-8b": ("qwen2.5-7b", False),
    "internvl3-14b": ("qwen2.5-14b", False),
    "internvl3-38b": ("qwen2.5-32b", True),
    "internvl3-78b": ("qwen2.5-72b", True),
}


def _write_chat(decoder: str, large: bool) -> dict[str, Any]:
    kind, sizes = _DECODERS[decoder]
    norms = {"norm_type": "rms_norm" if large else "layer_norm", "qk_normalization": large}
    tower = _TOWER_6B if large else _TOWER_300M
    return {
        "model_type": "internvl_chat",
        "image_token_id": 92546 if kind == "InternLM2ForCausalLM" else 151667,
        "force_image_size": 448,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "llm_config": {"architectures": [kind], "bias": False, **sizes},
        "vision_config": {**tower, **norms, "qkv_bias": not large},
    }


def _write_hf(decoder: str, large: bool) -> dict[str, Any]:
    norms = {"norm_type": "rms_norm" if large else "layer_norm", "use_qk_norm": large}
    tower = _TOWER_6B if large else _TOWER_300M
    return {
        "model_type": "internvl",
        "image_token_id": 151667,
        "tie_word_embeddings": False,
        "text_config": {"model_type": "qwen2", **_DECODERS[decoder][1]},
        "vision_config": {**tower, **norms, "attention_bias": not large},
    }


CHAT_SIZES = {name: _write_chat(*parts) for name, parts in _CHAT.items()}
HF_SIZES = {name: _write_hf(*parts) for name, parts in _HF.items()}
