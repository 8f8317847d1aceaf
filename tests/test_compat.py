"""Import repairs, safe checkpoints, and the guard of pruned checkpoints."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, checkpoint, load_checkpoint
from mmengine.runner import runner as runner_module
from torch import nn
from torch.utils.data import DataLoader

from mmprune import compat
from mmprune.checkpoints.guard import check_plan_matches
from mmprune.checkpoints.reading import (
    CheckpointError,
    load_checkpoint_file,
    trust_checkpoints,
)
from mmprune.compat.adafactor import adafactor, imported_late

ROOT = Path(__file__).resolve().parents[1]


def _python(code: str, *path: Path) -> str:
    """Runs ``code`` in a fresh interpreter and returns what it printed."""
    folders = [str(p) for p in (*path, ROOT)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(folders))
    done = subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def distrust():
    yield
    trust_checkpoints(False)


# -------------------------------------------------------------------- imports


def test_importing_mmprune_imports_no_heavy_package():
    heavy = 'torch mmcv mmengine mmdet3d torchvision torch_pruning numpy'
    code = (
        'import sys, mmprune\n'
        f'print([m for m in {heavy.split()} if m in sys.modules])'
    )
    assert _python(code) == '[]'


def test_install_twice_hooks_once():
    before = list(sys.meta_path)
    load = checkpoint._load_checkpoint_to_model
    compat.install()
    assert sys.meta_path == before
    assert checkpoint._load_checkpoint_to_model is load


def test_importing_mmprune_afresh_takes_the_place_of_the_first():
    code = (
        'import sys, mmprune\n'
        'for name in [m for m in sys.modules if m.startswith("mmprune")]:\n'
        '    del sys.modules[name]\n'
        'from mmprune import compat\n'
        'from mmengine.runner import checkpoint\n'
        'first = checkpoint._load_checkpoint_to_model\n'
        'del sys.modules["mmprune"], sys.modules["mmprune.compat"]\n'
        'from mmprune import compat\n'
        'from mmengine.runner import runner\n'
        'names = [type(f).__name__ for f in sys.meta_path]\n'
        'finders = [names.count("_RepairFinder"),\n'
        '           names.count("_ExtensionFinder")]\n'
        'last = runner._load_checkpoint_to_model\n'
        'print(finders, last is not first,\n'
        '      last.__wrapped__ is first.__wrapped__)\n'
    )
    assert _python(code) == '[1, 1] True True'


def test_a_compiled_extension_is_left_alone(tmp_path):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / '_ext.py').write_text('def nms(): return "compiled"\n')
    code = (
        'import mmprune\n'
        'from mmcv import _ext\n'
        'print(_ext.nms(), _ext.__file__, hasattr(_ext, "softnms"))'
    )
    expected = f'compiled {package / "_ext.py"} False'
    assert _python(code, tmp_path) == expected
    (package / '_ext.py').unlink()
    code = 'import mmprune\nfrom mmcv import _ext\nprint(_ext.__spec__.origin)'
    assert _python(code, tmp_path) == 'mmprune.compat.ops'


def test_repairs_reach_a_runner_imported_before_mmprune():
    code = (
        # mmengine asks for it, which takes long.
        'import sys; sys.modules["transformers"] = None\n'
        'from mmengine.runner import runner, checkpoint\n'
        'old = runner._load_checkpoint_to_model\n'
        'import mmprune\n'
        'print(runner._load_checkpoint_to_model is not old,\n'
        '      runner._load_checkpoint_to_model\n'
        '      is checkpoint._load_checkpoint_to_model)'
    )
    assert _python(code) == 'True True'


def test_the_repaired_module_keeps_its_source():
    import inspect

    assert 'class CheckpointLoader' in inspect.getsource(checkpoint)
    assert (
        runner_module._load_checkpoint_to_model
        is checkpoint._load_checkpoint_to_model
    )


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    """A transformers that is not imported yet."""
    path = tmp_path / 'transformers.py'
    path.write_text('def Adafactor(lr): return ("made", lr)\nBertModel = 7\n')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.split('.')[0] == path.stem]:
        monkeypatch.delitem(sys.modules, name)
    yield path
    sys.modules.pop('transformers', None)


def test_transformers_is_imported_when_its_optimizer_is_built(library):
    with imported_late():
        from transformers import Adafactor
    assert Adafactor is adafactor
    assert 'transformers' not in sys.modules
    assert Adafactor(lr=0.1) == ('made', 0.1)
    assert 'transformers' in sys.modules


def test_any_other_name_is_that_of_transformers(library):
    with imported_late():
        import transformers

        assert transformers.BertModel == 7
        with pytest.raises(ImportError):
            import transformers.models  # noqa: F401
    assert sys.modules['transformers'].Adafactor(1) == ('made', 1)


def test_where_transformers_is_not_installed_it_is_still_not_there(
    library, monkeypatch
):
    library.unlink()
    monkeypatch.setattr(sys, 'path', [str(library.parent)])
    with imported_late(), pytest.raises(ImportError):
        import transformers  # noqa: F401


def test_mmengine_knows_the_optimizer_of_transformers_by_name():
    if importlib.util.find_spec('transformers') is None:
        pytest.skip('transformers is not installed')
    import mmengine.optim  # noqa: F401
    from mmengine.registry import OPTIMIZERS

    assert OPTIMIZERS.get('Adafactor') is adafactor


# ---------------------------------------------------------- checkpoints, read


class _Tiny(BaseModel):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(2, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, inputs, mode='tensor'):
        out = self.bn(self.fc(inputs))
        return dict(loss=out.pow(2).mean()) if mode == 'loss' else out


class _Points(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'), palette=np.arange(6).reshape(2, 3))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.tensor([index, 1.0]))


def _runner(work_dir: Path, iters: int, ema: bool = True, **kwargs):
    loader = DataLoader(_Points(), batch_size=4, sampler=None)
    return Runner(
        model=_Tiny(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[
            dict(type='LinearLR', by_epoch=False, end=2),
            dict(
                type='OneCycleLR',
                eta_max=0.1,
                total_steps=9,
                end=9,
                by_epoch=False,
            ),
        ],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)
        ),
        custom_hooks=[dict(type='EMAHook')] if ema else None,
        default_scope='mmengine',
        experiment_name=f'compat_{work_dir.name}_{iters}',
        **kwargs,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A checkpoint that a stock Runner wrote after two iterations."""
    folder = tmp_path_factory.mktemp('trained')
    runner = _runner(folder, 2)
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
    runner = _runner(tmp_path, 4, load_from=str(trained), resume=True)
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
    assert pickle.dumps(ours) == pickle.dumps(_Points.metainfo)


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


