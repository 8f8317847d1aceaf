"""Sentences with a class: from a table, from GLUE, or generated."""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..registry import DATASETS, FUNCTIONS
from .sentence_tokenizer import load_sentence_tokenizer, padding
from .sentiment import generate, vocabulary

Rows = tuple[list[str], list[int]]


class Sentences(Dataset):
    """Tokenized sentences; an item is what :func:`pad_sentences` takes.

    Args:
        texts: The sentences.
        labels: Class of each.
        classes: Names of the classes.
        tokenizer: As for :func:`.sentence_tokenizer.load_sentence_tokenizer`.
        max_length: Tokens of a sentence, special ones included; the rest is
            cut off.
        fraction: How much of the sentences is used, of each class the same.
        seed: Which those are.

    Attributes:
        lengths: Number of tokens of each sentence.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        tokenizer: str | Sequence[str],
        max_length: int = 128,
        fraction: float = 1.0,
        seed: int = 0,
    ) -> None:
        if max_length < 3:
            raise ValueError(
                f'max_length has room for a word and two marks from 3 on, '
                f'found {max_length}'
            )
        chosen = _some_of_each(labels, fraction, seed)
        self.tokenizer = load_sentence_tokenizer(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)
        found = self.tokenizer.encode_batch([texts[i] for i in chosen])
        self.tokens = [encoding.ids for encoding in found]
        self.labels = [labels[i] for i in chosen]
        self.lengths = [len(ids) for ids in self.tokens]
        self.pad = padding(self.tokenizer)
        self.metainfo = dict(classes=tuple(classes))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return dict(
            input_ids=self.tokens[idx], label=self.labels[idx], pad=self.pad
        )


@DATASETS.register_module()
class SST2(Sentences):
    """The Stanford Sentiment Treebank in two classes, as GLUE has it.

    Args:
        split: ``train`` or ``dev``.
        data_root: Folder with ``train.tsv`` and ``dev.tsv`` (a line of
            column names, then sentence, tab, label); or ``glue`` to have the
            package ``datasets`` get them.
        tokenizer: As for :func:`.sentence_tokenizer.load_sentence_tokenizer`.
        kwargs: ``max_length``, ``fraction`` and ``seed`` of
            :class:`Sentences`.

    Raises:
        ValueError: If there are no files, or rows that cannot be read.
    """

    def __init__(
        self,
        split: str,
        data_root: str,
        tokenizer: str | Sequence[str],
        **kwargs: Any,
    ) -> None:
        if split not in ('train', 'dev'):
            raise ValueError(f'SST2 has train and dev, not {split!r}')
        if data_root == 'glue':
            rows = _of_glue(split)
        else:
            rows = read_table(Path(data_root).expanduser() / f'{split}.tsv', 2)
        super().__init__(*rows, ('negative', 'positive'), tokenizer, **kwargs)


@DATASETS.register_module()
class GeneratedSentiment(Sentences):
    """Short reviews made by a grammar, without any file.

    Negation and ``but`` turn the meaning of words around, so that counting
    words is not enough.

    Args:
        split: ``train`` or ``dev``; they share no sentence.
        size: Number of sentences.
        kwargs: ``max_length``, ``fraction`` and ``seed`` of
            :class:`Sentences`.
    """

    def __init__(self, split: str, size: int = 4000, **kwargs: Any) -> None:
        texts, labels = generate(split, size)
        kwargs = dict(dict(max_length=32), **kwargs)
        super().__init__(
            texts, labels, ('negative', 'positive'), vocabulary(), **kwargs
        )


def read_table(path: Path, num_labels: int) -> Rows:
    """Returns sentences and labels of a table with tabs.

    Args:
        path: UTF-8; its first line names the columns ``sentence`` and
            ``label``.
        num_labels: Labels are below this.

    Raises:
        ValueError: If there is no such file, or rows that cannot be read;
            names the first of them.
    """
    try:
        head, *lines = path.read_text(encoding='utf-8').split('\n')
    except FileNotFoundError as error:
        raise ValueError(
            f'there is no table of sentences at {path}'
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8: {error}') from error
    if head.rstrip('\r').split('\t') != ['sentence', 'label']:
        raise ValueError(
            f'{path}, line 1: the columns are to be sentence and label with a '
            f'tab between, found {head[:60]!r}'
        )
    texts, labels, bad = [], [], []
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=2):
        text, _, label = line.rstrip('\r').rpartition('\t')
        if not text.strip() or '\t' in text:
            bad.append(f'line {number} is not sentence, tab, label: {line!r}')
        elif not label.isdecimal() or int(label) >= num_labels:
            bad.append(
                f'line {number} has label {label!r}, not 0 to {num_labels - 1}'
            )
        else:
            texts.append(text.strip())
            labels.append(int(label))
    if bad:
        more = f'; and {len(bad) - 3} more' if len(bad) > 3 else ''
        rows = '; '.join(row[:100] for row in bad[:3])
        raise ValueError(f'{path}: {rows}{more}; mend or remove these rows')
    if not texts:
        raise ValueError(f'{path} has no sentences after its first line')
    return texts, labels


@FUNCTIONS.register_module()
def pad_sentences(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a batch: sentences filled up to the longest of them.

    Returns:
        ``inputs`` with ``input_ids`` and ``attention_mask`` ``[B, L]`` (1 =
        a token), ``data_samples`` with the labels ``[B]``.
    """
    longest = max(len(item['input_ids']) for item in items)
    ids = torch.tensor(
        [
            item['input_ids']
            + [item['pad']] * (longest - len(item['input_ids']))
            for item in items
        ]
    )
    mask = _mask([len(item['input_ids']) for item in items], longest)
    labels = torch.tensor([item['label'] for item in items])
    return dict(
        inputs=dict(input_ids=ids, attention_mask=mask), data_samples=labels
    )


def _mask(lengths: list[int], longest: int) -> Tensor:
    positions = torch.arange(longest).expand(len(lengths), -1)
    return (positions < torch.tensor(lengths)[:, None]).long()


def _some_of_each(
    labels: Sequence[int], fraction: float, seed: int
) -> list[int]:
    """Indices of a part of the sentences, in order, as much of each class."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f'fraction is above 0 and at most 1, found {fraction:g}'
        )
    if fraction == 1:
        return list(range(len(labels)))
    chosen = []
    for label in sorted(set(labels)):
        mine = [i for i, each in enumerate(labels) if each == label]
        count = max(1, int(fraction * len(mine) + 0.5))
        chosen += random.Random(seed).sample(mine, count)
    return sorted(chosen)


def _of_glue(split: str) -> Rows:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            "data_root='glue' needs the package datasets; pip install "
            'datasets, or give a folder with train.tsv and dev.tsv'
        ) from error
    name = dict(train='train', dev='validation')[split]
    offline = os.environ.get('HF_HUB_OFFLINE')
    try:
        table = load_dataset('nyu-mll/glue', 'sst2', split=name)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0][:160]
        hint = ' (HF_HUB_OFFLINE is set)' if offline else ''
        raise ValueError(
            f'GLUE cannot be had{hint}: {first}; give a folder with '
            'train.tsv and dev.tsv'
        ) from error
    return list(table['sentence']), [int(label) for label in table['label']]
