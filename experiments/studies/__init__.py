"""Ablations: what they ask, their tables and figures."""
