"""Digit scenes: a small grounded benchmark of real handwriting, and the model trained on it."""
