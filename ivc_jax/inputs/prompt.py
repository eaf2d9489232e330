"""Prompts as token ids: marks, chat template, and one placeholder for each visual token.

    prompt    Is this <image> the same as <image>?
    rendered  ... Is this <|vision_start|><|image_pad|><|vision_end|> the same as ...
    written   ... Is this <|vision_start|><|image_pad|><|image_pad|><|image_pad|> ...
    ids       ... 7 8 151652 151655 151655 151655 151655 151653 9 ...    4 visual tokens

`<image>` and `<video>` mark where visuals go; the placeholder itself (`<|image_pad|>`), already in
the prompt, counts as a mark too. A kind without any mark comes first: images, then videos.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ivc_jax.config import ModelConfig
from ivc_jax.inputs.batch import InputError, check_ids
from ivc_jax.inputs.footprint import Footprint
from ivc_jax.inputs.frames import Piece, spread_messages, spread_pieces, write_part
from ivc_jax.inputs.messages import Messages, list_parts, list_texts, unquote
from ivc_jax.inputs.tokenizer import Tokenizer, read_json

MARKS = {"image": "<image>", "video": "<video>"}
_MARK_PATTERN = re.compile("|".join(MARKS.values()))
# Around what an assistant has said, for who trains on it; transformers' extension, not Jinja's.
_ANSWER_TAGS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


class ChatTemplate:
    """A Jinja chat template, rendered as transformers' `apply_chat_template` does."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template; it may read `special_tokens` by name.

        Raises:
            InputError: a syntax error.
        """
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = _ANSWER_TAGS.sub("", source)
        # The template is part of a download, so it runs in a sandbox. Blocks are trimmed as in
        # transformers: a blank line more is a token more.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        self._special_tokens, self._source = dict(special_tokens), source
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"chat template: {error}; correct it or use chat=False") from None

    @property
    def shows_pictures(self) -> bool:
        """Whether it writes pictures; those of text-only tokenizers do not."""
        return "image" in self._source

    @classmethod
    def from_pretrained(
        cls, path: str | Path, special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """Read the template of a checkpoint directory, None if it has none.

        The first of processor_config.json, chat_template.json, chat_template.jinja and
        tokenizer_config.json, as in transformers; of several named templates "default" is taken.

        Raises:
            InputError: a damaged file, or named templates without that one.
        """
        path = Path(path)
        source = read_json(path / "processor_config.json").get("chat_template")
        if source is None:
            source = read_json(path / "chat_template.json").get("chat_template")
        if source is None and (path / "chat_template.jinja").is_file():
            source = (path / "chat_template.jinja").read_text(encoding="utf-8")
        if source is None:
            source = read_json(path / "tokenizer_config.json").get("chat_template")
        if isinstance(source, list):
            # a list of {name, template}
            source = {entry["name"]: entry["template"] for entry in source}
        if isinstance(source, dict):
            if "default" not in source:
                raise InputError(
                    f"{path} has the chat templates {', '.join(map(repr, source))}, none of them"
                    " 'default'; rename the one to use"
                )
            source = source["default"]
        return None if source is None else cls(source, special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation.

        Raises:
            InputError: the template rejects the messages.
        """
        import jinja2

        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise InputError(f"chat template: {error}; correct it or use chat=False") from None


