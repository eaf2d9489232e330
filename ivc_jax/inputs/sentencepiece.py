"""Tokenizers that are published as `tokenizer.model`: byte pairs of SentencePiece, as InternLM2's.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece). A pair of pieces
is merged before another one if the piece that it makes has the higher score:

    pieces  a -1  b -2  ab -3  b a -4      merges  (a, b) before (b, a)
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ivc_jax.inputs.batch import InputError

_BLANK = "\u2581"  # stands for a blank in pieces
_NORMAL, _UNKNOWN, _CONTROL, _DEFINED, _BYTE = 1, 2, 3, 4, 6  # kinds of pieces
_BYTE_PAIRS = 2  # kind of model
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def build_backend(file: Path, renamed: Mapping[int, str], first: str | None = None) -> Any:
    """Build a `tokenizers.Tokenizer` from a `tokenizer.model`.

    Args:
        file: the model.
        renamed: what tokens of these ids are called in place of their pieces.
        first: the token that goes in front of a text, if there is one.

    Raises:
        InputError: a damaged file, or another kind of model.
    """
    try:
        pieces, prefix, kind = _read_model(file.read_bytes())
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise InputError(f"{file} is no SentencePiece model; fetch it again") from None
    if kind != _BYTE_PAIRS or not pieces:
        raise InputError(
            f"{file} has no byte pairs, which are all that is read; use tokenizer.json"
        )
    texts = {number: renamed.get(number, piece.text) for number, piece in enumerate(pieces)}
    backend = _assemble(pieces, texts, prefix)
    if first is not None and (number := backend.token_to_id(first)) is not None:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, number)]
        )
    return backend


def _assemble(pieces: list[_Piece], texts: Mapping[int, str], prefix: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = {text: number for number, text in texts.items()}
    unknown = next((texts[n] for n, piece in enumerate(pieces) if piece.kind == _UNKNOWN), None)
    model = models.BPE(
        vocabulary,
        _list_merges([piece for n, piece in enumerate(pieces) if texts[n] == piece.text]),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=any(piece.kind == _BYTE for piece in pieces),
    )
    backend = Tokenizer(model)
    for number, piece in enumerate(pieces):
        if piece.kind in (_UNKNOWN, _CONTROL):
            backend.add_special_tokens([AddedToken(texts[number], normalized=False, special=True)])
        elif piece.kind == _DEFINED:
            backend.add_tokens([AddedToken(texts[number], normalized=False)])
    blanks = [normalizers.Prepend(_BLANK)] if prefix else []
    backend.normalizer = normalizers.Sequence([*blanks, normalizers.Replace(" ", _BLANK)])
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(steps)
    return backend


def _list_merges(pieces: list[_Piece]) -> list[tuple[str, str]]:
    """List the pairs that make a piece, those of the highest score first."""
    made = {piece.text: piece.score for piece in pieces if piece.kind == _NORMAL}
    order = {text: number for number, text in enumerate(made)}
    merges = []
    for text, score in made.items():
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in splits if pair[0] in made and pair[1] in made]
        merges += [(-score, order[left], order[right], left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(merges)]


def _read_model(data: bytes) -> tuple[list[_Piece], bool, int]:
    """Return the pieces, whether text gets a blank in front, and the kind of model."""
    pieces, prefix, kind = [], True, 1  # the defaults of the format
    for number, value in _list_fields(data):
        if number == 1:  # a piece
            fields = dict(_list_fields(value))
            (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
            pieces.append(_Piece(fields[1].decode(), score, fields.get(3, 1)))
        elif number == 2:  # how it was trained
            kind = dict(_list_fields(value)).get(3, kind)
        elif number == 3:  # how text is prepared
            prefix = bool(dict(_list_fields(value)).get(3, prefix))
    return pieces, prefix, kind


def _list_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a message: an int, or the bytes as they lie there."""
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _read_varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, place = _read_varint(data, place)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, len(data))
        if place + size > len(data):
            raise IndexError("a field ends behind the message")
        yield number, data[place : place + size]
        place += size


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Read seven bits a byte, the low ones first, as long as the eighth is set."""
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
