"""Benchmark files as tests write them: tab-separated cells with base64 images."""

import base64
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

HEADER = ["index", "image", "question", "answer"]


def encode(content: Image.Image | bytes, kind: str = "PNG", **options: Any) -> str:
    """Write an image, or bytes as they are, as the cell of a file."""
    if isinstance(content, Image.Image):
        buffer = io.BytesIO()
        content.save(buffer, kind, **options)
        content = buffer.getvalue()
    return base64.b64encode(content).decode()


IMAGE = encode(Image.new("RGB", (6, 4), (255, 0, 0)))


def write_tsv(
    path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> pathlib.Path:
    """Write a file without quoting and return its path."""
    path.write_text("".join("\t".join(cells) + "\n" for cells in (header, *rows)))
    return path
