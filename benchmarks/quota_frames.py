"""Does QuoTA at half the tokens beat showing half of the frames?

    python benchmarks/quota_frames.py [--films 24] [--frames 8] [--out FOLDER]

Films of digit_scenes, eight frames of each as a list of images, and four ways to spend half of
their tokens: four frames evenly spaced, QuoTA with frames rated by the model, QuoTA with frames
rated by the annotation, and all frames made smaller alike; then a quarter, where two frames are the
first and the last, with IVC-Prune behind QuoTA. The bundled model was taught no films; of the tasks
`colour` alone is in words that it knows, and most questions are of that one.

All questions of a film are one batch of one shape, and the tower sees its frames once: on two cores
half a minute for the programs of the first film, then 12 seconds of CPU a film (timed by hand).
Differences are paired, their 95 % intervals resample films. Answers of a film are one line of
films.jsonl, written when it is done; a run goes on where one was stopped, in a folder of its own
for each model. The summary is quota_frames.json; docs/evidence/quota has both.
"""

import argparse
import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import ivc_jax
from digit_scenes import digits
from digit_scenes.film_questions import TASKS, draw_questions
from digit_scenes.films import MOST_DIGITS, Film, Timing, draw_film
from digit_scenes.glyphs import COLOUR_NAMES
from ivc_jax.commands.origin import find_commit, name_model
from ivc_jax.engine.prefill import encode
from ivc_jax.inputs.bucket import Buckets, collate

_QUESTIONS = {  # of a film, at most
    "when": 1,
    "where": 1,
    "order": 1,
    "colour": MOST_DIGITS,
}
_NAME = re.compile(rf"(?:(?:{'|'.join(COLOUR_NAMES)}) )?\d(?!\d| seconds)")
_RESAMPLES = 4000
_BUCKETS = Buckets(text=(96,))  # of all questions: one program for each way
# How it is called, the part of the frames that is shown, the method, and whose ratings it takes.
WAYS = (
    ("dense", 1, "dense", None),
    ("half: half of the frames", 2, "dense", None),
    ("half: quota, rated by the model", 1, "quota:keep_ratio=0.5", "model"),
    ("half: quota, rated by the annotation", 1, "quota:keep_ratio=0.5", "annotation"),
    ("half: quota, all alike", 1, "quota:keep_ratio=0.5", "alike"),
    ("quarter: a quarter of the frames", 4, "dense", None),
    ("quarter: quota, rated by the model", 1, "quota:keep_ratio=0.25", "model"),
    ("quarter: quota, rated by the annotation", 1, "quota:keep_ratio=0.25", "annotation"),
    ("quarter: half by quota, IVC-Prune by frame", 1, "quota:keep_ratio=0.5,ivc=frame", "model"),
    ("quarter: half by quota, IVC-Prune pooled", 1, "quota:keep_ratio=0.5,ivc=sample", "model"),
)
BASELINES = {"half": WAYS[1][0], "quarter": WAYS[5][0]}


