"""Rounds that were killed and resumed end as if they had not been."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_rounds import config, results, train

from mmprune.checkpoints.reading import load_checkpoint_file


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint_file(folder / 'pruned.pth')['state_dict']


def full(folder: Path, **options) -> Config:
    """Four rounds with all that has a state."""
    cfg = config(folder, pruning_times=4, struct='rsst', **options)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.dtype = 'bfloat16'
    cfg.optim_wrapper.accumulative_counts = 3
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
    return cfg


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """Lets mixed precision run where no GPU is; the scaler then rests."""
    name = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(name, lambda: True)


@pytest.mark.filterwarnings('ignore:.*GradScaler.*')
def test_a_killed_and_resumed_run_ends_bit_identical(tmp_path, amp_on_cpu):
    train(full(tmp_path / 'whole'))
    expected = final(tmp_path / 'whole')
    # in the second epoch of round 2, and between rounds 1 and 2 after the
    # checkpoint was written
    for name, kill in (
        ('inside', dict(kill_at=2 * 8 + 6)),
        ('between', dict(kill_epoch=3)),
    ):
        cfg = full(tmp_path / name)
        train(cfg, **kill)
        assert not (tmp_path / name / 'pruned.pth').exists()
        cfg.resume = True
        runner, _ = train(cfg)
        found = final(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
        whole, again = results(tmp_path / 'whole'), results(tmp_path / name)
        for one, two in zip(whole['rounds'], again['rounds'], strict=True):
            for key in ('layers', 'metrics', 'residual'):
                assert one[key] == two[key]


@pytest.mark.parametrize('criteria', ['act_l1', 'saliency'])
def test_units_are_scored_on_the_same_batch_after_a_kill(tmp_path, criteria):
    options = dict(criteria=criteria, pruning_times=2)
    train(config(tmp_path / 'whole', **options))
    cfg = config(tmp_path / 'killed', **options)
    # the checkpoint of round 0 is written, its units are not chosen yet
    train(cfg, kill_epoch=1)
    cfg.resume = True
    train(cfg)
    expected, found = final(tmp_path / 'whole'), final(tmp_path / 'killed')
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_resuming_with_other_options_is_refused(tmp_path):
    train(config(tmp_path), kill_at=9)
    cfg = config(tmp_path, rate=0.6)
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match='sparsity.head=0.5 then, 0.6 now'):
        runner.train()


def test_resuming_without_the_rewind_point_is_refused(tmp_path):
    train(config(tmp_path), kill_at=9)
    point = tmp_path / 'rewind_point.pth'
    data = torch.load(point, weights_only=True)
    point.unlink()
    cfg = config(tmp_path)
    cfg.resume = True
    with pytest.raises(ValueError, match='rewind_point.pth, which is gone'):
        Runner.from_cfg(cfg).train()
    data['state_dict']['head.bias'] += 1
    del data['meta']['rewind_checksum']
    torch.save(data, point)
    cfg.experiment_name += '_again'
    with pytest.raises(ValueError, match='is not the rewind point of the'):
        Runner.from_cfg(cfg).train()
