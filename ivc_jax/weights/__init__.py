"""Weights in and out: Hugging Face names, streamed safetensors, Orbax checkpoints."""