def main() -> None:
    """Run what is missing, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=Path("runs/quota"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "films.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {line["film"]: line for line in map(json.loads, lines)}
    model, processor = ivc_jax.load(options.model)
    scorer = ivc_jax.FrameScorer(model, processor, "Yes", "Is there a {entities}?", "{query}")
    with path.open("a") as file:
        for number in range(options.films):
            if number not in done:
                rows = ask(number, options.frames, model, processor, scorer)
                done[number] = {"film": number, "rows": rows}
                file.write(json.dumps(done[number]) + "\n")
                file.flush()
    films = [done[number]["rows"] for number in range(options.films)]
    summary = {
        "command": shlex.join(["python", "benchmarks/quota_frames.py", *sys.argv[1:]]),
        "commit": find_commit(),
        "model": name_model(options.model),
        "films": options.films,
        "frames": options.frames,
        "questions": {
            task: sum(row["task"] == task for film in films for row in film) for task in TASKS
        },
        "rows": sum_up(films),
    }
    (options.out / "quota_frames.json").write_text(json.dumps(summary, indent=1) + "\n")
    for row in summary["rows"]:
        print(json.dumps(row))


def ask(number: int, count: int, model, processor, scorer) -> list[dict]:
    """Answer the questions of a film in all ways: one batch each, the tower sees frames once."""
    random = np.random.default_rng((1, 0xF11, 0, number))
    film = draw_film(random, digits.load("test"), Timing())
    index = np.linspace(0, len(film.frames) - 1, count).astype(int)  # end points included
    asked = [(t, q) for t in TASKS for q in draw_questions(random, film, t, _QUESTIONS[t])]
    texts = [question.text for _, question in asked]
    ratings = rate(texts, film, index, scorer)
    rows = [
        {"task": task, "question": question.text, "answer": question.answer, "ways": {}}
        for task, question in asked
    ]
    for row, rated in zip(rows, ratings["model"], strict=True):
        row["relevance"] = np.round(rated, 4).tolist()
    spare = sum(_QUESTIONS.values()) - len(texts)  # filled up: one size, one program
    texts += texts[-1:] * spare
    steps = {step for _, step, *_ in WAYS}
    shown = {step: show(texts, film, index, step, model, processor) for step in steps}
    for name, step, method, rater in WAYS:
        batch, visual = shown[step]
        if rater is not None:
            told = [np.array(each, np.float32) for each in ratings[rater]]
            batch = dataclasses.replace(batch, relevance=(*told, *told[-1:] * spare))
        inputs = collate(batch, model.config, _BUCKETS).replace(visual=visual)
        out = ivc_jax.generate(model, inputs, method, max_new_tokens=16)
        answers = processor.decode(out.tokens, out.lengths)
        for row, text, kept in zip(rows, answers, out.kept, strict=False):
            row["ways"][name] = {"text": text, "kept": len(kept)}
    return rows


def show(texts: list[str], film: Film, index: np.ndarray, step: int, model, processor):
    """Return the questions about every `step`-th frame, and what the tower makes of them."""
    part = index[np.linspace(0, len(index) - 1, len(index) // step).astype(int)]
    batch = processor(texts, [list(film.frames[part])] * len(texts))
    alone = collate(processor(texts[:1], [list(film.frames[part])]), model.config, _BUCKETS)
    visual = encode(model, alone).visual  # [1, V, D]
    return batch, jnp.repeat(visual, len(texts), axis=0)


def rate(texts: list[str], film: Film, index: np.ndarray, scorer) -> dict[str, list[list[float]]]:
    """Rate frames by the model, asked for each digit of a question, and by what is there."""
    names = [_NAME.findall(text) for text in texts]
    rated = {
        name: scorer([scorer.write("", [name])] * len(index), film.frames[index])
        for name in {name for own in names for name in own}
    }
    there = [
        [
            any(
                actor.locate(int(frame), film.timing.rate) is not None
                for actor in film.actors
                if {actor.name, str(actor.glyph.label)} & set(own)
            )
            for frame in index
        ]
        for own in names
    ]
    return {
        "model": [np.max([rated[name] for name in own], axis=0).tolist() for own in names],
        "annotation": [[float(one) for one in row] for row in there],
        "alike": [[1.0] * len(index)] * len(texts),
    }


def sum_up(films: list[list[dict]]) -> list[dict]:
    """Average every way, and its difference to even sampling at as many tokens."""
    draw = np.random.default_rng(0)
    drawn = draw.multinomial(len(films), np.full(len(films), 1 / len(films)), size=_RESAMPLES)

    def scores(name: str, task: str) -> np.ndarray:  # [films, 2], right answers and questions
        rows = [[row for row in film if task == row["task"]] for film in films]
        right = [sum(r["ways"][name]["text"].strip() == r["answer"] for r in own) for own in rows]
        return np.array([right, [len(own) for own in rows]], float).T

    def interval(values: np.ndarray) -> list[float]:
        sums = drawn @ values  # [resamples, 2]
        mean = values.sum(axis=0)
        ends = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
        return [round(100 * float(x), 1) for x in (mean[0] / mean[1], *ends)]

    found = []
    for name, *_ in WAYS:
        kept = [row["ways"][name]["kept"] for film in films for row in film]
        row = {"way": name, "tokens with text": round(float(np.mean(kept)), 1)}
        base = BASELINES.get(name.partition(":")[0])
        for task in TASKS:
            own = scores(name, task)
            row[task] = interval(own)
            if base and base != name:
                other = scores(base, task)
                row[f"{task}, less {base}"] = interval(own - other * [1, 0])
        found.append(row)
    return found


if __name__ == "__main__":
    main()
