"""The tokenizer of a model folder, as text in and token numbers out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .sentencepiece_model import read_sentencepiece

# Files without which a folder has no tokenizer that transformers builds.
_FAST = ('tokenizer.json', 'vocab.json', 'vocab.txt', 'tokenizer_config.json')
_PART = 2**20


@dataclass(frozen=True)
class TextTokenizer:
    """Splits text into tokens and joins them again.

    Args:
        backend: A ``tokenizers.Tokenizer``, or one of transformers.
        size: Number of tokens.
        bos: The token that begins a text, ``None`` without one.
        eos: The one that ends it.
    """

    backend: Any
    size: int
    bos: int | None = None
    eos: int | None = None

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text ``[n]``, none put in front."""
        found = self.backend.encode(text, add_special_tokens=False)
        return np.asarray(getattr(found, 'ids', found), dtype=np.int64)

    def decode(self, tokens: Any) -> str:
        """Returns the text of tokens."""
        return self.backend.decode([int(token) for token in tokens])


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """Returns the tokenizer of a folder, a file or a hub name.

    Args:
        source: A model folder; a ``tokenizer.json``; a SentencePiece
            ``.model``; or a name of the hub.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.is_dir():
        pieces = path / 'tokenizer.model'
        if not any((path / name).is_file() for name in _FAST[:3]):
            if not pieces.is_file():
                raise ValueError(
                    f'{path} has no tokenizer (none of tokenizer.json, '
                    'tokenizer.model, vocab.json); name the folder or file '
                    'of one, or give token numbers instead of text'
                )
            return _with_ends(read_sentencepiece(pieces), path)
    return _from_transformers(str(source))


def _from_file(path: Path) -> TextTokenizer:
    if path.suffix == '.model':
        return _with_ends(read_sentencepiece(path), path.parent)
    from tokenizers import Tokenizer

    try:
        return _with_ends(Tokenizer.from_file(str(path)), path.parent)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f'{path} is no tokenizer: {error}') from error


def _with_ends(tokenizer: Any, folder: Path) -> TextTokenizer:
    """The tokenizer, with the ends of text that the model's config names."""
    ends, path = {}, folder / 'config.json'
    if path.is_file():
        ends = json.loads(path.read_text())
    found = {name: ends.get(f'{name}_token_id') for name in ('bos', 'eos')}
    for name, text in (('bos', '<s>'), ('eos', '</s>')):
        if not isinstance(found[name], int):
            found[name] = tokenizer.token_to_id(text)
    return TextTokenizer(tokenizer, tokenizer.get_vocab_size(), **found)


def _from_transformers(source: str) -> TextTokenizer:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever it meets in the files
        first = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f'{source} has no tokenizer that can be read: {first}'
        ) from error
    return TextTokenizer(
        found, len(found), found.bos_token_id, found.eos_token_id
    )