# ------------------------------------------------------- checkpoints, refused


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
        load_checkpoint(_Tiny(), str(path))
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


def test_loading_leaves_torch_s_own_list_as_it_was(trained):
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint_file(trained)
    assert set(torch.serialization.get_safe_globals()) == before


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


# ------------------------------------------------------------- the plan guard


class _Plan:
    def __init__(self, **keep: list[int]) -> None:
        self.keep = keep

    def to_dict(self) -> dict:
        groups = [dict(name=n, size=3) for n in self.keep]
        return dict(groups=groups, keep=self.keep, provenance=dict(at='x'))


def _saved(path: Path, width: int, plan: _Plan | None) -> str:
    meta = {} if plan is None else dict(pruning_plan=plan.to_dict())
    state = _Tiny(width).state_dict()
    torch.save(dict(meta=meta, state_dict=state), path)
    return str(path)


def _model(width: int, plan: _Plan | None) -> _Tiny:
    model = _Tiny(width)
    if plan is not None:
        model.pruning_plan = plan
    return model


@pytest.mark.parametrize(
    ('plan', 'own', 'message'),
    [
        (_Plan(fc=[0, 2]), None, r"the model is dense: groups \['fc'\]"),
        (_Plan(fc=[0, 2]), _Plan(fc=[0, 1]), 'pruned differently'),
        (_Plan(fc=[0, 2]), _Plan(bn=[0, 2]), r"\['bn', 'fc'\]"),
    ],
)
def test_another_plan_raises_with_the_fix(tmp_path, plan, own, message):
    path = _saved(tmp_path / 'x.pth', 2, plan)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(_model(2 if own else 3, own), path)
    assert "type='mmprune.PrunedModel'" in str(caught.value)
    assert 'tools/test.py' in str(caught.value)


