"""Sentences: read from tables, generated, and put into batches by length."""

import pytest
import torch
from mmengine.dataset import DefaultSampler

from mmprune.datasets import (
    SST2,
    BatchesByLength,
    GeneratedSentiment,
    pad_sentences,
)
from mmprune.datasets.sentences import read_table
from mmprune.datasets.sentiment import generate

WORDS = ['a', 'film', 'that', 'is', 'good', 'bad', 'not']
# Five special tokens come before the words.
A, FILM, THAT, IS, GOOD, BAD, NOT = range(5, 12)
CLS, SEP, UNK = 2, 3, 1


def table(folder, *rows, head='sentence\tlabel', name='train.tsv'):
    path = folder / name
    path.write_text('\n'.join([head, *rows, '']))
    return path


@pytest.fixture
def small(tmp_path):
    table(tmp_path, 'a good film\t1', 'bad\t0', 'is that good\t1', 'odd\t0')
    return lambda **kwargs: SST2('train', str(tmp_path), WORDS, **kwargs)


def test_a_batch_is_filled_up_to_its_longest(small):
    data = small()
    batch = pad_sentences([data[0], data[1], data[3]])
    assert batch['inputs']['input_ids'].tolist() == [
        [CLS, A, GOOD, FILM, SEP],
        [CLS, BAD, SEP, 0, 0],
        [CLS, UNK, SEP, 0, 0],
    ]
    assert batch['inputs']['attention_mask'].sum(1).tolist() == [5, 3, 3]
    assert batch['data_samples'].tolist() == [1, 0, 0]


def test_long_sentences_are_cut(small):
    assert small(max_length=4)[0]['input_ids'] == [CLS, A, GOOD, SEP]


def test_a_part_has_as_much_of_each_class(tmp_path):
    rows = [f'good\t{int(i % 4 == 0)}' for i in range(40)]
    table(tmp_path, *rows)
    half = SST2('train', str(tmp_path), WORDS, fraction=0.5)
    assert (len(half), sum(half.labels)) == (20, 5)
    again = SST2('train', str(tmp_path), WORDS, fraction=0.5)
    assert again.labels == half.labels


@pytest.mark.parametrize(
    ('row', 'says'),
    [
        ('no label', "line 3 is not sentence, tab, label: 'no label'"),
        ('good\tyes', "line 3 has label 'yes', not 0 to 1"),
        ('good\t2', "line 3 has label '2'"),
        (' \t1', 'line 3 is not sentence'),
        ('one\ttwo\t1', 'line 3 is not sentence'),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, says):
    path = table(tmp_path, 'good\t1', row, 'bad\t0')
    with pytest.raises(ValueError, match=says):
        read_table(path, 2)


def test_a_table_without_columns_or_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match='line 1: the columns are to be'):
        read_table(table(tmp_path, 'good\t1', head='good\t1'), 2)
    with pytest.raises(ValueError, match='no sentences'):
        read_table(table(tmp_path), 2)
    with pytest.raises(ValueError, match='no table of sentences at'):
        SST2('dev', str(tmp_path), WORDS)


def test_the_real_table_is_read(shared):
    folder = shared / 'data'
    words = folder / 'tokenizers' / 'bert-base-uncased' / 'vocab.txt'
    data = SST2('dev', str(folder / 'sst2'), str(words))
    assert (len(data), sum(data.labels)) == (872, 444)
    assert data.tokenizer.get_vocab_size() == 30522


def test_generated_reviews_are_fair():
    train, labels = generate('train', 500)
    dev, _ = generate('dev', 100)
    assert not set(train) & set(dev)
    assert len(set(train)) == 500
    assert 200 < sum(labels) < 300
    assert generate('train', 500) == (train, labels)
    data = GeneratedSentiment('train', size=200)
    assert all(UNK not in tokens for tokens in data.tokens)


def test_batches_hold_sentences_of_one_length():
    data = GeneratedSentiment('train', size=200)
    sampler = DefaultSampler(data, shuffle=True, seed=3)
    batches = BatchesByLength(sampler, batch_size=8, pool=25)
    found = list(batches)
    assert len(batches) == len(found) == 25
    assert sorted(i for batch in found for i in batch) == list(range(200))
    spread = [
        max(data.lengths[i] for i in b) - min(data.lengths[i] for i in b)
        for b in found
    ]
    assert sum(spread) / len(spread) < 1.5
    firsts = [data.lengths[batch[0]] for batch in found]
    assert firsts != sorted(firsts)  # short and long ones in turns
    assert list(batches) == found
    sampler.set_epoch(1)
    assert list(batches) != found


def test_an_incomplete_batch_may_be_left_out():
    data = GeneratedSentiment('train', size=21)
    sampler = DefaultSampler(data, shuffle=False)
    assert len(BatchesByLength(sampler, 8)) == 3
    short = BatchesByLength(sampler, 8, drop_last=True)
    assert [len(batch) for batch in short] == [8, 8] and len(short) == 2


def test_batches_by_length_need_lengths():
    sampler = DefaultSampler(torch.arange(4))
    with pytest.raises(ValueError, match='a data set with lengths'):
        BatchesByLength(sampler, 2)
