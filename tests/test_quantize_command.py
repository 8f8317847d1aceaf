"""tools/quantize.py on what the other families have pruned."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_llm import LLAMA, dense, tokens

from mmprune.atomic_file import save_checkpoint
from mmprune.models import load_model
from mmprune.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'projects' / 'configs'


def run(name: str, config: Path, checkpoint: Path, out: Path, *more: str):
    """Runs a command that writes into a folder."""
    path = ROOT / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    where = ('--output-dir', str(out), '--latency-runs', '0')
    return module.main([str(config), str(checkpoint), *where, *more])


def structured(config: Path, checkpoint: Path, out: Path) -> None:
    """Prunes what the test quantizes."""
    more = ('--mode', 'structured', '--pruning-ratio', '0.4')
    run('prune_and_retrain', config, checkpoint, out, *more)


def test_a_pruned_vit_gets_four_bits(tmp_path):
    config = CONFIGS / 'vit' / 'vit_tiny_digits_imp.py'
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(config).model)
    save_checkpoint(dict(state_dict=model.state_dict()), tmp_path / 'vit.pth')
    structured(config, tmp_path / 'vit.pth', tmp_path / 'pruned')
    (pruned,) = (tmp_path / 'pruned').glob('*_structured_pruned.pth')
    report = run('quantize', config, pruned, tmp_path / 'four')
    assert report['bytes']['packed'] < 0.2 * report['bytes']['packed_float32']
    assert 0 < report['difference'] < 0.5
    alone = Config.fromfile(tmp_path / 'four' / 'quantized.py')
    small = load_model(alone, tmp_path / 'four' / 'quantized.pth')
    assert small.blocks[0].mlp.fc1.out_features < 192


@pytest.mark.parametrize('mode', ['structured', 'unstructured'])
def test_a_pruned_folder_of_a_language_model_gets_four_bits(tmp_path, mode):
    config = CONFIGS / 'llm' / 'magnitude.py'
    dense(LLAMA).save_pretrained(tmp_path / 'llm')
    more = ('--mode', mode, '--pruning-ratio', '0.5')
    run('prune_and_retrain', config, tmp_path / 'llm', tmp_path / 'out', *more)
    (folder,) = (p for p in (tmp_path / 'out').iterdir() if p.is_dir())
    before = load_model(_config_of(config, folder), folder)
    report = run('quantize', config, folder, tmp_path / 'four')
    assert report['options']['layers']
    # Nothing of the folder is needed any more.
    shutil.rmtree(tmp_path / 'out')
    alone = Config.fromfile(tmp_path / 'four' / 'quantized.py')
    small = load_model(alone, tmp_path / 'four' / 'quantized.pth')
    with torch.no_grad():
        one, other = (m(input_ids=tokens(1)).logits for m in (before, small))
    assert 0 < (one - other).abs().max() < 0.5 * one.abs().max()
    written = json.loads((tmp_path / 'four' / 'report.json').read_text())
    assert written['left_in_float']


def _config_of(config: Path, folder: Path) -> Config:
    cfg = Config.fromfile(config)
    cfg.model.config = str(folder)
    return cfg
