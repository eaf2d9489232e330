"""Videos of models to which a video is pictures in a row, each behind a text of its own.

<video>   ->   Frame1: <image>
               Frame2: <image>
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ivc_jax.inputs.batch import Visual
from ivc_jax.inputs.messages import Messages

Piece = tuple[str, str]  # kind, and what it is written as in a prompt


def interleave(
    kinds: Iterable[str], images: Sequence[Visual], clips: Sequence[Visual]
) -> list[Visual]:
    """Return the pictures of a prompt, frames among them, in the order of its visuals."""
    waiting = {"image": iter(images), "video": iter(clips)}
    found: list[Visual] = []
    for kind in kinds:
        visual = next(waiting[kind])
        found += [visual] if kind == "image" else _split(visual)
    return found


def spread_pieces(pieces: Sequence[Piece], counts: Sequence[int], text: str) -> list[Piece]:
    """Put frames in the place of videos among the pieces of a prompt.

    Args:
        pieces: kinds "text", "image" and "video".
        counts: frames of each video.
        text: what stands before a frame, with `{number}`.
    """
    waiting, spread = iter(counts), []
    for kind, mark in pieces:
        if kind != "video":
            spread.append((kind, mark))
            continue
        last = next(waiting)
        for number in range(1, last + 1):
            spread.append(("text", text.format(number=number)))
            # The line of the last one ends as that of the video did.
            spread.append(("frame", mark if number == last else ""))
    return spread


def spread_messages(messages: Messages, counts: Sequence[int], text: str) -> Messages:
    """Put frames in the place of videos among the parts of a conversation; see `spread_pieces`."""
    waiting = iter(counts)

    def spread(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if part["type"] != "video":
            return [part]
        pieces = spread_pieces([("video", "")], [next(waiting)], text)
        return [write_part(piece) for piece in pieces]

    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [new for part in message["content"] for new in spread(part)]}
        for message in messages
    ]


def write_part(piece: Piece) -> dict[str, Any]:
    """Return the part of a message that a piece of a prompt becomes.

    Templates may read how a picture came there: as a `frame`, or at a mark in the text (`marked`).
    """
    kind, text = piece
    if kind == "text":
        return {"type": "text", "text": text}
    flags = {"frame": kind == "frame", "marked": bool(text)}
    part = {"type": "image" if kind == "frame" else kind}
    return part | {name: True for name, flag in flags.items() if flag}


def _split(clip: Visual) -> list[Visual]:
    """Return the frames of a clip as pictures."""
    count, *sides = clip.grid
    patches = clip.patches.reshape(count, -1, clip.patches.shape[-1])  # [t, h * w, values]
    return [Visual(each, (1, *sides)) for each in patches]
