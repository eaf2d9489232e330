"""What the files of a checkpoint say about pictures and videos."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.resize import PictureRule
from ivc_jax.inputs.tokenizer import read_json

Settings = Mapping[str, Any]


def read_settings(path: Path) -> tuple[Settings, Settings]:
    """Read the settings for images and for videos; both are empty if there are none.

    Those for images come from `processor_config.json` if it holds them, else from
    `preprocessor_config.json`; those for videos fall back to them.

    Raises:
        InputError: a damaged file.
    """
    # newer checkpoints keep all settings in one file
    nested = read_json(path / "processor_config.json")
    images = nested.get("image_processor") or read_json(path / "preprocessor_config.json")
    # and one file of some older ones holds nothing but those for images
    images = images or (nested if "image_mean" in nested else {})
    videos = nested.get("video_processor")
    return images, videos or read_json(path / "video_preprocessor_config.json") or images


def read_rules(
    path: Path,
    config: ModelConfig,
    read_pictures: Callable[[Settings, ModelConfig], PictureRule],
) -> tuple[PictureRule, PictureRule] | None:
    """Read the rules for images and for videos, None if there are no settings.

    Raises:
        InputError: a damaged file, or settings that do not fit the model.
    """
    images, videos = read_settings(path)
    if not images:
        return None
    return (
        _check(read_pictures(images, config), config, path),
        _check(read_pictures(videos, config), config, path),
    )


def refuse_options(min_pixels: int | None, max_pixels: int | None, **others: Any) -> None:
    """Refuse settings for pictures where there is no processor to have them; None is none."""
    if (min_pixels, max_pixels) != (None, None):
        raise InputError("min_pixels and max_pixels are the processor's; load it or leave them out")
    for name, option in others.items():
        if option is not None:
            raise InputError(f"{name} is the processor's; load it or leave it out")


def _check(images: PictureRule, config: ModelConfig, path: Path) -> PictureRule:
    """Return the rule if its patches are those of the vision tower."""
    vision = config.vision
    expected = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, value in expected.items():
        if getattr(images, name) != value:
            raise InputError(
                f"{path}: {name} {getattr(images, name)} of the preprocessor differs from the"
                f" model's {value}; use files of one checkpoint"
            )
    return images
