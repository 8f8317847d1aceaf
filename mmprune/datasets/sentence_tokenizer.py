"""Tokenizers of sentences: of a folder, a vocabulary, or a list of words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')


def load_sentence_tokenizer(source: str | Sequence[str]) -> Any:
    """Returns a tokenizer of the package ``tokenizers``.

    Args:
        source: A ``vocab.txt`` of WordPiece (lower case, as
            bert-base-uncased); a folder with ``tokenizer.json`` or
            ``vocab.txt``; a hub name; or words, which become the vocabulary
            after the five special ones.

    Raises:
        ValueError: If there is no such tokenizer.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if not isinstance(source, str):
        words = [*SPECIAL, *dict.fromkeys(source)]
        vocab = {word: number for number, word in enumerate(words)}
        return BertWordPieceTokenizer(vocab)._tokenizer
    path = Path(source).expanduser()
    if (path / 'tokenizer.json').is_file():
        return Tokenizer.from_file(str(path / 'tokenizer.json'))
    path = path / 'vocab.txt' if path.is_dir() else path
    if path.is_file():
        return BertWordPieceTokenizer(str(path))._tokenizer
    if path.suffix == '.txt' or path.is_absolute() or path.name == 'vocab.txt':
        raise ValueError(
            f'there is no tokenizer at {source}; give a vocab.txt, a folder '
            'with tokenizer.json or vocab.txt, or a hub name'
        )
    return _of_the_hub(source)


def padding(tokenizer: Any) -> int:
    """Returns the number of the token that fills a batch."""
    for word in ('[PAD]', '<pad>'):
        number = tokenizer.token_to_id(word)
        if number is not None:
            return number
    return 0


def _of_the_hub(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return found.backend_tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as error:
        first = str(error).strip().splitlines()[0][:160]
        raise ValueError(
            f'{name} is no tokenizer that transformers can load: {first}; '
            'give a vocab.txt or a folder'
        ) from error
