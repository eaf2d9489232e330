"""What int8 weights cost: logits, answers and scores of the bundled model, bytes of a 7B one.

    python benchmarks/int8_parity.py [--questions 60] [--batch 20] [--methods dense SPEC]

The bundled checkpoint answers the bundled benchmark twice, in float32 and with int8 weights (its
tower and its tied embedding stay floats). Compared are the logits behind each prompt (`spread` is
the standard deviation of the float ones), the answers and the scores. A small model tells nothing
about a large one: run --model on yours. The bytes of published models are counted from their
sizes, without weights.
Expected on two CPU cores: about two minutes.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from record import ROOT, write_report

import digit_scenes.tsv
import ivc_jax
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.benchmarks.scorers.base import Reader
from ivc_jax.evals.running.tsv import Row, TsvFile
from ivc_jax.families import list_sizes, parse_config
from ivc_jax.inputs.bucket import Buckets, collate
from ivc_jax.types import Inputs
from ivc_jax.weights.placement import abstract_params
from ivc_jax.weights.source import DTYPES

METHODS = ("dense", "ivc:keep_ratio=0.5")
WEIGHTS = ("float32", "int8")
_BUCKETS = Buckets(text=(64, 512))  # few sizes, so that tasks share compiled programs


def compare(path: Path, questions: int, size: int, specs: list[str]) -> dict[str, Any]:
    """Answer every task with both weights; return one row a task and method."""
    models = {}
    for name in WEIGHTS:
        chosen = name if name == "int8" else None
        models[name], processor = ivc_jax.load(path, dtype="float32", weights=chosen)
    methods = {spec: ivc_jax.methods.parse(spec) for spec in specs}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        digit_scenes.tsv.write(folder, questions)  # a scene has one of every task, or nearly
        for task in tasks.find(tasks.BUNDLED):
            found: dict[str, list[dict[str, Any]]] = {spec: [] for spec in methods}
            for part, inputs in _make_batches(task, Path(folder), questions, size, processor):
                # Both models have the same tower.
                inputs = ivc_jax.encode(models["float32"], inputs)
                for spec, method in methods.items():
                    both = [_answer(model, processor, inputs, method, task, part)
                            for model in models.values()]  # fmt: skip
                    found[spec] += [_compare_pair(*pair) for pair in zip(*both, strict=True)]
            rows += [{"task": task.name, "method": s, **_join(f)} for s, f in found.items()]
            print(rows[-len(found) :], flush=True)
    sizes = {name: _count_leaf_bytes(model.params) for name, model in models.items()}
    joined = {spec: _average([r for r in rows if r["method"] == spec]) for spec in specs}
    return {"parameter_bytes": sizes, "all_tasks": joined, "rows": rows}


def _make_batches(
    task: tasks.Task, folder: Path, questions: int, size: int, processor: Any
) -> Iterator[tuple[list[Row], Inputs]]:
    file = TsvFile(folder / task.file_name, task.scoring.columns)
    count = len(file.list_ids(questions))
    if count < questions:
        raise SystemExit(f"{task.name} holds {count} questions; ask for fewer than {questions}")
    for start in range(0, count, size):
        rows = [file.read(place) for place in range(start, min(start + size, count))]
        family = processor.config.family
        batch = processor([task.write_messages(row.cells, family, row.images) for row in rows])
        yield rows, collate(batch, processor.config, _BUCKETS)
    file.close()


def _answer(
    model: Any, processor: Any, inputs: Inputs, method: Any, task: tasks.Task, rows: list[Row]
) -> list[tuple[np.ndarray, str, float]]:
    """Return logits [vocab], answer and score of each question."""
    prompt = ivc_jax.prefill(model, inputs, method)
    output = ivc_jax.decode(model, prompt, task.max_new_tokens, processor.stop_ids)
    texts = processor.decode(output.tokens, output.lengths)
    reader, scoring = Reader(model.config.family, processor.images), task.scoring
    return [
        (logits, text, scoring.score(scoring.parse(text, row.cells, reader), row.cells, reader))
        for logits, text, row in zip(np.asarray(prompt.logits), texts, rows, strict=True)
    ]


def _compare_pair(plain: tuple, quantized: tuple) -> dict[str, Any]:
    """Compare one question's answers."""
    difference = np.abs(plain[0] - quantized[0])
    return {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "spread": float(plain[0].std()),
        "same_next_token": float(plain[0].argmax() == quantized[0].argmax()),
        "same_answer": float(plain[1] == quantized[1]),
        **dict(zip((f"score_{name}" for name in WEIGHTS), (plain[2], quantized[2]), strict=True)),
    }


def _join(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {"questions": len(found), **_average(found)}


def _average(found: list[dict[str, Any]]) -> dict[str, float]:
    """Average every number, but for the largest difference of all."""
    names = [name for name in found[0] if isinstance(found[0][name], float)]
    means = {name: round(statistics.fmean(row[name] for row in found), 5) for name in names}
    return {**means, "max_difference": round(max(row["max_difference"] for row in found), 5)}


def count_bytes(preset: str) -> dict[str, int]:
    """Count the parameters' bytes of a published model in bfloat16 and with int8 weights."""
    config = parse_config(list_sizes()[preset])
    return {
        weights or "bfloat16": _count_leaf_bytes(
            abstract_params(config, DTYPES["bfloat16"], weights=weights)
        )
        for weights in (None, "int8")
    }


def _count_leaf_bytes(params: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(params))


def main() -> None:
    """Run and write benchmarks/results/int8_parity.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "digit_scenes/checkpoint")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/int8_parity.json")
    chosen = parser.parse_args()
    found = compare(chosen.model, chosen.questions, chosen.batch, chosen.methods)
    sizes = {preset: count_bytes(preset) for preset in list_sizes()}
    write_report(chosen.out, "int8_parity", published_parameter_bytes=sizes, **found)


if __name__ == "__main__":
    main()
