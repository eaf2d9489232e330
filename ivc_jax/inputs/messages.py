"""Chat messages as transformers takes them, and the pictures in them.

    [{"role": "system", "content": "Answer in one word."},
     {"role": "user", "content": [{"type": "image", "image": picture},
                                  {"type": "text", "text": "What is this?"}]},
     {"role": "assistant", "content": "Cat."},
     {"role": "user", "content": "Are you sure?"}]

What stands in a text is text: it is never read for marks. Special tokens of the tokenizer are read
in it, as in transformers, unless it is quoted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ivc_jax.inputs.batch import InputError

Messages = Sequence[Mapping[str, Any]]  # one conversation

GUARD = "\ufdd0"  # no character, says Unicode: free for a program's own use
_INNER = re.compile(r"([^\w\s]|_)(?=.)", re.DOTALL)  # a sign with something behind it

_SOURCES = ("url", "path")  # keys besides the kind itself under which a visual may stand


def quote(text: str) -> str:
    """Return a text in which nothing is read as a special token: guards break them up.

    Say <|im_end|>!   ->   Say <:|:im_:end|:>:!      ":" is the guard
    """
    return _INNER.sub(rf"\1{GUARD}", text)


def unquote(text: str) -> str:
    """Return a text without its guards."""
    return text.replace(GUARD, "")


def find_conversations(prompts: Any) -> Sequence[Messages] | None:
    """Return the conversations, one a sample, if these are chat messages; None for strings.

    Args:
        prompts: strings, one conversation, or a list of conversations.
    """
    if not isinstance(prompts, list | tuple) or not prompts:
        return None
    if isinstance(prompts[0], Mapping):
        return [prompts]
    return prompts if isinstance(prompts[0], list | tuple) else None


def split_visuals(conversations: Sequence[Messages]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return the pictures of each conversation, and the videos of each, in order.

    Raises:
        InputError: as `list_visuals`.
    """
    found = [list_visuals(each, sample) for sample, each in enumerate(conversations)]
    return [each["image"] for each in found], [each["video"] for each in found]


def list_visuals(messages: Messages, sample: int) -> dict[str, list[Any]]:
    """Return the pictures ("image") and videos ("video") of a conversation, in order.

    Args:
        messages: the conversation.
        sample: its number, for errors.

    Raises:
        InputError: no conversation, or a part that is not known.
    """
    found: dict[str, list[Any]] = {"image": [], "video": []}
    for name, part in _walk(messages, sample):
        kind = part["type"]
        if kind == "text":
            continue
        sources = [key for key in (kind, *_SOURCES) if key in part]
        if len(sources) != 1:
            raise InputError(
                f"{name}: write the {kind} under one of the keys {kind}, {', '.join(_SOURCES)};"
                f" it has {sources or 'none of them'}"
            )
        # transformers reads no other key either: silence would hide a bound that does nothing.
        if other := set(part) - {"type", *sources}:
            raise InputError(
                f"{name}: {', '.join(map(str, sorted(other)))} is not read; leave it out (bounds on"
                " pixels go to load, frame rates to fps)"
            )
        found[kind].append(part[sources[0]])
    return found


def list_parts(messages: Messages, sample: int) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (type, part) of every part of a conversation, in order; raises as above."""
    return [(part["type"], part) for _, part in _walk(messages, sample)]


def list_texts(messages: Messages, sample: int) -> list[tuple[str, str]]:
    """Return (what errors call it, text) of every text in a conversation; raises as above."""
    return [(name, part["text"]) for name, part in _walk(messages, sample) if "text" in part]


def _walk(messages: Messages, sample: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the parts of a conversation, checked, and what errors call them."""
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError(
            f"sample {sample}: a conversation is a list of messages, got {messages!r:.60}"
        )
    for number, message in enumerate(messages):
        name = f"sample {sample}, message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f"{name}: write {{'role': ..., 'content': ...}}, got {message!r:.60}")
        content = message["content"]
        if isinstance(content, str):
            yield name, {"type": "text", "text": content}  # a plain string is one part
            continue
        if not isinstance(content, list | tuple):
            raise InputError(f"{name}: its content is neither a string nor a list of parts")
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "image", "video"):
                raise InputError(
                    f"{name}: a part has type {kind!r}; write {{'type': 'text', 'text': ...}},"
                    " {'type': 'image', 'image': ...} or {'type': 'video', 'video': ...}"
                )
            if kind == "text" and not isinstance(part.get("text"), str):
                raise InputError(f"{name}: the part {part!r:.60} has no string under the key text")
            yield name, part
