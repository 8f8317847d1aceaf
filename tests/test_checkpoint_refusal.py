"""Checkpoints that are broken or bring code are refused, and run nothing."""

import os
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint, load_checkpoint
from tiny_runner import Tiny

from mmprune import compat
from mmprune.checkpoints.reading import (
    CheckpointError,
    load_checkpoint_file,
    trust_checkpoints,
)


@pytest.fixture
def distrust():
    yield
    trust_checkpoints(False)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('missing.pth', None, 'there is no checkpoint at'),
        ('empty.pth', b'', 'it is empty'),
        ('text.pth', b'hello, world', "begins with b'hello, w'"),
        ('lfs.pth', b'version https://git-lfs.github.com', 'git lfs pull'),
        ('cut.pth', b'\x80\x02}q\x00', 'truncated or not a checkpoint'),
        ('zip.pth', b'PK\x03\x04 cut', 'truncated or not a checkpoint'),
    ],
)
@pytest.mark.parametrize('trust', [True, False])
def test_what_is_no_checkpoint_says_so(
    tmp_path, name, content, message, trust
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint_file(path, trust=trust)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match='is a directory'):
        load_checkpoint_file(tmp_path)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_truncated_checkpoint_says_so(tmp_path, zipped):
    path = tmp_path / 'x.pth'
    weights = dict(w=torch.rand(1000))
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for part in (0.2, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(CheckpointError, match='truncated'):
            load_checkpoint_file(path)


def test_a_checkpoint_must_be_a_dict(tmp_path):
    torch.save(torch.ones(2), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='it holds a Tensor'):
        load_checkpoint_file(tmp_path / 'x.pth')


class _Reduces:
    """Pickles as a call."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


def _sentinel_calls(sentinel: Path) -> dict[str, _Reduces]:
    code = f'open({str(sentinel)!r}, "w").close()'
    return {
        'exec': _Reduces(exec, (code,)),
        'eval': _Reduces(eval, (code,)),
        f'{os.system.__module__}.system': _Reduces(
            os.system, (f'touch {sentinel}',)
        ),
        # Protocol 2 writes subprocess under its Python 2 name.
        'commands.Popen': _Reduces(
            subprocess.Popen, (['touch', str(sentinel)],)
        ),
        'torch.hub.load': _Reduces(torch.hub.load, (str(sentinel), 'x')),
        'mmengine.config.config.Config': _Reduces(
            __import__('mmengine').Config, ({}, code)
        ),
    }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'wanted',
    list(_sentinel_calls(Path('x'))),
)
def test_a_malicious_checkpoint_is_refused_unrun(tmp_path, wanted, zipped):
    sentinel = tmp_path / 'ran'
    path = tmp_path / 'evil.pth'
    torch.save(
        dict(state_dict={}, meta=_sentinel_calls(sentinel)[wanted]),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint_file(path)
    assert repr(wanted) in str(caught.value)
    assert '--trust-checkpoint' in str(caught.value)
    with pytest.raises(CheckpointError, match='was refused'):
        load_checkpoint(Tiny(), str(path))
    assert not sentinel.exists()


def test_getattr_in_a_checkpoint_reaches_only_the_statistics(tmp_path):
    sentinel = tmp_path / 'ran'
    attempts = dict(
        method=_Reduces(getattr, (HistoryBuffer, 'register_statistics')),
        dunder=_Reduces(getattr, (HistoryBuffer, '__init__')),
        tensor=_Reduces(getattr, (torch.Tensor, 'numpy')),
        data=_Reduces(getattr, ({}, 'clear')),
    )
    for name, attempt in attempts.items():
        torch.save(dict(x=attempt), tmp_path / name)
        with pytest.raises(CheckpointError, match='was refused'):
            load_checkpoint_file(tmp_path / name)
    assert not sentinel.exists()


def test_statistics_of_a_checkpoint_do_not_replace_ours(tmp_path):
    buffer = HistoryBuffer([3.0], [1])
    mean = HistoryBuffer._statistics_methods['mean']
    try:
        HistoryBuffer._statistics_methods['mean'] = HistoryBuffer.max
        torch.save(dict(b=buffer), tmp_path / 'x.pth')
    finally:
        HistoryBuffer._statistics_methods['mean'] = mean
    load_checkpoint_file(tmp_path / 'x.pth')
    assert HistoryBuffer._statistics_methods['mean'] is mean


@pytest.mark.parametrize(
    'value',
    [
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[('a', 'i4'), ('b', 'f8')]),
        np.dtype([('a', object)]),
    ],
)
def test_numpy_objects_and_records_are_refused(tmp_path, value):
    torch.save(dict(x=value), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='numpy.dtype'):
        load_checkpoint_file(tmp_path / 'x.pth')


def test_a_dtype_cannot_bring_its_own_fields(tmp_path):
    evil = _Reduces(
        np.dtype,
        ('f8', False, True),
        (3, '<', None, ('a',), {'a': (np.dtype('f8'), 0)}, -1, -1, 63),
    )
    torch.save(dict(x=evil), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='with fields|numpy.dtype'):
        load_checkpoint_file(tmp_path / 'x.pth')


def test_trust_loads_what_the_list_refuses(tmp_path, distrust):
    path = tmp_path / 'x.pth'
    torch.save(dict(x=types.SimpleNamespace(a=1)), path)
    with pytest.raises(CheckpointError, match='types.SimpleNamespace'):
        load_checkpoint_file(path)
    assert load_checkpoint_file(path, trust=True)['x'].a == 1
    trust_checkpoints(True)
    loaded = checkpoint.CheckpointLoader.load_checkpoint(str(path))
    assert loaded['x'].a == 1
    trust_checkpoints(False)
    with pytest.raises(CheckpointError):
        checkpoint.CheckpointLoader.load_checkpoint(str(path))


def test_a_downloaded_checkpoint_passes_the_same_gate(tmp_path):
    sentinel = tmp_path / 'ran'
    source = tmp_path / 'source.pth'
    evil = _Reduces(exec, (f'open({str(sentinel)!r}, "w")',))
    torch.save(dict(x=evil), source)
    for scheme in ('http', 'https'):
        loader = checkpoint.CheckpointLoader._get_checkpoint_loader(
            f'{scheme}://x/y.pth'
        )
        assert loader.__globals__['load_url'] is compat._load_url
    with pytest.raises(CheckpointError, match='was refused'):
        compat._load_url(source.as_uri(), str(tmp_path / 'cache'))
    assert not sentinel.exists()
    torch.save(dict(w=torch.ones(2)), source)
    cache = str(tmp_path / 'fresh')
    found = compat._load_url(source.as_uri(), cache, progress=False)
    assert found['w'].tolist() == [1, 1]


def test_a_checkpoint_in_object_storage_passes_the_same_gate(tmp_path):
    path = str(tmp_path / 'x.pth')
    loader = checkpoint.CheckpointLoader._get_checkpoint_loader('s3://a/b')
    torch.save(dict(w=torch.ones(2)), path)
    assert loader(path, 'cpu', backend='local')['w'].tolist() == [1, 1]
    torch.save(dict(x=_Reduces(exec, ('1',))), path)
    with pytest.raises(CheckpointError, match='was refused'):
        loader(path, 'cpu', backend='local')


def test_numpy_s_own_doors_lead_to_plain_arrays_only(tmp_path):
    doors = [
        _Reduces(np.ndarray, ((1,),)),
        np.matrix([[1.0]]),
        _Reduces(np.core.multiarray.scalar, ('f8', b'')),
    ]
    for i, door in enumerate(doors):
        torch.save(dict(x=door), tmp_path / str(i))
        with pytest.raises(CheckpointError):
            load_checkpoint_file(tmp_path / str(i))