@pytest.mark.parametrize(
    ('plan', 'own', 'width'),
    [
        (_Plan(fc=[0, 2]), _Plan(fc=[0, 2]), 2),
        (_Plan(), None, 3),
        (_Plan(fc=[0, 1, 2]), None, 3),
        (None, None, 3),
        (_Plan(), _Plan(), 3),
        # Weights whose plan was stripped still fit.
        (None, _Plan(fc=[0, 2]), 2),
    ],
)
def test_a_matching_plan_loads(tmp_path, plan, own, width):
    path = _saved(tmp_path / 'x.pth', width, plan)
    model = _model(width, own)
    load_checkpoint(model, path, strict=True)
    expected = torch.load(path, weights_only=True)['state_dict']['fc.weight']
    assert torch.equal(model.fc.weight, expected)


@pytest.mark.parametrize('plan', [None, _Plan()])
def test_dense_weights_do_not_go_into_a_pruned_model(tmp_path, plan):
    path = _saved(tmp_path / 'x.pth', 3, plan)
    model = _model(2, _Plan(fc=[0, 2]))
    with pytest.raises(ValueError) as caught:
        load_checkpoint(model, path)
    text = str(caught.value)
    # fc has two tensors of another shape, bn four; five are named.
    assert '6 shapes differ (fc.weight (3, 2) for (2, 2),' in text
    assert text.count(') for (') == 5
    # Another width is no error while nothing was pruned: a new head.
    load_checkpoint(_model(2, None), path)


def test_a_stock_runner_refuses_the_wrong_plan(tmp_path):
    path = _saved(tmp_path / 'x.pth', 2, _Plan(fc=[0, 2]))
    runner = _runner(tmp_path / 'run', 2, ema=False, load_from=path)
    with pytest.raises(ValueError, match='the model is dense'):
        runner.load_or_resume()


def test_the_guard_looks_into_wrappers():
    model = _model(3, None)
    pruned = dict(meta=dict(pruning_plan=_Plan(fc=[0]).to_dict()))
    wrapped = nn.DataParallel(model)
    with pytest.raises(ValueError, match='the model is dense'):
        check_plan_matches(wrapped, pruned)
    model.pruning_plan = _Plan(fc=[0])
    check_plan_matches(wrapped, pruned)


def test_the_guard_reads_a_plan_that_is_text():
    plan = json.dumps(_Plan(fc=[0]).to_dict())
    with pytest.raises(ValueError, match='the model is dense'):
        check_plan_matches(_model(3, None), dict(meta=dict(pruning_plan=plan)))


def test_a_bare_state_dict_has_no_plan():
    check_plan_matches(_model(3, None), _Tiny(3).state_dict())
    state = {f'module.{k}': v for k, v in _Tiny(3).state_dict().items()}
    with pytest.raises(ValueError, match='6 shapes differ'):
        check_plan_matches(_model(2, _Plan(fc=[0, 2])), state)


def test_a_norm_without_epsilon_runs():
    """As NAS-FCOS has it, and as a current PyTorch refuses it."""
    from mmcv.cnn import build_norm_layer

    _, norm = build_norm_layer(dict(type='BN', eps=0), 2)
    x = torch.randn(4, 2, 3, 3)
    found = norm.eval()(x)
    torch.testing.assert_close(found, x, rtol=0, atol=0)
