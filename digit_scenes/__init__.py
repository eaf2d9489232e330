"""Digit scenes: a small grounded benchmark of real handwriting, and the model trained on it."""

import pathlib

CHECKPOINT = pathlib.Path(__file__).resolve().with_name("checkpoint")  # the bundled model
