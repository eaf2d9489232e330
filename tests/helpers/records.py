"""Records, rows and meta with usual values in the fields that a test does not care about."""

from typing import Any

from ivc_jax.evals.schema import Meta, Record, Row

_USUAL = Record(
    task="DigitScenes_colour", split="test", example_id="1", model="m", method="dense",
    keep_ratio=0.5, prediction="", parsed="", score=1.0, target="", question="", category="",
    visual_tokens=10, kept_tokens=5, kept=[], grids=[], kv_bytes=64.0, prefill_ms=1.0,
    decode_ms=6.0, decode_steps=3, seconds=0.0, seed=0, commit="c", row=1,
    cached_share=0.5, flops=2e6,
)  # fmt: skip


def make_record(**changes: Any) -> Record:
    """Return the usual record with some fields changed."""
    return Record(**vars(_USUAL) | changes)


def make_row(task: str, method: str, score: float, **changes: Any) -> Row:
    """Return a row whose costs are those of half the tokens, or of all under dense.

    Args:
        changes: other fields; `metrics` come on top of those costs.
    """
    share = 1.0 if method == "dense" else 0.5
    usual = {"keep_ratio": share, "n": 4, "retention": score, "visual_tokens": 8.0}
    usual |= {"kept_tokens": 8 * share, "kv_bytes": 2048.0}
    usual |= {"prefill_ms": 1.0, "decode_ms_per_token": 1.0}
    metrics = {"cached_share": share, "flops": 1e9} | changes.pop("metrics", {})
    return Row(task=task, method=method, score=score, metrics=metrics, **usual | changes)


def make_meta(**changes: Any) -> Meta:
    """Return what a finished run was, with some fields changed."""
    usual = {"model": "DIR", "device": "8 x TPU v5e", "dtype": "bfloat16", "jax_version": "1"}
    usual |= {"commit": "abc", "date": "today", "seed": 0, "batch_size": 4, "limit": None}
    usual |= {"compiled_programs": 2, "tasks": ["DigitScenes_grounding"], "methods": ["dense"]}
    usual |= {"files": {}, "rope": {"head_dim": 48, "theta": 1e4}, "image_start": 1}
    usual |= {"command": "run.py", "failed_rows": 0, "failures": [], "commits": ["abc"]}
    return Meta(**usual | changes)
