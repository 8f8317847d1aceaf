"""Import repairs: what is put in place, when, and what is left alone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import checkpoint
from mmengine.runner import runner as runner_module

from mmprune import compat
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


def test_a_norm_without_epsilon_runs():
    """As NAS-FCOS has it, and as a current PyTorch refuses it."""
    from mmcv.cnn import build_norm_layer

    _, norm = build_norm_layer(dict(type='BN', eps=0), 2)
    x = torch.randn(4, 2, 3, 3)
    found = norm.eval()(x)
    torch.testing.assert_close(found, x, rtol=0, atol=0)
