"""Numbers of the record: shares of the classes, by block, and among what methods keep."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivc_jax.engine.prefill import encode, prefill
from ivc_jax.methods import METHODS, Method, MethodError, describe, parse
from ivc_jax.methods.fields import list_fields
from ivc_jax.methods.word_table import WordTable
from ivc_jax.methods.words import CLASSES, classify
from ivc_jax.model import Model
from ivc_jax.studies.lens.interventions import Intervention, intervene
from ivc_jax.studies.lens.looking import Tokens
from ivc_jax.types import Inputs

_SETS = ("ivc_removal",)  # it keeps what is no IVC token
_UNMEASURED = ("dense", "embedlens", *_SETS)


def label(ids: np.ndarray, table: WordTable) -> np.ndarray:
    """Say what tokens are by their nearest words, [..., n, 3] to [..., n]."""
    flat = jnp.asarray(ids.reshape(1, -1, ids.shape[-1]))
    return np.asarray(classify(flat, table.classes)).reshape(ids.shape[:-1])


def share_classes(kinds: np.ndarray) -> dict[str, float]:
    """Return the share of each class among tokens [n]."""
    return {name: float((kinds == number).mean()) for number, name in enumerate(CLASSES)}


def count_layers(tokens: Tokens, table: WordTable) -> dict[str, Any]:
    """Describe the classes block by block.

    Returns:
        "shares": of each class by what enters the block, and by what leaves the last, L + 1. Of the
        tokens that were of a class before the first block: "norm", their mean length, L + 1;
        "step", the mean cosine of before and after a block, L; "attention", their part of what the
        last token of the prompt gives to visual tokens, L. None of a class without tokens.
    """
    kinds = label(tokens.ids, table)  # [L + 1, n]
    whole = tokens.attention.sum(axis=1)  # [L]
    found: dict[str, Any] = {"shares": [share_classes(each) for each in kinds]}
    for name in ("norm", "step", "attention"):
        found[name] = dict.fromkeys(CLASSES)
    for number, name in enumerate(CLASSES):
        mine = kinds[0] == number  # [n]
        if mine.any():
            found["norm"][name] = tokens.norms[:, mine].mean(axis=1).tolist()
            found["step"][name] = tokens.steps[:, mine].mean(axis=1).tolist()
            attention = tokens.attention[:, mine].sum(axis=1) / whole
            found["attention"][name] = attention.tolist()
    return found


def list_methods(budget: float) -> list[str]:
    """Name every method that prunes, at one budget."""
    return [
        f"{name}:budget={budget:g}"
        for name, kind in METHODS.items()
        if name not in _UNMEASURED and "budget" in list_fields(kind)
    ]


def compare_methods(
    model: Model,
    batches: Sequence[Inputs],
    kinds: np.ndarray,
    specs: Sequence[str | Method],
    progress: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[str]]:
    """See which classes methods keep: the first row is that of the IVC tokens.

    Args:
        batches: collated.
        kinds: [n], the classes of their visual tokens, one after the other.

    Returns:
        Rows: "name", "kept" (share of all tokens), "among" (share of each class among those kept)
        and "of" (share of each class that is kept); and what could not run.
    """
    rows, failed = [], []
    encoded = [encode(model, inputs) for inputs in batches]
    for spec in (*_SETS, *specs):
        name = spec if isinstance(spec, str) else describe(spec)
        progress(name)
        try:
            method = parse(spec).resolve(model.config)
            kept = np.concatenate([_mark_kept(model, inputs, method) for inputs in encoded])
        except MethodError as error:
            failed.append(f"{name}: {error}")
            continue
        if spec in _SETS:
            kept, name = ~kept, "IVC tokens"
        of = {
            each: float(kept[kinds == number].mean()) if (kinds == number).any() else None
            for number, each in enumerate(CLASSES)
        }
        among = share_classes(kinds[kept])
        rows.append({"name": name, "kept": float(kept.mean()), "among": among, "of": of})
    return rows, failed


def _mark_kept(model: Model, inputs: Inputs, method: Method) -> np.ndarray:
    """Mark which of a batch's visual tokens survive the last cut: bool [n]."""
    chosen = jax.device_get(prefill(model, inputs, method).selection)
    valid = np.asarray(inputs.layout.visual_valid)
    kept = np.zeros(valid.shape, bool)
    rows = np.broadcast_to(np.arange(len(valid))[:, None], chosen.index.shape)
    kept[rows[chosen.valid], chosen.index[chosen.valid]] = True
    return kept[valid]


def list_interventions(num_layers: int) -> list[Intervention]:
    """List what is done to tokens: sublayers skipped, late entries, early exits."""
    blocks = range(num_layers)
    attention, feed = tuple(map(float, blocks)), tuple(block + 0.5 for block in blocks)
    skips = [
        Intervention("no attention update", attention),
        Intervention("no feed-forward update", feed),
        Intervention("neither", attention + feed),
    ]
    places = sorted({max(1, round(num_layers * part / 4)) for part in (1, 2, 3)})
    entries = [Intervention(f"enter before block {block}", entry=block) for block in places]
    exits = [Intervention(f"leave before block {block}", exit=block) for block in (0, *places)]
    return [*skips, *entries, *exits]


def try_interventions(
    model: Model, batches: Sequence[Inputs], kinds: np.ndarray, progress: Callable
) -> list[dict[str, Any]]:
    """Compare first answer tokens with the undisturbed model's, for all tokens and each class.

    Returns:
        Rows: "name", "tokens" (a class, or "all"), "equal" (share of prompts whose first token
        stays) and "divergence" (mean of KL(undisturbed || disturbed) in nats).
    """
    present = [number for number in range(len(CLASSES)) if (kinds == number).any()]
    usual = _run_all(model, batches, Intervention("none"), kinds, present)
    rows = []
    for each in list_interventions(model.config.decoder.num_layers):
        for chosen in (present, *([number] for number in present if len(present) > 1)):
            name = "all" if chosen is present else CLASSES[chosen[0]]
            progress(f"{each.name}, {name}")
            logs = _run_all(model, batches, each, kinds, chosen)
            equal = (logs.argmax(axis=1) == usual.argmax(axis=1)).mean()
            divergence = (np.exp(usual) * (usual - logs)).sum(axis=1).mean()
            rows.append({
                "name": each.name, "tokens": name,
                "equal": float(equal), "divergence": float(divergence),
            })  # fmt: skip
    return rows


def _run_all(
    model: Model,
    batches: Sequence[Inputs],
    intervention: Intervention,
    kinds: np.ndarray,
    chosen: Sequence[int],
) -> np.ndarray:
    """Return the log probabilities of the first answer token: [prompts, vocab]."""
    found, first = [], 0
    for inputs in batches:
        valid = np.asarray(inputs.layout.visual_valid)  # [B, V]
        tokens = np.zeros(valid.shape, bool)
        tokens[valid] = np.isin(kinds[first : first + valid.sum()], chosen)
        first += valid.sum()
        logits = intervene(model, inputs, tokens, intervention)
        found.append(np.asarray(jax.nn.log_softmax(logits.astype(np.float32), axis=-1)))
    return np.concatenate(found)
