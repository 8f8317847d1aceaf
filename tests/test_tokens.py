"""Text becomes windows of tokens."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from mmprune.datasets.generated_text import generated_text
from mmprune.datasets.sentencepiece_model import read_sentencepiece
from mmprune.datasets.text_tokenizer import load_tokenizer
from mmprune.datasets.tokens import TokenWindows
from mmprune.families.causal_lm import CausalLMFamily, context_length


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a tokenizer of five words."""
    words = {'<s>': 0, 'a': 1, 'b': 2, 'c': 3, '?': 4}
    found = Tokenizer(models.WordLevel(words, unk_token='?'))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / 'model'
    folder.mkdir()
    found.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(dict(tokenizer_class='PreTrainedTokenizerFast'))
    )
    (folder / 'config.json').write_text(json.dumps(dict(bos_token_id=0)))
    return folder


def rows(data) -> list[list[int]]:
    return [data[i]['input_ids'].tolist() for i in range(len(data))]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text('a b c a b c d')
    return str(path)


def test_windows_follow_each_other_and_the_rest_is_left_out(tokenizer, text):
    data = TokenWindows(3, text, str(tokenizer))
    assert rows(data) == [[1, 2, 3], [1, 2, 3]]
    assert data[0]['input_ids'].dtype == torch.int64


def test_a_tokenizer_may_be_a_file(tokenizer, text):
    path = str(tokenizer / 'tokenizer.json')
    assert rows(TokenWindows(3, text, path, 1)) == [[1, 2, 3]]


def test_a_window_may_begin_with_bos(tokenizer, text):
    path = str(tokenizer / 'tokenizer.json')
    data = TokenWindows(3, text, path, bos=True)
    assert rows(data) == [[0, 1, 2], [0, 3, 1], [0, 2, 3]]


def test_random_windows_depend_on_the_seed_alone(tokenizer, text):
    args = dict(tokenizer=str(tokenizer), num_windows=8, order='random')
    one = rows(TokenWindows(3, text, seed=1, **args))
    assert one == rows(TokenWindows(3, text, seed=1, **args))
    assert one != rows(TokenWindows(3, text, seed=2, **args))
    assert len(one) == 8


def test_tokens_come_from_numpy_files(tmp_path):
    np.save(tmp_path / 'flat.npy', np.arange(7, dtype=np.uint16))
    np.savez(tmp_path / 'rows.npz', x=np.arange(8).reshape(2, 4))
    flat = TokenWindows(3, str(tmp_path / 'flat.npy'))
    assert rows(flat) == [[0, 1, 2], [3, 4, 5]]
    assert flat.largest == 5
    two = TokenWindows(3, str(tmp_path / 'rows.npz'))
    assert rows(two) == [[0, 1, 2], [4, 5, 6]]


def test_text_is_made_where_there_is_none(tokenizer):
    data = TokenWindows(50, tokenizer=str(tokenizer), num_windows=3)
    assert len(data) == 3
    assert generated_text(5000) == generated_text(5000)
    assert generated_text(100, seed=1) != generated_text(100)
    assert len(generated_text(5000)) >= 5000


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(seqlen=9), 'has 7 tokens, less than one window of 9'),
        (dict(num_windows=3), 'gives 2 windows of 3 tokens, 3 were asked'),
        (dict(source='nowhere.txt'), 'no text at nowhere.txt'),
        (dict(source='nowhere.npy'), 'no tokens at nowhere.npy'),
        (dict(tokenizer=None), 'needs a tokenizer'),
        (dict(tokenizer='EMPTY'), 'has no tokenizer'),
        (dict(order='last'), 'order must be one of'),
        (dict(seqlen=1), 'at least 2 tokens'),
        (dict(source='hub:c4'), 'package datasets'),
    ],
)
def test_what_cannot_be_read_is_said(
    tokenizer, text, tmp_path, change, message
):
    (tmp_path / 'empty').mkdir()
    args = dict(seqlen=3, source=text, tokenizer=str(tokenizer)) | change
    if args['tokenizer'] == 'EMPTY':
        args['tokenizer'] = str(tmp_path / 'empty')
    with pytest.raises(ValueError, match=message):
        TokenWindows(**args)


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.zeros((2, 3)), 'holds float64'),
        (np.zeros((1, 1, 1), int), 'of shape'),
        (np.array([1, -1, 2]), 'the token -1'),
        (np.zeros((2, 2), int), 'rows of 2 tokens, shorter'),
    ],
)
def test_arrays_that_are_no_tokens_are_refused(tmp_path, array, message):
    np.save(tmp_path / 'x.npy', array)
    with pytest.raises(ValueError, match=message):
        TokenWindows(3, str(tmp_path / 'x.npy'))


