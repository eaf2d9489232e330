"""Measure everything about a model's words, and write table, record and report."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from ivc_jax.engine.modules import name_model
from ivc_jax.evals.running.records import write_atomically
from ivc_jax.inputs.bucket import collate
from ivc_jax.methods import EmbedLens
from ivc_jax.methods.word_table import WordTable
from ivc_jax.methods.words import CLASSES
from ivc_jax.model import Model
from ivc_jax.reports import pages
from ivc_jax.reports.rendering import make_environment
from ivc_jax.studies import lens
from ivc_jax.studies.lens import calibrate, figures, looking, summary
from ivc_jax.studies.lens.calibrate import Prototype, Thresholds, Word
from ivc_jax.types import Inputs
from ivc_jax.weights.modules import write_module

Asked = Sequence[tuple[Image.Image, str]]  # pictures, each with a question


@dataclasses.dataclass(eq=False)
class Result:
    """Everything that is written.

    Attributes:
        meta: how it was made.
        limits: the thresholds.
        table: the words of each class.
        usual: the same by the usual thresholds.
        words: every word that is nearest to some token, with its text.
        prototypes: the fast form.
        record: shares, by block, of methods and interventions (`summary`), agreement.
        grids: of the first held-out pictures, [n, 3] each.
        kinds: their classes, [n] each.
        sizes: of the model, which prototypes must fit.
    """

    meta: dict[str, Any]
    limits: Thresholds
    table: WordTable
    usual: WordTable
    words: list[tuple[Word, str]]
    prototypes: list[Prototype]
    record: dict[str, Any]
    grids: list[np.ndarray]
    kinds: list[np.ndarray]
    sizes: str


def measure(
    model: Model,
    processor: Any,
    calibration: Asked,
    held_out: Asked,
    limits: Thresholds,
    *,
    methods: Sequence[str] | None = None,
    budget: float = 0.5,
    batch_size: int = 20,
    progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Calibrate on some pictures and describe others.

    Args:
        methods: whose kept tokens are looked at; None is every one that prunes, at `budget`.
        progress: is told what comes next.
    """
    tokens = looking.look(model, _make_batches(model, processor, calibration, batch_size))
    units = _normalize(tokens.entering)
    nearest = tokens.ids[0]  # [n, 3], of what enters the decoder
    found = calibrate.measure_words(units, nearest[:, 0], tokens.image, tokens.tower, limits.pairs)
    table = calibrate.choose_words(found, limits)
    prototypes = calibrate.find_prototypes(units, nearest, table, limits.percentile)
    batches = list(_make_batches(model, processor, held_out, batch_size))
    progress("looking at other pictures")
    others = looking.look(model, batches)
    kinds = summary.label(others.ids[0], table)
    specs = list(summary.list_methods(budget) if methods is None else methods)
    if any(table.classes) and methods is None:
        specs.append(_name_own(table, budget))
    rows, failed = summary.compare_methods(model, batches, kinds, specs, progress)
    fast = calibrate.classify_fast(_normalize(others.entering), prototypes)
    record = {
        "shares": summary.share_classes(kinds),
        "agreement": float((fast == kinds).mean()),
        "layers": summary.count_layers(others, table),
        "rows": rows,
        "failed": failed,
        "interventions": summary.try_interventions(model, batches, kinds, progress),
    }
    meta = {
        "device": f"{jax.default_backend()}, {model.dtype}",
        "pictures": len(calibration),
        "held_out": len(held_out),
        "tokens": len(kinds),
        "vocabulary": model.config.decoder.vocab_size,
        "nearest": looking.WORDS,
    }
    grids, classes = _split(others, others.grid), _split(others, kinds)
    read = processor.writer.tokenizer.decode
    texts = [(word, read([word.word], skip_special_tokens=False)) for word in found]
    usual = calibrate.choose_words(found, Thresholds())
    return Result(
        *(meta, limits, table, usual, texts, prototypes, record, grids, classes),
        name_model(model.config),
    )


def _make_batches(model: Model, processor: Any, asked: Asked, size: int) -> Iterator[Inputs]:
    for first in range(0, len(asked), size):
        pictures, questions = zip(*asked[first : first + size], strict=True)
        batch = processor(prompts=list(questions), images=[[picture] for picture in pictures])
        yield collate(batch, model.config)


