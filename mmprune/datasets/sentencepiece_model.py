"""SentencePiece ``tokenizer.model`` files, without the package of that name.

The file is a protocol buffer: pieces with scores and types, the kind of
model, and how text is normalized (sentencepiece_model.proto of
google/sentencepiece names the fields).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Field numbers of ModelProto, SentencePiece, TrainerSpec, NormalizerSpec.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_UNIGRAM, _BPE = 1, 2
_SPACE = '\u2581'


def read_sentencepiece(path: str | Path) -> Any:
    """Returns the ``tokenizers.Tokenizer`` of a SentencePiece file.

    No token is put in front of a text.

    Args:
        path: The file.

    Raises:
        ValueError: If it is none, or of a kind other than BPE and unigram.
    """
    from tokenizers import AddedToken, Tokenizer, decoders

    try:
        pieces, kind, rules = _parse(Path(path).read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f'{path} is no SentencePiece model') from error
    if not pieces or kind not in (_UNIGRAM, _BPE):
        raise ValueError(
            f'{path} is no SentencePiece model of kind BPE or unigram'
        )
    tokenizer = Tokenizer(_model(pieces, kind))
    tokenizer.add_special_tokens(
        [
            AddedToken(text, special=of != _USER, normalized=False)
            for text, _, of in pieces
            if of in (_UNKNOWN, _CONTROL, _USER)
        ]
    )
    tokenizer.normalizer = _normalizer(rules)
    prefix = bool(rules.get(3, 1))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(' ', 1, 0)] if prefix else []),
        ]
    )
    return tokenizer


def _normalizer(rules: dict[int, Any]) -> Any:
    from tokenizers import Regex, normalizers

    steps = []
    if rules.get(2):
        steps.append(normalizers.Precompiled(rules[2]))
    if rules.get(4, 1):
        steps += [
            normalizers.Strip(),
            normalizers.Replace(Regex(' {2,}'), ' '),
        ]
    if rules.get(3, 1):
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(' ', _SPACE)])


def _model(pieces: list[tuple[str, float, int]], kind: int) -> Any:
    from tokenizers import models

    bytes_too = any(of == _BYTE for *_, of in pieces)
    unknown = next((i for i, p in enumerate(pieces) if p[2] == _UNKNOWN), 0)
    if kind == _UNIGRAM:
        scored = [(text, score) for text, score, _ in pieces]
        return models.Unigram(scored, unknown, bytes_too)
    vocabulary = {text: i for i, (text, *_) in enumerate(pieces)}
    return models.BPE(
        vocabulary,
        _merges(pieces, vocabulary),
        unk_token=pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=bytes_too,
    )


def _merges(
    pieces: list[tuple[str, float, int]], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    """The pairs that merge, best first.

    A file has no list of them: two neighbours merge if their concatenation
    is a piece, and the piece with the highest score comes first.
    """
    found = []
    for text, score, of in pieces:
        if of != _NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                order = (vocabulary[left], vocabulary[right])
                found.append((-score, order, (left, right)))
    return [pair for *_, pair in sorted(found)]


def _parse(
    data: bytes,
) -> tuple[list[tuple[str, float, int]], int, dict[int, Any]]:
    """Returns pieces with score and type, the kind, and the normalizer.

    Of the normalizer: 2, a table of characters; 3, whether a space is put in
    front; 4, whether spaces are made one.
    """
    pieces, kind, rules = [], _UNIGRAM, {}
    for field, value in _fields(data):
        if field == _PIECE:
            entry = dict(_fields(value))
            score = struct.unpack('<f', entry.get(2, bytes(4)))[0]
            text = entry[1].decode()
            pieces.append((text, score, entry.get(3, _NORMAL)))
        elif field == _TRAINER:
            kind = dict(_fields(value)).get(3, _UNIGRAM)
        elif field == _NORMALIZER:
            rules = dict(_fields(value))
    return pieces, kind, rules


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each field of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, place = data[place : place + size], place + size
        elif wire == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
            if len(value) < size:
                raise IndexError('the file ends within a field')
        else:
            raise KeyError(wire)
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
