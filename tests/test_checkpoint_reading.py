"""Checkpoints of plain values are read whole, whoever wrote them."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from tiny_runner import Points, stock_runner

from mmprune.checkpoints.reading import CheckpointError, load_checkpoint_file


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A checkpoint that a stock Runner wrote after two iterations."""
    folder = tmp_path_factory.mktemp('trained')
    runner = stock_runner(folder, 2)
    runner.message_hub.update_info('best', np.float64(0.25))
    runner.train()
    return folder / 'iter_2.pth'


def test_torch_alone_refuses_what_mmengine_writes(trained):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(trained, weights_only=True)


def test_a_runner_checkpoint_is_read_whole(trained):
    ours = load_checkpoint_file(trained)
    theirs = torch.load(trained, weights_only=False)
    assert list(ours) == list(theirs)
    assert ours['meta']['iter'] == 2
    meta = ours['meta']['dataset_meta']
    assert meta['palette'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert ours['message_hub']['runtime_info']['best'] == 0.25
    buffers = ours['message_hub']['log_scalars']
    expected = theirs['message_hub']['log_scalars']
    assert list(buffers) == list(expected)
    for name, buffer in buffers.items():
        assert type(buffer) is HistoryBuffer
        assert buffer.mean() == expected[name].mean()
        assert buffer.statistics('current') == expected[name].current()
    for name, value in theirs['ema_state_dict'].items():
        assert torch.equal(ours['ema_state_dict'][name], value)


def test_a_stock_runner_resumes_and_goes_on(trained, tmp_path):
    runner = stock_runner(tmp_path, 4, load_from=str(trained), resume=True)
    runner.train()
    assert runner.iter == 4
    # 4 of 9 steps of the resumed schedule, and 4 values in the history.
    assert runner.param_schedulers[1].last_step == 4
    history = runner.message_hub.get_scalar('train/loss')
    assert len(history.data[0]) == 4


def test_what_was_read_is_saved_as_plain_types(trained, tmp_path):
    again = tmp_path / 'again.pth'
    torch.save(load_checkpoint_file(trained), again)
    assert b'mmprune' not in again.read_bytes()
    meta = torch.load(again, weights_only=False)['meta']
    assert type(meta['dataset_meta']['palette']) is np.ndarray
    ours = load_checkpoint_file(trained)['meta']['dataset_meta']
    # How Runner.resume compares the two.
    assert pickle.dumps(ours) == pickle.dumps(Points.metainfo)


def test_plain_and_numpy_values_survive(tmp_path):
    values = dict(
        half=np.float16(1.5),
        integer=np.int64(-7),
        flag=np.bool_(True),
        text=np.str_('héllo'),
        empty=np.str_(''),
        big=np.array([[1, 2], [3, 4]], dtype='>i4'),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        names=np.array(['ab', 'c']),
        day=np.array(['2020-01-02'], dtype='datetime64[D]'),
        nothing=np.zeros((0, 3)),
        config=ConfigDict(a=dict(b=1)),
        ordered=OrderedDict(x=1),
        group={1, 2},
        dtype=torch.float16,
        size=torch.Size([1, 2]),
    )
    path = tmp_path / 'values.pth'
    torch.save(values, path)
    found = load_checkpoint_file(path)
    assert list(found) == list(values)
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            stored = pickle.loads(pickle.dumps(value, 2))
            assert found[name].dtype == stored.dtype
            assert np.array_equal(found[name], value)
        else:
            assert type(found[name]) is type(value)
            assert found[name] == value
    assert found['config'].a.b == 1
    assert found['fortran'].flags.f_contiguous
    assert type(found['big'] + 1) is np.ndarray
    assert isinstance(found['big'].sum(), np.generic)


@pytest.mark.parametrize('zipped', [True, False])
def test_both_formats_of_torch_are_read(tmp_path, zipped):
    path = tmp_path / 'x.pth'
    weights = dict(w=torch.arange(4.0), n=np.float32(2))
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint_file(str(path))
    assert torch.equal(found['w'], weights['w'])
    assert found['n'] == 2


def test_safetensors_become_a_state_dict(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    path = tmp_path / 'x.safetensors'
    save_file(dict(w=torch.arange(4.0)), path)
    found = load_checkpoint_file(path)
    assert list(found) == ['state_dict']
    assert found['state_dict']['w'].tolist() == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match='truncated or no safetensors'):
        load_checkpoint_file(path)


def test_the_runner_s_loader_survives_overwriting_the_file(tmp_path):
    path = str(tmp_path / 'x.pth')
    torch.save(dict(w=torch.ones(1 << 16)), path)
    loaded = checkpoint.CheckpointLoader.load_checkpoint(path, 'cpu')
    Path(path).write_bytes(bytes(Path(path).stat().st_size))
    assert loaded['w'].sum() == 1 << 16


def test_loading_leaves_torch_s_own_list_as_it_was(trained):
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint_file(trained)
    assert set(torch.serialization.get_safe_globals()) == before
