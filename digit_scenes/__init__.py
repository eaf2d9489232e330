"""Digit scenes: a grounded benchmark of real handwriting, and models that know places from RoPE."""

import pathlib

CHECKPOINT = pathlib.Path(__file__).resolve().with_name("checkpoint")  # the bundled model
