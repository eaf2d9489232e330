"""The TSV reader: formats that it takes, and what broken files and rows get."""

import io

import PIL.Image
import pytest
from helpers.tsv import HEADER, IMAGE, encode, write_tsv

from ivc_jax.evals.benchmarks.tasks import TASKS
from ivc_jax.evals.running import tsv
from ivc_jax.evals.running.survey import TaskEntry
from ivc_jax.inputs.picture import load_picture


def png(colour=(255, 0, 0), size=(6, 4)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_rows_references_and_lists(tmp_path):
    blue = encode(png((0, 0, 255)))
    rows = [
        ["10", IMAGE, "What?", "red"],
        ["11", "10", "Again?", "red"],
        ["12", "13", "Ahead?", "blue"],
        ["13", blue, '"Two\nlines, a ""quote"" and\ta tab?"', "blue"],
        ["14", f"['{IMAGE}', '{blue}']", "Both?", "no"],
    ]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", HEADER, rows), HEADER[2:])
    assert file.list_ids(2) == ["10", "11"]
    assert file.read(2).images[0].getpixel((0, 0)) == (0, 0, 255)
    assert file.read(1).images[0].getpixel((0, 0)) == (255, 0, 0)
    assert file.read(3).cells["question"] == 'Two\nlines, a "quote" and\ta tab?'
    assert [image.getpixel((0, 0)) for image in file.read(4).images] == [(255, 0, 0), (0, 0, 255)]
    assert file.list_ids() == ["10", "11", "12", "13", "14"]
    with pytest.raises(IndexError):
        file.read(5)


def test_rows_with_one_picture_share_it(tmp_path, monkeypatch):
    opened, real = [], tsv._open
    monkeypatch.setattr(tsv, "_open", lambda *what: opened.append(what) or real(*what))
    rows = [[str(n), IMAGE if n % 3 == 0 else str(n // 3 * 3), "What?", "red"] for n in range(12)]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", HEADER, rows), HEADER[2:])
    found = [file.read(n).images[0] for n in range(12)]
    assert len(opened) == 4
    assert all(found[n] is found[n // 3 * 3] for n in range(12))
    file.read(0, decode=False)  # is not decoded yet: an image of its own
    assert len(opened) == 5
    assert len(file._recent) <= 4  # memory stays bounded
    assert file.read(1).images[0].getpixel((0, 0)) == found[0].getpixel((0, 0))
    assert len(opened) == 6


def test_image_path_column_windows_lines_and_byte_order_mark(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbfindex\timage_path\tquestion\r\n1\ta.png\tWhat?\r\n\r\n")
    file = tsv.TsvFile(path, ["question"])
    assert file.list_ids() == ["1"]
    row = file.read(0)
    assert row.cells["question"] == "What?"
    assert row.images[0].size == (6, 4)


def test_doubled_and_missing_indices_get_unique_ids(tmp_path):
    rows = [["1", IMAGE, "a", "b"], ["1", IMAGE, "a", "b"], ["", IMAGE, "a", "b"]]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", HEADER, rows))
    assert file.list_ids() == ["1", "1#2", "row3"]


def test_missing_column_names_file_and_column(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", HEADER, [])
    with pytest.raises(tsv.TsvError, match=r"a\.tsv lacks the columns 'height', 'width'; it has"):
        tsv.TsvFile(path, ["question", "height", "width"])
    path = write_tsv(tmp_path / "b.tsv", ["index", "question"], [])
    with pytest.raises(tsv.TsvError, match=r"b\.tsv lacks the column 'image'"):
        tsv.TsvFile(path)
    (tmp_path / "c.tsv").write_text("")
    with pytest.raises(tsv.TsvError, match="is empty"):
        tsv.TsvFile(tmp_path / "c.tsv")
    with pytest.raises(tsv.TsvError, match="cannot open"):
        tsv.TsvFile(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["7", "x" * 99, "q", "a"], "base64"),
        (["7", encode(b"no image at all" * 9), "q", "a"], "cannot be read"),
        (["7", encode(png((1, 2, 3), (99, 99))[:90]), "q", "a"], "cannot be read"),
        (["7", "", "q", "a"], "the image cell is empty"),
        (["7", "99", "q", "a"], "names the row '99', which does not exist"),
        (["7", "7", "q", "a"], "references"),
        (["7", f"['{IMAGE}'", "q", "a"], "not a valid list"),
        (["7", IMAGE, " ", "a"], "the question cell is empty"),
        (["7", IMAGE, "q", ""], "the answer cell is empty"),
        (["7", IMAGE, "q"], "3 cells where the header has 4"),
    ],
)
def test_broken_rows_name_their_number(tmp_path, row, message):
    path = write_tsv(tmp_path / "a.tsv", HEADER, [["1", IMAGE, "q", "a"], row])
    file = tsv.TsvFile(path, HEADER[2:])
    file.read(0)
    with pytest.raises(tsv.RowError, match=rf"a\.tsv row 2 \(index 7\): .*{message}"):
        file.read(1)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Café €5?", "cp1252"),
        ("¿Qué es?", "latin-1"),
        ("图片里有什么", "gbk"),
        ("What?", "utf-16"),
        ("What?", "utf-16-le"),
        ("What?", "utf-16-be"),
    ],
)
def test_another_encoding_is_refused_by_file_and_row(tmp_path, text, encoding):
    path = tmp_path / "a.tsv"
    rows = [HEADER, ["1", IMAGE, "q", "a"], ["2", IMAGE, text, "a"]]
    path.write_bytes("".join("\t".join(row) + "\n" for row in rows).encode(encoding))
    place = "the header" if encoding.startswith("utf-16") else "row 2"
    with pytest.raises(tsv.TsvError, match=rf"a\.tsv {place}: not UTF-8, save it as UTF-8"):
        tsv.TsvFile(path).list_ids()


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [*HEADER, "answer", "", ""], [])
    with pytest.raises(tsv.TsvError, match=r"a\.tsv has the column 'answer' twice"):
        tsv.TsvFile(path, HEADER[2:])


def test_columns_that_rows_may_leave_empty_must_be_there(tmp_path):
    path = write_tsv(tmp_path / "MMStar.tsv", HEADER, [])
    with pytest.raises(tsv.TsvError, match=r"MMStar\.tsv lacks the columns 'A', 'B'; it has"):
        TaskEntry.open(TASKS["MMStar"], path)


@pytest.mark.parametrize("missing", ["nan", "NaN", "<NA>"])
def test_missing_values_are_empty_cells(tmp_path, missing):
    header = [*HEADER, "image_path"]
    (tmp_path / "a.png").write_bytes(png())
    rows = [[missing, missing, "q", "a", "a.png"], ["2", IMAGE, missing, "a", missing]]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", header, rows), HEADER[2:])
    assert file.list_ids() == ["row1", "2"]
    assert file.read(0).images[0].size == (6, 4)
    with pytest.raises(tsv.RowError, match=rf"row 2 .*the question cell is empty \({missing}\)"):
        file.read(1)


def test_picture_lists_of_numpy_are_lists(tmp_path):
    rows = [["1", f"['{IMAGE}' '{IMAGE}']", "q", "a"], ["2", f"['{IMAGE}', nan]", "q", "a"]]
    file = tsv.TsvFile(write_tsv(tmp_path / "a.tsv", HEADER, rows))
    assert len(file.read(0).images) == 2
    with pytest.raises(tsv.RowError, match=r"row 2 .*item 2 of the list is no text"):
        file.read(1)


def test_exif_orientation_of_cells_is_not_applied(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture = PIL.Image.new("RGB", (6, 4), (255, 0, 0))
    picture.save(tmp_path / "a.png", exif=exif)
    cell = encode((tmp_path / "a.png").read_bytes())
    base64 = write_tsv(tmp_path / "a.tsv", HEADER, [["1", cell, "What?", "red"]])
    header = ["index", "image_path", "question", "answer"]
    named = write_tsv(tmp_path / "b.tsv", header, [["1", "a.png", "What?", "red"]])
    for path in (base64, named):
        (opened,) = tsv.TsvFile(path).read(0).images
        assert load_picture(opened).size == opened.size == (6, 4)
