"""Conversion of Hugging Face checkpoints into Orbax checkpoints that load faster and sharded."""
