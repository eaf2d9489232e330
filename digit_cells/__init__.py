"""Digit scenes of single cells, and the models trained on them that know places from RoPE alone."""
