"""Choosing the layer and the fractions of IVC-Prune on a calibration split."""
