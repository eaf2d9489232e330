"""Pictures with a question each, for commands that look at what a model makes of them."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
# Of the generators; none of the test sets' starts with these.
_SEEDS = {"train": 0x1E5, "test": 0x1E6}
_QUESTION = "What is in this picture?"

Asked = tuple[Any, str]  # picture, question


def find_pictures(
    folder: str | None, limit: int, held_out: int, question: str | None = None
) -> tuple[list[Asked], list[Asked]]:
    """Return pictures with a question each: to calibrate on, and others.

    Args:
        folder: of pictures, all about the same question; None draws scenes of the bundled
            benchmark, of training digits and of test digits.

    Raises:
        ValueError: no folder, or too few pictures in it.
    """
    if folder is None:
        return _draw_scenes("train", limit), _draw_scenes("test", held_out)
    from ivc_jax.inputs.picture import load_picture

    home = pathlib.Path(folder).expanduser()
    if not home.is_dir():
        raise ValueError(f"images: {home} is no folder")
    files = sorted(path for path in home.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(files) < 3:
        raise ValueError(f"images: {home} holds {len(files)} pictures, too few to calibrate on")
    files = files[: limit + held_out]
    # Of a small folder a fifth is held out.
    first = min(limit, len(files) - max(1, min(held_out, len(files) // 5)))
    text = question or _QUESTION
    pictures = [(load_picture(path, name=path.name), text) for path in files]
    return pictures[:first], pictures[first:]


def _draw_scenes(split: str, count: int) -> list[Asked]:
    """Draw scenes of the digits of a split, with a question each."""
    import numpy as np
    from PIL import Image

    from digit_scenes import digits, questions, scenes

    source, found = digits.load(split), []
    random = np.random.default_rng(_SEEDS[split])
    while len(found) < count:
        scene, pixels = scenes.render(random, source, int(random.integers(3, 10)))
        question = questions.ask(random, scene, str(random.choice(list(questions.TASKS))))
        if question is not None:
            found.append((Image.fromarray(pixels), question.text))
    return found


def collate_all(model: Any, processor: Any, asked: Sequence[Asked], size: int) -> Iterator[Any]:
    """Collate pictures and questions in batches, padded to one shape."""
    import dataclasses

    from ivc_jax.inputs.bucket import Buckets, choose_shape, collate
    from ivc_jax.inputs.layout import arrange

    batches = []
    for first in range(0, len(asked), size):
        pictures, texts = zip(*asked[first : first + size], strict=True)
        images = [[picture] for picture in pictures]
        batches.append(processor(prompts=list(texts), images=images))
    config = model.config
    shapes = [
        dataclasses.asdict(choose_shape(arrange(batch, config), config, Buckets()))
        for batch in batches
    ]
    one = Buckets(**{name: (max(shape[name] for shape in shapes),) for name in shapes[0]})
    return (collate(batch, config, one) for batch in batches)