@dataclasses.dataclass(frozen=True)
class PromptWriter:
    """Turns a prompt and what its visuals take up into ids.

    Attributes:
        tokenizer: of the checkpoint.
        template: its chat template, if it has one.
        config: of the model.
        write_visual: the text that takes the place of a visual's placeholder (`families.base`).
        frame_text: what stands before a frame of a video, where frames are pictures (likewise).
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    config: ModelConfig
    write_visual: Callable[[Footprint, str], str]
    frame_text: str | None = None

    def write(
        self,
        prompt: str | Messages,
        footprints: Mapping[str, Sequence[Footprint]],
        sample: int,
        chat: bool = True,
        frames: Sequence[int] = (),
    ) -> np.ndarray:
        """Return the ids [n] int32 of one sample, placeholders repeated.

        Args:
            prompt: a string, which may hold marks, or chat messages, whose texts hold none.
            footprints: of each "image" and each "video", in order.
            sample: its number, for errors.
            chat: wrap a string as a user message in the chat template.
            frames: of each video whose frames are among the images.

        Raises:
            InputError: marks and visuals differ in number, the text of a message holds a
                placeholder, a token has no embedding, or there is no chat template.
        """
        if not isinstance(prompt, str):
            text = self._render_messages(prompt, frames, sample)
        else:
            counts = {kind: len(each) for kind, each in footprints.items()}
            if frames:
                counts = {"image": counts["image"] - sum(frames), "video": len(frames)}
            pieces = self._place(prompt, counts, sample)
            if frames:
                pieces = spread_pieces(pieces, frames, self.frame_text or "")
            text = self._render(pieces) if chat else "".join(map(self._raw, pieces))
        text, lengths = self._write_visuals(text, footprints, sample)
        # A template that writes no first token leaves it to the tokenizer, as a raw prompt does.
        start = self.tokenizer.special_tokens.get("bos_token")
        whole = chat and (start is None or text.startswith(start))
        tokens = np.array(self.tokenizer.encode(text, add_special_tokens=not whole), np.int32)
        check_ids(tokens, self.config.decoder.vocab_size, f"sample {sample}")
        repeats = np.ones(len(tokens), np.int64)  # [tokens]
        for number, counts in lengths.items():
            slots = np.flatnonzero(tokens == number)  # [runs]
            if len(slots) != len(counts):
                raise InputError(
                    f"the tokenizer does not read {self.tokenizer.token(number)} as one token; use"
                    " the tokenizer that belongs to the checkpoint"
                )
            repeats[slots] = counts
        return np.repeat(tokens, repeats)  # [n]

    def _write_visuals(
        self, text: str, footprints: Mapping[str, Sequence[Footprint]], sample: int
    ) -> tuple[str, dict[int, list[int]]]:
        """Write visuals in the place of their placeholders, each run of them as one.

        Returns:
            The text, and for each placeholder the visual tokens of each of its runs, in order.
        """
        lengths = {}
        for kind, number in self._placeholder_ids().items():
            placeholder = self.tokenizer.token(number)
            found, expected = text.count(placeholder), len(footprints[kind])
            if found != expected:
                raise InputError(
                    f"sample {sample}: the rendered prompt has {found} {kind} placeholders for"
                    f" {expected} {kind}s; check the chat template"
                )
            written = [self.write_visual(each, placeholder) for each in footprints[kind]]
            parts = text.split(placeholder)  # one more than there are visuals
            text = "".join(itertools.chain(*zip(parts, [*written, ""], strict=True)))
            # Tokenizing a thousand placeholders takes milliseconds: each run is tokenized as one.
            runs = re.compile(f"(?:{re.escape(placeholder)})+")
            lengths[number] = [len(run) // len(placeholder) for run in runs.findall(text)]  # [runs]
            # a run is one placeholder again, until `np.repeat`
            text = runs.sub(lambda _, one=placeholder: one, text)
        return text, lengths

    def _placeholder_ids(self) -> dict[str, int]:
        """Return the placeholder of each kind of visual that the model takes."""
        ids = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        return {kind: number for kind, number in ids.items() if number is not None}

    def list_kinds(
        self, prompt: str | Messages, counts: Mapping[str, int], sample: int
    ) -> list[str]:
        """List the visuals of a prompt, "image" or "video", in order.

        Args:
            prompt: as for `write`.
            counts: how many there are of each kind.
            sample: its number, for errors.

        Raises:
            InputError: marks and visuals differ in number.
        """
        if not isinstance(prompt, str):
            return [kind for kind, _ in list_parts(prompt, sample) if kind != "text"]
        placeholder = self.tokenizer.token(self.config.image_token_id)
        kinds: list[str] = []
        for kind, text in self._place(prompt, counts, sample):
            kinds += ["image"] * text.count(placeholder) if kind == "text" else [kind]
        return kinds

    def _place(self, prompt: str, counts: Mapping[str, int], sample: int) -> list[Piece]:
        """Cut the prompt into ("text" | "image" | "video", text), unmarked kinds first."""
        first, placeholders = [], self._placeholder_ids()
        for kind, mark in MARKS.items():
            found, expected = prompt.count(mark), counts[kind]
            placeholder = self.tokenizer.token(placeholders[kind]) if kind in placeholders else mark
            if placeholder != mark:
                found += prompt.count(placeholder)
            if not found:
                first += [(kind, "")] * expected
            elif found != expected:
                raise InputError(
                    f"sample {sample}: prompt has {found} {mark} marks for {expected} {kind}s;"
                    f" write one mark for each {kind}, or none"
                )
        kinds = {mark: kind for kind, mark in MARKS.items()}
        # the group keeps the marks among the pieces
        pieces = re.split(f"({_MARK_PATTERN.pattern})", prompt)
        return first + [(kinds.get(piece, "text"), piece) for piece in pieces if piece]

    def _render(self, pieces: Sequence[Piece]) -> str:
        parts = [write_part(piece) for piece in pieces]
        if all(kind == "text" for kind, _ in pieces):
            # Templates of text-only tokenizers expect a plain string; some others drop it unread.
            content = "".join(text for _, text in pieces)
            rendered = self._apply_template([{"role": "user", "content": content}])
            if content.strip() in rendered:
                return rendered
        return self._apply_template([{"role": "user", "content": parts}])

    def _render_messages(self, messages: Messages, frames: Sequence[int], sample: int) -> str:
        for kind, number in self._placeholder_ids().items():
            placeholder = self.tokenizer.token(number)
            for name, text in list_texts(messages, sample):
                # A quoted mark is words; any other placeholder is refused, quoted or not.
                if placeholder in (text if placeholder in MARKS.values() else unquote(text)):
                    raise InputError(
                        f"{name}: its text holds {placeholder}, which stands for {kind}s; take it"
                        f" out, or write a part of type {kind}"
                    )
        if frames:
            messages = spread_messages(messages, frames, self.frame_text or "")
        return self._apply_template(messages)

    def _apply_template(self, messages: Messages) -> str:
        if self.template is None:
            raise InputError("the checkpoint has no chat template; add one or use chat=False")
        return self.template.render(messages)

    def _raw(self, piece: Piece) -> str:
        kind, text = piece
        if kind == "text":
            return text
        config, placeholders = self.config, self._placeholder_ids()
        placeholder = placeholders["image" if kind == "frame" else kind]
        marks = (config.vision_start_id, placeholder, config.vision_end_id)
        line = "".join(self.tokenizer.token(number) for number in marks if number is not None)
        return f"{line}\n" if kind == "frame" and not text else line


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialise without Jinja's HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
