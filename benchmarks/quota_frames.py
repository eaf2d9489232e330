"""Does QuoTA at half the tokens beat showing half of the frames?

    python benchmarks/quota_frames.py [--films 40] [--frames 8] [--out FOLDER]

Films of digit_scenes, eight frames of each as a list of images, and four ways to spend half of
their tokens: four frames evenly spaced, QuoTA with frames rated by the model, QuoTA with frames
rated by the annotation, and all frames made smaller alike; then a quarter, with IVC-Prune behind
QuoTA. Differences are paired, their 95 % intervals resample films. Answers of a film are one line
of films.jsonl, written when it is done; a run goes on where one was stopped. The summary is
quota_frames.json.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ivc_jax
from digit_scenes import digits
from digit_scenes.film_questions import TASKS, draw_questions
from digit_scenes.films import Film, Timing, draw_film
from digit_scenes.scenes import COLOUR_NAMES
from ivc_jax.commands.origin import find_commit, name_model

ROOT = Path(__file__).parent.parent
_QUESTIONS = 2  # of a task and film
_NAME = re.compile(rf"(?:(?:{'|'.join(COLOUR_NAMES)}) )?\d(?!\d| seconds)")
_RESAMPLES = 4000
# How it is called, the part of the frames that is shown, the method, and whose ratings it takes.
WAYS = (
    ("dense", 1, "dense", None),
    ("half: every second frame", 2, "dense", None),
    ("half: quota, rated by the model", 1, "quota:keep_ratio=0.5", "model"),
    ("half: quota, rated by the annotation", 1, "quota:keep_ratio=0.5", "annotation"),
    ("half: quota, all alike", 1, "quota:keep_ratio=0.5", "alike"),
    ("quarter: every fourth frame", 4, "dense", None),
    ("quarter: quota, rated by the model", 1, "quota:keep_ratio=0.25", "model"),
    ("quarter: half by quota, IVC-Prune by frame", 1, "quota:keep_ratio=0.5,ivc=frame", "model"),
    ("quarter: half by quota, IVC-Prune pooled", 1, "quota:keep_ratio=0.5,ivc=sample", "model"),
)
BASELINES = {"half": WAYS[1][0], "quarter": WAYS[5][0]}


def main() -> None:
    """Run what is missing, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evidence" / "quota")
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
                rows = list(ask(number, options.frames, model, processor, scorer))
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
        "rows": sum_up(films),
    }
    (options.out / "quota_frames.json").write_text(json.dumps(summary, indent=1) + "\n")
    for row in summary["rows"]:
        print(json.dumps(row))


def ask(number: int, count: int, model, processor, scorer) -> Iterator[dict]:
    """Answer the questions of a film in all ways."""
    random = np.random.default_rng((1, 0xF11, 0, number))
    film = draw_film(random, digits.load("test"), Timing())
    index = np.linspace(0, len(film.frames) - 1, count).astype(int)  # end points included
    frames = [film.frames[i] for i in index]
    for task in TASKS:
        for question in draw_questions(random, film, task, _QUESTIONS):
            ratings = rate(question.text, film, index, scorer)
            row = {"task": task, "question": question.text, "answer": question.answer, "ways": {}}
            row["relevance"] = np.round(ratings["model"], 4).tolist()
            for name, step, method, rater in WAYS:
                part = np.linspace(0, count - 1, count // step).astype(int)
                told = None if rater is None else [ratings[rater]]
                batch = processor([question.text], [[frames[i] for i in part]], relevance=told)
                out = ivc_jax.generate(model, batch, method, max_new_tokens=16)
                (text,) = processor.decode(out.tokens, out.lengths)
                row["ways"][name] = {"text": text, "kept": len(out.kept[0])}
            yield row


def rate(question: str, film: Film, index: np.ndarray, scorer) -> dict[str, list[float]]:
    """Rate frames by the model, asked for each digit of the question, and by what is there."""
    names = _NAME.findall(question)
    rated = [scorer([scorer.write("", [name])] * len(index), film.frames[index]) for name in names]
    there = [
        any(
            actor.locate(int(frame), film.timing.rate) is not None
            for actor in film.actors
            if any(name in (actor.name, str(actor.label)) for name in names)
        )
        for frame in index
    ]
    return {
        "model": np.max(rated, axis=0).tolist(),
        "annotation": [float(one) for one in there],
        "alike": [1.0] * len(index),
    }


def sum_up(films: list[list[dict]]) -> list[dict]:
    """Average every way, and its difference to even sampling at as many tokens."""
    draw = np.random.default_rng(0)
    drawn = draw.multinomial(len(films), np.full(len(films), 1 / len(films)), size=_RESAMPLES)
    tasks = ("all", *TASKS)

    def scores(name: str, task: str) -> np.ndarray:  # [films, 2], right answers and questions
        rows = [[row for row in film if task in ("all", row["task"])] for film in films]
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
        for task in tasks:
            own = scores(name, task)
            row[task] = interval(own)
            if base and base != name:
                other = scores(base, task)
                row[f"{task}, less {base}"] = interval(own - other * [1, 0])
        found.append(row)
    return found


if __name__ == "__main__":
    main()
