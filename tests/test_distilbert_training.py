"""The embedded DistilBERT is pruned, learns 4 bits, and is stopped."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_training import differing, final, run

from mmprune.models import load_model
from mmprune.run.quantize import quantize

CONFIGS = Path(__file__).resolve().parents[1] / 'projects/configs/distilbert'


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
    """A dense checkpoint, hardly trained, and its config."""
    folder = tmp_path_factory.mktemp('dense')
    cfg = small(Config.fromfile(CONFIGS / 'dense_tiny.py'), folder)
    cfg.train_cfg.max_epochs = 1
    run(cfg)
    return cfg, folder / 'latest.pth'


def small(cfg: Config, folder: Path) -> Config:
    """Few sentences, no evaluation, and checkpoints of all epochs."""
    cfg.work_dir = str(folder)
    cfg.experiment_name = folder.name
    cfg.log_level = 'ERROR'
    cfg.param_scheduler = []
    cfg.train_dataloader.dataset.size = 96
    cfg.test_dataloader.dataset.size = 40
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint = dict(
        type='mmprune.SafeCheckpointHook', interval=1
    )
    return cfg


def kgsp(dense, folder: Path, resume: str = '') -> Config:
    cfg = small(Config.fromfile(CONFIGS / 'kgsp_tiny.py'), folder)
    cfg.model.teacher_checkpoint = str(dense)
    cfg.load_from, cfg.resume = resume or str(dense), bool(resume)
    for hook in cfg.custom_hooks:
        if hook['type'] == 'mmprune.GradualPruningHook':
            hook |= dict(interval=1, window=4)
    return cfg


def learning(dense, pruned, folder: Path, resume: str = '') -> Config:
    cfg = kgsp(dense, folder)
    student = cfg.model.student
    cfg.model.student = dict(
        type='mmprune.FakeQuantizedModel',
        model=dict(
            type='mmprune.PrunedModel', model=student, plan=str(pruned)
        ),
        scheme=dict(group_size=16),
    )
    cfg.load_from, cfg.resume = resume or str(pruned), bool(resume)
    cfg.train_cfg.max_epochs = 2
    cfg.custom_hooks = [
        dict(type='mmprune.SeedHook'),
        dict(type='mmprune.PlanHook'),
    ]
    return cfg


def test_a_pruning_and_a_learning_resume_bit_identical(dense, tmp_path):
    cfg, path = dense
    one, two = tmp_path / 'one', tmp_path / 'two'
    run(kgsp(path, one))
    # In the middle of the pruning: the window and the masks go on.
    run(kgsp(path, two, str(one / 'epoch_1.pth')))
    assert differing(final(one), final(two)) == []
    plans = [json.loads((f / 'plan.json').read_text()) for f in (one, two)]
    assert plans[0]['keep'] == plans[1]['keep']
    lost = {'head': 0, 'neuron': 0}
    for group in plans[0]['groups']:
        kept = plans[0]['keep'][group['name']]
        lost[group['granularity']] += group['size'] - len(kept)
    assert lost == {'head': 5, 'neuron': 230}

    pruned = one / 'pruned.pth'
    run(learning(path, pruned, tmp_path / 'three'))
    start = str(tmp_path / 'three' / 'epoch_1.pth')
    run(learning(path, pruned, tmp_path / 'four', start))
    assert differing(final(tmp_path / 'three'), final(tmp_path / 'four')) == []

    # What the training computed with is what is packed.
    asked = learning(path, pruned, tmp_path / 'three')
    folder, last = tmp_path / '4bit', tmp_path / 'three' / 'latest.pth'
    report = quantize(asked, last, folder, latency_runs=0, log=lambda _: None)
    assert len(report['options']['layers']) == 18
    assert report['options']['scheme']['group_size'] == 16
    assert report['bytes']['packed'] < 0.2 * report['bytes']['packed_float32']
    rounded = load_model(asked, last)
    packed = load_model(cfg, folder / 'quantized.pth')
    ids = torch.arange(2, 26).view(2, 12)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.allclose(rounded(inputs), packed(inputs), atol=1e-5)
    alone = Config.fromfile(folder / 'quantized.py')
    again = load_model(alone, folder / 'quantized.pth')
    assert torch.equal(again(inputs), packed(inputs))
