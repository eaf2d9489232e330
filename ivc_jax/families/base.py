"""What a family of models is: how one kind of checkpoint writes down what this package computes.

A family knows names, the config knows mathematics: it turns a `config.json` into sizes and traits,
tensors into parameters, settings into a picture rule, and a visual into the text of a prompt.
Engine, methods and layers never hear of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.footprint import Footprint
from ivc_jax.inputs.resize import PictureRule
from ivc_jax.inputs.sampling import FrameSampling, SampleStarts
from ivc_jax.weights.keymap import Rule


def repeat_placeholder(footprint: Footprint, placeholder: str) -> str:
    """Write a visual as its placeholder, once for each visual token."""
    return placeholder * footprint.count


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One kind of checkpoint.

    Attributes:
        name: `ModelConfig.family`, the key of benchmark prompts and box readers.
        model_types: what `config.json` calls it.
        read_config: turns a parsed `config.json` into sizes; a field that it lacks may be a
            KeyError.
        rules: tensors and the parameters that they become, in both directions.
        choose_rules: the rules for a parsed `config.json`, where the names of tensors hang on it;
            None has `rules` for all.
        excused: regex of tensors that a checkpoint may hold without anybody reading them.
        read_pictures: turns a parsed `preprocessor_config.json` into a picture rule.
        write_visual: the text that takes the place of a visual's placeholder, from its footprint
            and the placeholder: at least the placeholder once for each visual token.
        word_pattern: regex by which text is cut before byte pairs are merged, for checkpoints whose
            tokenizer is vocab.json and merges.txt; None if it has no such checkpoints.
        chat_template: for checkpoints that bring none, or one that writes no pictures.
        image_token: placeholder of images, for files that do not state its `image_token_id`: the
            tokenizer beside them knows it.
        end_token: what ends an answer if the tokenizer has it; None reads `generation_config.json`
            and the tokenizer's eos_token.
        frame_text: what stands before a frame of a video, with `{number}`, for models to which a
            video is pictures in a row; None has a placeholder for videos, or takes none.
        sampling: which frames of a video file are shown, where its settings do not say.
        sizes: `config.json` of published models, by lower-case name; for plans and measurements
            without a checkpoint.
    """

    name: str
    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    rules: tuple[Rule, ...]
    excused: str
    read_pictures: Callable[[Mapping[str, Any], ModelConfig], PictureRule]
    write_visual: Callable[[Footprint, str], str] = repeat_placeholder
    choose_rules: Callable[[Mapping[str, Any]], tuple[Rule, ...]] | None = None
    word_pattern: str | None = None
    chat_template: str | None = None
    image_token: str | None = None
    end_token: str | None = None
    frame_text: str | None = None
    sampling: type[FrameSampling] = SampleStarts
    sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
