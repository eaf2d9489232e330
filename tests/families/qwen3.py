"""Tiny Qwen3-VL: `config.json`, tensor names, tokenizer and picture settings."""

from pathlib import Path
from typing import Any

from families import qwen
from helpers.files import write_settings


def config(family: str, generation: str, tied: bool, **text: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model whose heads are wider than their share of D.

    Args:
        generation: "old" spells the rotary settings as the published checkpoints do.
        text: decoder sizes to change, under their Hugging Face names.
    """
    sizes = {
        **{"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "head_dim": 24},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 272},
        **{"max_position_embeddings": 1024, "tie_word_embeddings": tied},
        **text,
    }
    rope = {"mrope_section": [5, 4, 3], "mrope_interleaved": True, "rope_type": "default"}
    if generation == "old":
        rotary: dict[str, Any] = {"rope_theta": 10000.0, "rope_scaling": rope}
    else:
        rotary = {"rope_parameters": {**rope, "rope_theta": 10000.0}}
    vision = {
        **{"depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48},
        **{"patch_size": 4, "out_hidden_size": sizes["hidden_size"]},
        # a table of odd side, and features of two blocks that do not follow each other
        **{"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
    }
    marks = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": family,
        "tie_word_embeddings": tied,
        **{name: qwen.ID[mark] for name, mark in marks.items()},
        "text_config": {"model_type": f"{family}_text", **sizes, **rotary},
        # the first files call the tower by the name of the whole
        "vision_config": {"model_type": family, **vision},
    }


def new_name(name: str) -> str:
    """Names have one generation."""
    return name


def write_processor_files(folder: Path) -> None:
    """Write the tokenizer of the other Qwen models, and settings for 4-pixel patches."""
    qwen.write_processor_files(folder)
    pixels = {
        **{"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2},
        **{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    }
    images = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    }
    videos = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 4 * 48 * 48},
    }
    files = {"preprocessor_config": images, "video_preprocessor_config": videos}
    write_settings(folder, **{name: {**pixels, **content} for name, content in files.items()})
