"""The inspector: one prompt, what methods keep of it at every layer and keep ratio, and why.

Everything that its sliders show is part of the page: sets as one bit a token, scores as one byte.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ivc_jax.evals.running.recording import Answer
from ivc_jax.reports.browser import pack_bits, write_json
from ivc_jax.reports.html import render_page
from ivc_jax.reports.panels import Panel

_BYTE = 255
_RANKED = ("score",)  # shown by rank: a softmax over many tokens is all but black


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a method keeps of n visual tokens at some layers and keep ratios.

    Attributes:
        layers: of the cuts, without ones if there is no choice.
        ratios: (None,) if there is no choice.
        specs: of the method by layer and keep ratio.
        at: places of the layer and the keep ratio that were asked for.
        kept: bool [L, R, n].
        flops: of the decoder in a prefill, [L, R], or None.
        parts: [L, n] each, see `Method.take_apart`.
        note: why there is less to see than of others.
    """

    layers: tuple[int, ...]
    ratios: tuple[float | None, ...]
    specs: tuple[tuple[str, ...], ...]
    at: tuple[int, int]
    kept: np.ndarray
    flops: np.ndarray | None = None
    parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    note: str = ""

    def list_kept(self) -> list[int]:
        """List the tokens kept at the values that were asked for."""
        return np.flatnonzero(self.kept[self.at]).tolist()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that a page shows.

    Attributes:
        model: its name.
        question: that was asked.
        panels: pictures and where the tokens lie on them.
        answers: by method, as they were asked for.
        sweeps: of the same methods.
        repeats: how many warm runs the times of the answers are medians of; 0: there are none.
        notes: lines about all methods.
    """

    model: str
    question: str
    panels: Sequence[Panel]
    answers: Mapping[str, Answer]
    sweeps: Sequence[Sweep]
    repeats: int = 0
    notes: tuple[str, ...] = ()


def render(shown: Inspection, form: Mapping[str, Any] | None = None) -> str:
    """Write the page.

    Args:
        shown: what is on it.
        form: of a served page, see `render_form`.
    """
    data = write_json({
        "tokens": _count(shown),
        "panels": [_describe_panel(panel) for panel in shown.panels],
        "methods": [
            _describe_sweep(spec, each)
            for spec, each in zip(shown.answers, shown.sweeps, strict=True)
        ],
    })  # fmt: skip
    return render_page(
        "inspector.html.jinja",
        shown=shown, data=data, rows=_write_rows(shown), tokens=_count(shown), form=form, wide=True,
    )  # fmt: skip


def render_form(form: Mapping[str, Any]) -> str:
    """Write the page that asks for a picture.

    Args:
        form: `prompt`, `method` and `ratio` as they stand in it, the known `methods`, and an
            `error` or "".
    """
    return render_page("inspector_form.html.jinja", form=form)


def _count(shown: Inspection) -> int:
    return next((answer.visual_tokens for answer in shown.answers.values()), 0)


def _write_rows(shown: Inspection) -> list[list[str]]:
    """Write the table of answers and costs, a row a method, times last if there are any."""
    whole = next((a.flops for a in shown.answers.values() if len(a.kept) == a.visual_tokens), 0.0)
    rows = []
    for spec, answer in shown.answers.items():
        relative = f" ({answer.flops / whole:.0%})" if whole else ""
        row = [
            spec,
            answer.error or " ".join(answer.text.split()) or "(nothing)",
            f"{len(answer.kept)} of {answer.visual_tokens}",
            f"{answer.cached_share:.3f}",
            f"{answer.kv_bytes / 1024:.0f} KiB",
            f"{answer.flops / 1e9:.3g}{relative}",
        ]
        if shown.repeats:
            row.append(f"{answer.prefill_ms:.1f} ms")
            row.append(f"{answer.decode_ms / max(answer.decode_steps, 1):.2f} ms")
        rows.append(row)
    return rows


def _describe_panel(panel: Panel) -> dict[str, Any]:
    picture = panel.picture and base64.b64encode(panel.picture).decode()
    return {**vars(panel), "picture": picture}


def _describe_sweep(spec: str, found: Sweep) -> dict[str, Any]:
    count = found.kept.shape[-1]
    return {
        "spec": spec,
        "layers": found.layers,
        "ratios": found.ratios,
        "specs": found.specs,
        "at": found.at,
        "sets": [[pack_bits(np.flatnonzero(kept), count) for kept in row] for row in found.kept],
        "flops": None if found.flops is None else _round(found.flops),
        "parts": {name: _pack(name, values) for name, values in found.parts.items()},
        "note": found.note,
    }


def _pack(name: str, values: np.ndarray) -> dict[str, Any]:
    """Write a part [L, n]: once if it is the same at all layers."""
    values = values[:1] if (values == values[:1]).all() else values
    if values.dtype == bool:
        return {"bits": [pack_bits(np.flatnonzero(row), len(row)) for row in values]}
    scale = _rank if name in _RANKED else _stretch
    encoded = [base64.b64encode(scale(row).tobytes()).decode() for row in values]
    return {"bytes": encoded}


def _rank(values: np.ndarray) -> np.ndarray:
    """Write the share of the other tokens that have less as 0 .. 255: uint8 [n]."""
    below = np.searchsorted(np.sort(values), values)  # ties share the lower rank
    return np.rint(_BYTE * below / max(len(values) - 1, 1)).astype(np.uint8)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Write the smallest value as 0 and the largest as 255: uint8 [n]."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return np.rint(_BYTE * (values - low) / max(high - low, 1e-30)).astype(np.uint8)


def _round(flops: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in flops]