def _normalize(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _split(tokens: looking.Tokens, values: np.ndarray) -> list[np.ndarray]:
    """Split what is known of tokens by picture."""
    return [values[tokens.image == image] for image in range(tokens.num_images)]


def _name_own(table: WordTable, budget: float) -> Any:
    """Return the method that these words make."""
    words = {name: words or None for name, words in vars(table).items()}
    return EmbedLens(budget=budget, **words)


def write(
    folder: pathlib.Path, result: Result, pictures: Sequence[Image.Image], shown: int
) -> None:
    """Write table.json, lens.json, report.md and the figures.

    Args:
        pictures: the first of those held out, to be drawn.
        shown: words in the table of the report, those of the classes besides.
    """
    record, count = result.record, len(pictures)
    drawn = [
        figures.arrange_cells(grid, kind)
        for grid, kind in zip(result.grids[:count], result.kinds[:count], strict=True)
    ]
    figures.draw_maps(folder / "figures" / "maps.png", pictures, drawn)
    figures.draw_layers(folder / "figures" / "layers.png", record["layers"])
    figures.draw_overlap(folder / "figures" / "overlap.png", record["shares"], record["rows"])
    write_table(folder / "table.json", result)
    content = _list_content(result)
    content["drawn"] = drawn  # with the pictures, all that the figure of maps shows
    write_atomically(folder / "lens.json", json.dumps(content, indent=1) + "\n")
    wanted = {word for words in result.table.classes for word in words}
    listed = [
        each for place, each in enumerate(content["words"])
        if place < shown or each["word"] in wanted
    ]  # fmt: skip
    templates = make_environment(lens.__file__)
    text = templates.get_template("lens.md.jinja").render(
        **content | {"words": listed},
        vocabulary=len(content["words"]),
        changed=result.limits != Thresholds(),
        blocks=len(record["layers"]["shares"]) - 1,
    )
    pages.write(folder, text)


def write_table(path: pathlib.Path, result: Result) -> None:
    """Write what `embedlens:table=FILE` reads, and beside it what `prototypes=FILE` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **{name: list(words) for name, words in vars(result.table).items()},
        "thresholds": vars(result.limits),
        "meta": result.meta,
        "agreement": result.record["agreement"],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    if result.prototypes:
        directions = np.stack([each.direction for each in result.prototypes]).astype(np.float32)
        settings = {
            "model": result.sizes,
            "words": [each.word for each in result.prototypes],
            "kinds": [CLASSES[each.kind] for each in result.prototypes],
            "thresholds": [each.threshold for each in result.prototypes],
        }
        write_module(path.with_suffix(".safetensors"), {"direction": directions}, settings)


def _list_content(result: Result) -> dict[str, Any]:
    kinds = dict.fromkeys((word.word for word, _ in result.words), "alive")
    for name, words in zip(CLASSES[1:], result.table.classes, strict=True):
        kinds |= dict.fromkeys(words, name)
    words = [vars(word) | {"text": text, "class": kinds[word.word]} for word, text in result.words]
    for each in words:
        if each["similarity"] != each["similarity"]:  # a single picture: NaN is no JSON
            each["similarity"] = None
    return {
        "meta": result.meta,
        "limits": vars(result.limits),
        "usual": _count(result.usual),
        "found": _count(result.table),
        "words": words,
        "prototypes": len(result.prototypes),
        **result.record,
    }


def _count(table: WordTable) -> dict[str, int]:
    return {"sinks": len(table.vit_sinks) + len(table.llm_sinks), "dead": len(table.dead)}


def summarise(result: Result) -> Iterator[str]:
    """Say in a few lines what was found."""
    for name, words in vars(result.table).items():
        texts = {word.word: text for word, text in result.words}
        listed = ", ".join(f"{word} ({texts[word]!r})" for word in words)
        yield f"{name}: {listed or 'none'}"
    shares = result.record["shares"]
    yield "held out: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    if result.prototypes:
        yield f"fast form: {100 * result.record['agreement']:.1f} % of tokens by the same name"
