"""Small TSV files of benchmarks."""

import base64
import io

import PIL.Image


def png(colour=(255, 0, 0), size=(6, 4)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def cell(content: bytes) -> str:
    return base64.b64encode(content).decode()


IMAGE = cell(png())


def write_tsv(path, header, rows):
    lines = ["\t".join(header), *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


HEADER = ["index", "image", "question", "answer"]
