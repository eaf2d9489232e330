"""Films of digits: what is drawn is what is asked, and the files hold it."""

import csv

import numpy as np
import pytest

from digit_scenes import digits, film_tsv
from digit_scenes.film_questions import TASKS, draw_questions
from digit_scenes.films import Timing, draw_film
from ivc_jax.evals.benchmarks import tasks
from ivc_jax.evals.running.tsv import TsvFile

SHORT = Timing(seconds=5, rate=2, grid=8)


def draw(seed, timing=SHORT):
    return draw_film(np.random.default_rng(seed), digits.load("test"), timing)


def test_a_seed_draws_one_film():
    one, same, other = draw(1), draw(1), draw(2)
    assert one.frames.shape == (10, 128, 128, 3)
    np.testing.assert_array_equal(one.frames, same.frames)
    assert one.actors == same.actors
    assert (one.frames != other.frames).any()


@pytest.mark.parametrize("seed", range(8))
def test_digits_are_where_they_are_said_to_be_and_nowhere_else(seed):
    film = draw(seed)
    assert len({actor.glyph.label for actor in film.actors}) == len(film.actors) >= 1
    assert len({actor.first for actor in film.actors}) == len(film.actors)
    for frame, pixels in enumerate(film.frames):
        painted = np.zeros((8, 8), bool)
        for actor in film.actors:
            place = actor.locate(frame, SHORT.rate)
            assert (place is not None) == (actor.first <= frame / SHORT.rate < actor.last)
            if place is not None:
                assert not painted[place]  # no two share a cell
                painted[place] = True
                cell = pixels.reshape(8, 16, 8, 16, 3)[place[0], :, place[1]].astype(int)
                coloured = np.ptp(cell, axis=-1) > 60  # the ground is grey, white ink bright
                assert (coloured | (cell.min(axis=-1) > 200)).sum() > 8
        painted = np.kron(painted, np.ones((16, 16), bool))
        plain = np.where(painted[..., None], 0, pixels)
        assert (np.ptp(plain, axis=-1) == 0).all()  # and grey all around
        others = [
            np.where(painted[..., None], 0, each)
            for number, each in enumerate(film.frames)
            if all(a.locate(number, SHORT.rate) == a.locate(frame, SHORT.rate) for a in film.actors)
        ]
        assert all((plain == each).all() for each in others)  # the background stands still


@pytest.mark.parametrize("seed", range(8))
def test_answers_are_true(seed):
    film = draw(seed, Timing(grid=8))
    known = {actor.name: actor for actor in film.actors}
    for task in TASKS:
        asked = draw_questions(np.random.default_rng(0), film, task, 99)
        assert len({question.text for question in asked}) == len(asked)
        for question in asked:
            words = question.text
            named = [actor for name, actor in known.items() if name in words]
            if task == "when":
                attribute = "first" if question.category == "appear" else "last"
                assert int(question.answer) == getattr(named[0], attribute)
            elif task == "order":
                attribute = "first" if question.category == "appear" else "last"
                first = min(named, key=lambda actor: getattr(actor, attribute))
                assert question.answer == first.name
            elif question.category == "place":
                second = int(words.split(" after ")[1].split()[0])
                row, column = named[0].locate(second * 4, 4)
                assert ("left" in question.answer) == (column < 4)
                assert ("upper" in question.answer) == (row < 4)
                assert not {row, column} & {3, 4}  # too near the middle
            elif question.category == "way":
                (y1, x1), (y2, x2) = named[0].start, named[0].end
                moved = {"right": x2 - x1, "left": x1 - x2, "down": y2 - y1, "up": y1 - y2}
                assert moved[question.answer] >= 2


def test_one_command_writes_files_that_the_reader_takes(tmp_path, capsys):
    pytest.importorskip("av")
    arguments = ["--scenes", "2", "--seconds", "4", "--rate", "2", "--grid", "8"]
    film_tsv.main([str(tmp_path / "files"), *arguments])
    printed = capsys.readouterr().out.split()
    assert [path.rsplit("_")[-1] for path in printed] == [f"{task}.tsv" for task in TASKS]
    film_tsv.main([str(tmp_path / "cells"), *arguments, "--inline"])
    assert not (tmp_path / "cells" / "films").exists()
    for name in TASKS:
        task = tasks.TASKS[f"DigitVideos_{name}"]
        plain, inline = (
            TsvFile(tmp_path / kind / task.file_name, task.scoring.columns)
            for kind in ("files", "cells")
        )
        assert plain.list_ids() == inline.list_ids() != []
        for position in range(len(plain.list_ids())):
            row = plain.read(position)
            task.check_cells(row.cells)
            (video,) = row.videos
            assert (video.total, video.rate, video.width, video.height) == (8, 2.0, 128, 128)
            assert inline.read(position).videos[0].source == video.source.read_bytes()
            assert {**row.cells, "video": ""} == {**inline.read(position).cells, "video": ""}


def test_a_file_shows_what_was_drawn(tmp_path):
    pytest.importorskip("av")
    (path, *_) = film_tsv.write(tmp_path, num_films=1, timing=SHORT)
    with path.open() as file:
        (row, *_) = csv.DictReader(file, delimiter="\t")
    random = np.random.default_rng((film_tsv.SPLITS["test"][1], film_tsv._STREAM, 0, 0))
    film = draw_film(random, digits.load("test"), SHORT)
    clip = TsvFile(path).read(0).videos[0].read(range(10))
    assert row["video"] == "films/test-0-0000.mp4"
    # colours are halved and the rest is rounded: far less than a digit
    assert np.abs(clip.frames.astype(int) - film.frames).mean() < 6
    assert film_tsv.encode(film) == (tmp_path / row["video"]).read_bytes()


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        film_tsv.write(tmp_path, split="dev")
