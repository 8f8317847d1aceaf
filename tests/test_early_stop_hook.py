"""Stopping and choosing the best wait until everything is pruned."""

from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.optim import OptimWrapper
from mmengine.registry import METRICS
from tiny_training import TinyMLP, config, run

from mmprune.registry import OPTIM_WRAPPERS

VALUES = [9.0, 5.0, 4.0, 3.0, 2.0, 1.0]


@METRICS.register_module()
class Falling(BaseMetric):
    """Gets worse at each evaluation, whatever the model."""

    default_prefix = ''

    def __init__(self) -> None:
        super().__init__()
        self.left = list(VALUES)

    def process(self, data_batch, data_samples) -> None:
        """Counts the batch."""
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        """Returns the next value."""
        return dict(score=self.left.pop(0))


def train(folder: Path, *hooks: dict, **changes):
    """Six epochs of four steps; half of the units go in the first half."""
    cfg = config(folder, epochs=6, custom_hooks=list(hooks), **changes)
    cfg.val_dataloader = cfg.train_dataloader
    cfg.val_evaluator, cfg.val_cfg = dict(type='Falling'), dict()
    cfg.default_hooks.checkpoint |= dict(save_best='score', rule='greater')
    return run(cfg)


GRADUAL = dict(
    type='mmprune.GradualPruningHook',
    schedule=dict(type='mmprune.CubicSchedule', begin=0.0, end=0.5, final=0.5),
    pruner=dict(type='mmprune.StructuredPruner'),
)
STOP = dict(
    type='mmprune.EarlyStopHook', monitor='score', rule='greater', patience=2
)


def test_evaluations_count_from_the_last_pruning_on(tmp_path):
    # Pruned in full after epoch 3; 4 and 5 are no better.
    runner = train(tmp_path, GRADUAL, STOP)
    assert runner.epoch == 5
    assert (tmp_path / 'best_score_epoch_3.pth').is_file()


def test_without_a_pruning_all_count(tmp_path):
    runner = train(tmp_path, STOP)
    assert runner.epoch == 3  # epoch 1 is best, 2 and 3 are no better
    assert (tmp_path / 'best_score_epoch_1.pth').is_file()


def test_a_resumed_training_goes_on_waiting(tmp_path):
    train(tmp_path / 'one', STOP)
    start = str(tmp_path / 'one' / 'epoch_2.pth')
    runner = train(tmp_path / 'two', STOP, load_from=start, resume=True)
    # 9.0 is what the new metric begins with: no better than before.
    assert runner.epoch <= 4


def test_the_forward_is_in_half_precision_on_a_cpu():
    model = TinyMLP(dropout=0.0)
    seen = []
    model.net[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    wrapper = OPTIM_WRAPPERS.build(
        dict(
            type='mmprune.AutocastOptimWrapper',
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )
    )
    assert isinstance(wrapper, OptimWrapper)
    data = dict(
        inputs=list(torch.randn(4, 4)),
        data_samples=list(torch.tensor([0, 1, 2, 0])),
    )
    model.train_step(data, wrapper)
    assert seen == [torch.bfloat16]
    assert model.net[0].weight.dtype == torch.float32
    with pytest.raises(ValueError, match='dtype is one of'):
        OPTIM_WRAPPERS.build(
            dict(
                type='mmprune.AutocastOptimWrapper',
                dtype='int8',
                optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            )
        )
