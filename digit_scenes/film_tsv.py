"""Write video benchmarks as TSV files, one a task, with an MP4 file for each film.

    python -m digit_scenes.film_tsv FOLDER [--scenes 40] [--seeds 0] [--split test]
        [--seconds 8] [--rate 4] [--grid 16] [--inline]

The files are DigitVideos_when.tsv, _where, _order and _colour; a column `video` holds the path of a
film, seen from the file, or with --inline the film itself. Several questions share a film: later
rows hold the index of the row that names it. The same seeds draw the same films; that their files
are equal takes the same build of FFmpeg, too. Needs PyAV: pip install 'ivc_jax[video]'.
"""

import base64
import collections
import io
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from digit_scenes import digits
from digit_scenes.film_questions import TASKS, draw_questions
from digit_scenes.films import Film, Timing, draw_film
from digit_scenes.tsv import SPLITS, read_arguments, save_rows

COLUMNS = ("index", "video", "question", "answer", "category", "split")
_PREFIX = "DigitVideos"
_PER_FILM = 3
_QUALITY = "18"  # of x264: hardly a difference to see
_STREAM = 0xF11  # films are drawn apart from the scenes of the same seeds


def write(
    folder: pathlib.Path | str,
    num_films: int = 40,
    seeds: Sequence[int] = (0,),
    split: str = "test",
    timing: Timing | None = None,
    inline: bool = False,
) -> list[pathlib.Path]:
    """Write DigitVideos_TASK.tsv for every task, and the films; return the files.

    Args:
        folder: where to.
        num_films: films of each seed, which take turns.
        seeds: of the films.
        split: digits, as of `digit_scenes.tsv.write`.
        timing: of the films, 8 seconds at 4 frames a second by default.
        inline: write films into the cells, as base64.

    Raises:
        ValueError: unknown split.
    """
    timing = timing or Timing()
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    kind, first = SPLITS[split]
    folder = pathlib.Path(folder)
    (folder if inline else folder / "films").mkdir(parents=True, exist_ok=True)
    source = digits.load(kind)
    rows: dict[str, list[dict]] = collections.defaultdict(list)
    for number, seed in itertools.product(range(num_films), seeds):
        # A generator a film: more films leave the first ones as they are.
        random = np.random.default_rng((first, _STREAM, seed, number))
        film = draw_film(random, source, timing)
        content = encode(film)
        cell = f"films/{split}-{seed}-{number:04d}.mp4"
        if inline:
            cell = base64.b64encode(content).decode()
        else:
            (folder / cell).write_bytes(content)
        for task in TASKS:
            carrier = None
            for question in draw_questions(random, film, task, _PER_FILM):
                index = len(rows[task])
                row = {
                    "index": index,
                    "video": cell if carrier is None else str(carrier),
                    "question": question.text,
                    "answer": question.answer,
                    "category": question.category,
                    "split": f"{split}-{seed}",
                }
                rows[task].append(row)
                carrier = index if carrier is None else carrier
    return [save_rows(folder / f"{_PREFIX}_{task}.tsv", COLUMNS, rows[task]) for task in TASKS]


def encode(film: Film) -> bytes:
    """Return a film as an MP4 file."""
    import av

    content = io.BytesIO()
    options = {"crf": _QUALITY, "threads": "1"}  # several threads may cut it another way
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=film.timing.rate, options=options)
        stream.width = stream.height = film.timing.size
        stream.pix_fmt = "yuv420p"
        for pixels in film.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def main(argv: list[str] | None = None) -> None:
    """Write the files named on the command line."""
    parser = read_arguments(__doc__.splitlines()[0])
    parser.set_defaults(scenes=40)
    parser.add_argument("--seconds", type=int, default=Timing.seconds)
    parser.add_argument("--rate", type=int, default=Timing.rate)
    parser.add_argument("--inline", action="store_true")
    options = parser.parse_args(argv)
    timing = Timing(options.seconds, options.rate, options.grid)
    for path in write(
        *(options.folder, options.scenes, options.seeds, options.split, timing, options.inline)
    ):
        print(path)


if __name__ == "__main__":
    main()
