"""Text as windows of tokens, for language models."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..checks import check_choice
from ..registry import DATASETS
from .generated_text import generated_text
from .text_tokenizer import TextTokenizer, load_tokenizer

GENERATED = 'generated'
_TOKENS = ('.npy', '.npz')


@DATASETS.register_module()
class TokenWindows(Dataset):
    """Windows of ``seqlen`` tokens, each ``dict(input_ids=[seqlen])``.

    Args:
        seqlen: Tokens of a window.
        source: A text file; ``.npy`` or ``.npz`` with tokens, a row per
            window or all in one row; ``hub:NAME``, ``hub:NAME:CONFIG`` or
            ``hub:NAME:CONFIG:SPLIT`` for a data set of the package
            ``datasets``, by default its training split; or ``generated`` for
            text that is made here.
        tokenizer: Folder, file or hub name of the tokenizer, for text.
        num_windows: How many; ``None`` takes all.
        order: ``first`` for neighbouring windows that do not overlap, from
            the start and without the rest; ``random`` for windows that begin
            anywhere.
        seed: Of the random order.
        bos: Whether the token that begins a text comes first in every
            window.
        skip: Windows at the start to leave out, which another set takes.
        partial: Whether fewer windows than ``num_windows`` will do.

    Raises:
        ValueError: If text or tokens cannot be read, or are shorter than one
            window.
    """

    def __init__(
        self,
        seqlen: int,
        source: str = GENERATED,
        tokenizer: str | None = None,
        num_windows: int | None = None,
        order: str = 'first',
        seed: int = 0,
        bos: bool = False,
        skip: int = 0,
        partial: bool = False,
    ) -> None:
        check_choice('order', order, ('first', 'random'))
        if seqlen < 2 or (num_windows is not None and num_windows < 1):
            raise ValueError(
                'a window has at least 2 tokens and there is at least one, '
                f'found seqlen={seqlen} and num_windows={num_windows}'
            )
        self.seqlen, self.source = seqlen, source
        self.metainfo = dict(source=source, seqlen=seqlen, bos=bos)
        if Path(source).suffix in _TOKENS:
            tokens, begin = _read_tokens(Path(source)), None
        else:
            splitter = _tokenizer(tokenizer, source)
            begin = splitter.bos if bos else None
            need = seqlen * (num_windows + skip) if num_windows else None
            tokens = _encoded(source, splitter, need)
        if bos and begin is None:
            raise ValueError(
                'bos=True, but no tokenizer says which token begins a text; '
                'leave it out'
            )
        size = seqlen - (begin is not None)
        if skip:
            tokens = _after(tokens, skip, size, source)
        self.windows = _cut(
            tokens, size, num_windows, order, seed, source, partial
        )
        if begin is not None:
            self.windows = np.insert(self.windows, 0, begin, axis=1)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(input_ids=torch.from_numpy(self.windows[index].copy()))

    @property
    def largest(self) -> int:
        """The largest token."""
        return int(self.windows.max())


def _tokenizer(tokenizer: str | None, source: str) -> TextTokenizer:
    if tokenizer is None:
        raise ValueError(
            f'the text {source} needs a tokenizer; name its folder or file'
        )
    return load_tokenizer(tokenizer)


def _encoded(
    source: str, tokenizer: TextTokenizer, need: int | None
) -> np.ndarray:
    """The tokens of a text; of what has no end, at least ``need``."""
    if source == GENERATED:
        # A token has more than one letter, on the average.
        return tokenizer.encode(generated_text(max(4 * (need or 0), 2**16)))
    if source.startswith('hub:'):
        return _from_hub(source, tokenizer, need)
    path = Path(source).expanduser()
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError as error:
        raise ValueError(f'there is no text at {path}') from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(
            f'{path} is no text file in UTF-8; give one, or .npy with tokens'
        ) from error
    return tokenizer.encode(text)


def _from_hub(
    source: str, tokenizer: TextTokenizer, need: int | None
) -> np.ndarray:
    """Enough documents of a data set; all of it as one text without need."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f'{source} is read by the package datasets; pip install '
            'datasets, or give a text file'
        ) from error
    name, *more = source.removeprefix('hub:').split(':')
    split = more[1] if len(more) > 1 else 'train'
    rows = load_dataset(name, *more[:1], split=split, streaming=True)
    if need is None:
        # As the papers join the lines of WikiText.
        return tokenizer.encode('\n\n'.join(row['text'] for row in rows))
    parts, count = [], 0
    for row in rows:
        parts.append(tokenizer.encode(row['text']))
        count += len(parts[-1])
        if count >= 2 * need:
            break
    return np.concatenate(parts or [np.zeros(0, np.int64)])


def _read_tokens(path: Path) -> np.ndarray:
    """Returns the integers of a file ``[n]`` or ``[windows, seqlen]``."""
    try:
        found: Any = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f'there are no tokens at {path}') from error
    except (ValueError, OSError) as error:
        raise ValueError(f'{path} is no NumPy file of tokens') from error
    if path.suffix == '.npz':
        if len(found.files) != 1:
            raise ValueError(
                f'{path} holds {", ".join(found.files[:4])}; give a file '
                'with one array of tokens'
            )
        found = found[found.files[0]]
    if found.dtype.kind not in 'iu' or found.ndim not in (1, 2):
        raise ValueError(
            f'{path} holds {found.dtype} of shape {found.shape}; tokens are '
            'integers, a row per window or all in one row'
        )
    if found.size and found.min() < 0:
        raise ValueError(f'{path} holds the token {found.min()}')
    return found.astype(np.int64)


def _after(
    tokens: np.ndarray, skip: int, size: int, source: str
) -> np.ndarray:
    """Returns the tokens behind the first windows."""
    rest = tokens[skip:] if tokens.ndim == 2 else tokens[skip * size :]
    if rest.size < size:
        raise ValueError(
            f'{source} gives no window of {size} tokens behind the first '
            f'{skip}; give more text, or leave fewer out'
        )
    return rest


def _cut(
    tokens: np.ndarray,
    size: int,
    count: int | None,
    order: str,
    seed: int,
    source: str,
    partial: bool = False,
) -> np.ndarray:
    """Returns windows ``[count, size]``."""
    if tokens.ndim == 2:
        if tokens.shape[1] < size:
            raise ValueError(
                f'{source} has rows of {tokens.shape[1]} tokens, shorter '
                f'than one window of {size}; lower the sequence length'
            )
        rows = tokens[:, :size]
    else:
        if len(tokens) < size:
            raise ValueError(
                f'{source} has {len(tokens)} tokens, less than one window of '
                f'{size}; give more text or lower the sequence length'
            )
        if order == 'random':
            draw = random.Random(seed)
            starts = [
                draw.randint(0, len(tokens) - size)
                for _ in range(count or len(tokens) // size)
            ]
            return np.stack([tokens[i : i + size] for i in starts])
        full = len(tokens) // size
        rows = tokens[: full * size].reshape(full, size)
    if order == 'random':
        chosen = list(range(len(rows)))
        random.Random(seed).shuffle(chosen)
        rows = rows[chosen]
    if count is not None and len(rows) < count and not partial:
        raise ValueError(
            f'{source} gives {len(rows)} windows of {size} tokens, '
            f'{count} were asked for; give more text, or ask for fewer or '
            'shorter ones'
        )
    return rows[:count].copy()
