"""Benchmarks: read, ask, parse, score, record."""
