"""The tokenizer of a checkpoint: `tokenizer.json`, `vocab.json` and `merges.txt`, or
`tokenizer.model`.

Tokens beyond the vocabulary are listed in `tokenizer_config.json`, or in `added_tokens.json`.
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivc_jax.inputs.batch import InputError
from ivc_jax.inputs.messages import GUARD, unquote
from ivc_jax.inputs.sentencepiece import build_backend

_NAMED = (  # a string, or a dictionary with "content"
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
# lists of the same, or dictionaries by name
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file, {} if there is none.

    Raises:
        InputError: the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object; fetch it again")
    return content


class Tokenizer:
    """Encodes and decodes text; marks the checkpoint's special tokens as such.

    Attributes:
        special_tokens: the named ones ("eos_token": "<|im_end|>", ...), which templates may read.
    """

    def __init__(self, backend: Any, config: Mapping[str, Any]) -> None:
        """Wrap a `tokenizers.Tokenizer`; `config` is the parsed `tokenizer_config.json`.

        Raises:
            InputError: an added token's id contradicts the vocabulary.
        """
        self._backend = backend
        self._backend.no_padding()  # tokenizer.json may ask for both; rows are padded by `bucket`
        self._backend.no_truncation()
        self.special_tokens = {
            name: _read_content(config[name]) for name in _NAMED if config.get(name) is not None
        }
        self._add_tokens(config)
        added = backend.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}

    @classmethod
    def from_pretrained(cls, path: str | Path, word_pattern: str | None = None) -> "Tokenizer":
        """Read the tokenizer files of a checkpoint directory.

        Args:
            path: the directory.
            word_pattern: regex by which vocab.json and merges.txt want text cut beforehand;
                without it these two are not read.

        Raises:
            InputError: no tokenizer files, or damaged ones.
        """
        path = Path(path)
        config = read_json(path / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            config = _read_older(path, config)
        return cls(_read_backend(path, word_pattern, config), config)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`; special tokens written in it are recognised, quoted ones not.

        A text with guards (`messages.quote`) gets the ids that it has without them, but for special
        tokens that they break up: those are cut into pieces as any other word.
        """
        if GUARD in text:
            plain = unquote(text)
            if any(plain.count(token) > text.count(token) for token in self._special.values()):
                return self._encode_quoted(text, add_special_tokens)
            text = plain
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`."""
        numbers = [int(number) for number in ids]
        return self._backend.decode(numbers, skip_special_tokens=skip_special_tokens)

    def token(self, number: int) -> str:
        """Return the token with this id.

        Raises:
            InputError: the tokenizer has no such id.
        """
        token = self._backend.id_to_token(number)
        if token is None:
            raise InputError(
                f"the tokenizer has no token {number}, which config.json names; use the"
                " tokenizer that belongs to the checkpoint"
            )
        return token

    def number(self, token: str) -> int | None:
        """Return the id of a token, None if unknown."""
        return self._backend.token_to_id(token)

    def list_beyond(self, vocab_size: int) -> list[str]:
        """Return the added tokens whose ids a model with so many embeddings does not have."""
        added = self._backend.get_added_tokens_decoder()
        return [added[number].content for number in sorted(added) if number >= vocab_size]

    def _encode_quoted(self, text: str, add_special_tokens: bool) -> list[int]:
        """Encode what lies between special tokens on its own, where none is recognised.

        <|im_end|>Say <:|:im_:end|:>:!<|im_end|>   ->   id, ids of "Say <|im_end|>!", id
        """
        found = self._backend.encode(text, add_special_tokens=False)  # guards hide the quoted ones
        # what is put in front of any text
        ids = list(self._backend.encode("", add_special_tokens=add_special_tokens).ids)
        reached = 0  # characters of the text
        for number, (begin, end) in zip(found.ids, found.offsets, strict=True):
            if number in self._special:
                ids += [*self._encode_words(unquote(text[reached:begin])), number]
                reached = end
        return ids + self._encode_words(unquote(text[reached:]))

    def _encode_words(self, text: str) -> list[int]:
        return self._blind.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _blind(self) -> Any:
        """A copy that recognises no special token: the switch is not one of a single call."""
        copy = type(self._backend).from_str(self._backend.to_str())
        copy.encode_special_tokens = True
        return copy

    def _add_tokens(self, config: Mapping[str, Any]) -> None:
        from tokenizers import AddedToken

        declared = config.get("added_tokens_decoder") or {}
        # in order of ids: the backend gives out the next free one
        for number, entry in sorted((int(number), entry) for number, entry in declared.items()):
            flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
            self._backend.add_tokens([AddedToken(entry["content"], **flags)])
            if self.number(entry["content"]) != number:
                source = "added_tokens.json" if entry.get("older") else "tokenizer_config.json"
                raise InputError(
                    f"{source} gives {entry['content']!r} the id {number}, the"
                    f" vocabulary {self.number(entry['content'])}; use files of one checkpoint"
                )
        # Tokens without an id of their own are left out: the model has no embedding for them.
        special = [token for token in _list_special(config) if self.number(token) is not None]
        known = self._backend.get_added_tokens_decoder().values()
        marked = {added.content for added in known if added.special}
        self._backend.add_special_tokens([token for token in special if token not in marked])


def _read_content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_older(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete settings by the two files that older checkpoints keep special tokens in.

    transformers reads them in the same case only: tokenizer_config.json lists no added tokens.
    """
    config = {**config, **read_json(path / "special_tokens_map.json")}
    special = set(_list_special(config))
    added = read_json(path / "added_tokens.json")
    config["added_tokens_decoder"] = {
        number: {
            "content": token,
            "special": token in special,
            "normalized": token not in special,
            "older": True,
        }
        for token, number in added.items()
    }
    return config


def _list_special(config: Mapping[str, Any]) -> list[str]:
    """List the tokens that tokenizer_config.json calls special."""
    tokens = [config[name] for name in _NAMED if config.get(name) is not None]
    for name in _LISTED:
        listed = config.get(name) or []
        tokens += listed.values() if isinstance(listed, Mapping) else listed
    return [_read_content(token) for token in tokens]


def _read_backend(path: Path, word_pattern: str | None, config: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer as Backend

    single, vocab, merges = (path / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if single.is_file():
            return Backend.from_file(str(single))
        if word_pattern and vocab.is_file() and merges.is_file():
            return _build_backend(vocab, merges, word_pattern)
        if (model := path / "tokenizer.model").is_file():
            declared = config.get("added_tokens_decoder") or {}
            renamed = {int(number): entry["content"] for number, entry in declared.items()}
            begins = config.get("add_bos_token", True) and config.get("bos_token")
            return build_backend(model, renamed, _read_content(begins) if begins else None)
    except InputError:
        raise
    except Exception as error:  # The library raises bare Exception.
        raise InputError(f"{path}: damaged tokenizer ({error}); fetch it again") from None
    raise InputError(
        f"{path} has neither tokenizer.json nor vocab.json and merges.txt; copy them from the"
        " checkpoint"
    )


def _build_backend(vocab: Path, merges: Path, word_pattern: str) -> Any:
    """Build a byte-level BPE from its two older files."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    backend = Backend(BPE.from_file(str(vocab), str(merges)))
    backend.normalizer = normalizers.NFC()  # letters composed another way would get other ids
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word_pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def find_id(path: Path, token: str) -> int | None:
    """Look up the id of a token in whatever tokenizer files a directory has, None if none has it.

    Raises:
        InputError: a damaged file.
    """
    if token in (added := read_json(path / "added_tokens.json")):
        return int(added[token])
    declared = read_json(path / "tokenizer_config.json").get("added_tokens_decoder") or {}
    whole = read_json(path / "tokenizer.json")
    known = [(number, entry["content"]) for number, entry in declared.items()]
    known += [(entry["id"], entry["content"]) for entry in whole.get("added_tokens") or ()]
    found = [int(number) for number, content in known if content == token]
    return found[0] if found else None


def read_stop_ids(
    path: str | Path, tokenizer: Tokenizer | None = None, end_token: str | None = None
) -> tuple[int, ...]:
    """Return the ids that end an answer.

    That of `end_token` if the tokenizer files have one. Otherwise `generation_config.json` names
    one or several; without it the tokenizer's eos_token counts.

    Raises:
        InputError: a damaged file.
    """
    named: int | Sequence[int] | None
    if end_token is not None and (end := find_id(Path(path), end_token)) is not None:
        return (end,)
    named = read_json(Path(path) / "generation_config.json").get("eos_token_id")
    if named is None and tokenizer is not None:
        named = tokenizer.number(tokenizer.special_tokens.get("eos_token", ""))
    if named is None:
        return ()
    return (named,) if isinstance(named, int) else tuple(int(number) for number in named)
