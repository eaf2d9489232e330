"""Configurations of models that exist on paper alone."""

from ivc_jax.config import DecoderConfig, ModelConfig, RopeConfig, VisionConfig


def model_config(num_layers=28, family="qwen2_vl", sections=(16, 24, 24), depth=1) -> ModelConfig:
    """Make a decoder of so many blocks with a tower of so many."""
    decoder = DecoderConfig(num_layers, 8, 8, 1, 1, 9, RopeConfig(128, 1e6, sections))
    return ModelConfig(family, VisionConfig(depth, 8, 1, 8, 8), decoder, 1, 2, 3, 4)
