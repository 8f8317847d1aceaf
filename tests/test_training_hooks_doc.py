"""The configs in docs/training_hooks.md run as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from tiny_training import TinyMLP, config, run, sparse_checkpoint

from mmprune.adapters import ffn_groups
from mmprune.pruners import StructuredPruner
from mmprune.registry import FUNCTIONS

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'training_hooks.md'
BLOCKS = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(), re.M | re.S)
CONFIGS = [block for block in BLOCKS if 'import' not in block]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the page names."""
    torch.manual_seed(0)
    dense = TinyMLP(dropout=0.0)
    torch.save(
        dict(meta={}, state_dict=dense.state_dict()), tmp_path / 'dense.pth'
    )
    plan = StructuredPruner(0.5)(dense, list(ffn_groups(dense)))
    plan.save(tmp_path / 'plan.json')
    pruned = tmp_path / 'work_dirs' / 'pruned'
    pruned.mkdir(parents=True)
    sparse_checkpoint(pruned / 'unstructured_pruned.pth')
    monkeypatch.chdir(tmp_path)
    # The tiny model stands for the ViT: its groups under that name.
    FUNCTIONS.get('mmprune.vit_groups')
    monkeypatch.setitem(FUNCTIONS.module_dict, 'vit_groups', ffn_groups)
    return tmp_path


@pytest.mark.parametrize('number', range(len(CONFIGS)))
def test_a_config_of_the_page_trains(folder, number):
    names: dict = {}
    exec(CONFIGS[number], names)
    del names['__builtins__']
    # The tiny model has no layer called head, and a short training.
    for hook in names.get('custom_hooks', []):
        hook.pop('protect', None)
    runner = run(config(folder / 'run', epochs=2, **names))
    assert runner.epoch == 2
    assert (folder / 'run' / 'epoch_2.pth').is_file()


def test_the_page_has_a_config_for_each_part():
    named = set(re.findall(r"type='mmprune\.(\w+)'", ''.join(CONFIGS)))
    assert named >= {
        'DistilledModel',
        'GradualPruningHook',
        'GroupPenaltyHook',
        'MaskHook',
        'SafeCheckpointHook',
        'SeedHook',
    }