def test_pickled_arrays_are_not_loaded(tmp_path):
    np.save(tmp_path / 'x.npy', np.array([dict()]), allow_pickle=True)
    with pytest.raises(ValueError, match='no NumPy file of tokens'):
        TokenWindows(3, str(tmp_path / 'x.npy'))


def field(number: int, value) -> bytes:
    """A field of a protocol buffer; numbers below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def sentencepiece(pieces: list, trainer: bytes, normalizer: bytes) -> bytes:
    data = b''
    for text, score, kind in pieces:
        scored = bytes([2 << 3 | 5]) + np.float32(score).tobytes()
        data += field(1, field(1, text.encode()) + scored + field(3, kind))
    return data + field(2, trainer) + field(3, normalizer)


def test_sentencepiece_files_are_read_without_their_package(tmp_path):
    pieces = [('<unk>', 0, 2), ('<s>', 0, 3), ('</s>', 0, 3)]
    pieces += [(f'<0x{i:02X}>', 0, 6) for i in range(256)]
    pieces += [('ab', -1, 1), ('\u2581ab', -2, 1)]
    pieces += [('\u2581', -3, 1), ('a', -4, 1), ('b', -5, 1)]
    data = sentencepiece(pieces, field(3, 2), field(3, 1) + field(4, 0))
    (tmp_path / 'tokenizer.model').write_bytes(data)
    found = load_tokenizer(tmp_path)
    assert found.bos == 1
    assert found.size == 264
    ids = found.encode('ab aé')
    assert ids.tolist() == [260, 261, 262, 3 + 0xC3, 3 + 0xA9]
    assert found.decode(ids) == 'ab aé'


def test_what_is_no_sentencepiece_file_is_refused(tmp_path):
    path = tmp_path / 'x.model'
    for data in (b'', b'\xff' * 9, b'\x0a\x7f'):
        path.write_bytes(data)
        with pytest.raises(ValueError, match='no SentencePiece model'):
            read_sentencepiece(path)


def test_tokens_are_those_of_sentencepiece(shared):
    """Those of the golden sets, which SentencePiece itself has made."""
    source = shared / 'data'
    found = TokenWindows(
        256,
        str(source / 'tinystories' / 'train.txt'),
        str(source / 'tokenizers' / 'tinystories512' / 'tok512.model'),
        64,
    )
    theirs = np.load(shared / 'llm' / 'golden' / 'stories260k' / 'common.npz')
    assert np.array_equal(found.windows, theirs['calibration_tokens'])


def test_windows_are_as_long_as_the_model_reads_and_no_longer(tmp_path):
    assert context_length(dict(max_position_embeddings=512)) == 512
    assert context_length(dict(n_positions=1024)) == 1024
    assert context_length(dict(max_position_embeddings=131072)) == 2048
    (tmp_path / 'config.json').write_text('{"max_position_embeddings": 64}')
    assert context_length(dict(pretrained=str(tmp_path))) == 64


def test_a_config_takes_model_tokenizer_and_length_from_a_folder(tmp_path):
    from mmengine.config import Config

    (tmp_path / 'config.json').write_text('{"max_position_embeddings": 64}')
    (tmp_path / 'model.safetensors').write_bytes(b'')
    cfg = Config.fromfile('projects/configs/llm/causal_lm.py')
    cfg.test_dataloader.dataset.seqlen = 32
    CausalLMFamily.use_checkpoint(cfg, tmp_path)
    assert cfg.model.config == str(tmp_path)
    assert cfg.test_dataloader.dataset.seqlen == 32
    assert cfg.train_dataloader.dataset.seqlen == 64
    assert cfg.pruning.calibration.tokenizer == str(tmp_path)
