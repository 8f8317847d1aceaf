"""A model whose ``eval()`` returns nothing is treated like any other.

mmdet's distilled detectors (LD, LAD) and many projects write ``train``
without its ``return``.
"""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from tiny_project import (
    CONFIG,
    IMAGE,
    TinyFamily,
    TinyModel,
    write_checkpoint,
    write_config,
)
from tiny_training import TinyMLP, config, run

import mmprune
from mmprune.checkpoints.writing import save_pruned
from mmprune.models import build_model, load_model
from mmprune.registry import TASK_UTILS
from mmprune.run.export import export_checkpoint
from mmprune.run.quantize import quantize
from mmprune.tensor_path import TensorPath, traced_part


class Silent:
    """Put before a model: its ``train``, and so ``eval``, returns nothing."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)


@MODELS.register_module()
class SilentModel(Silent, TinyModel):
    """Layers of several kinds."""


@MODELS.register_module()
class SilentMLP(Silent, TinyMLP):
    """Trains on a few points."""


@TASK_UTILS.register_module()
class SilentFamily(TinyFamily):
    """Says what of the model is exported, too."""

    def tensor_path(self, model):
        """Returns one call on the image."""
        part = traced_part(
            'model', model, lambda net, x: net(**x), dict(inputs=IMAGE)
        )
        return TensorPath([part])


@pytest.fixture
def cfg(tmp_path) -> Config:
    """That of the tiny project, with the classes above."""
    text = CONFIG.replace('TinyModel', 'SilentModel')
    text = text.replace('TinyFamily', 'SilentFamily')
    return Config.fromfile(write_config(tmp_path, text))


def test_it_is_pruned_and_loaded(cfg, tmp_path):
    model = build_model(cfg)
    assert model.eval() is None
    small = mmprune.prune(model, IMAGE, 0.5)
    save_pruned(small, small.pruning_plan, tmp_path / 'small.pth')
    again = load_model(cfg, tmp_path / 'small.pth')
    assert not again.training
    with torch.no_grad():
        found, expected = again(IMAGE), small(IMAGE)
    assert torch.equal(found['classes'], expected['classes'])


def test_it_is_exported_dense_and_pruned(cfg, tmp_path):
    dense = write_checkpoint(tmp_path)
    small = mmprune.prune(load_model(cfg, dense), IMAGE, 0.5)
    save_pruned(small, small.pruning_plan, tmp_path / 'small.pth')
    for name, runs in (('dense', 2), ('small', 4)):
        told = export_checkpoint(
            cfg,
            tmp_path / f'{name}.pth',
            tmp_path / name,
            latency_runs=1,
            log=lambda _: None,
        )
        # By onnxruntime and PyTorch; a pruned one beside its dense one.
        assert len(told['latency_ms']) == runs


def test_it_teaches_and_learns(cfg, tmp_path):
    model = build_model(cfg)
    model.load_state_dict(torch.load(write_checkpoint(tmp_path))['state_dict'])
    small = mmprune.prune(model, IMAGE, 0.5)
    student = MODELS.build(
        dict(
            type='mmprune.DistilledModel',
            student=dict(
                type='mmprune.PrunedModel',
                model=cfg.model,
                plan=small.pruning_plan.to_dict(),
            ),
            teacher_checkpoint=str(tmp_path / 'dense.pth'),
            terms=[dict(loss='mse')],
        )
    )
    student.train()
    assert not student._distiller.teacher.training
    losses = student(IMAGE, mode='loss')
    assert losses['loss_distill_outputs'] > 0


def test_its_linear_layers_are_quantized(cfg, tmp_path):
    cfg.model.width = 32
    torch.save(
        dict(meta={}, state_dict=build_model(cfg).state_dict()),
        tmp_path / 'dense.pth',
    )
    report = quantize(
        cfg, tmp_path / 'dense.pth', tmp_path / 'four', log=lambda _: None
    )
    assert 'branch.0' in report['options']['layers']
    assert 0 < report['difference'] < 0.5


def test_what_was_pruned_in_its_training_is_written(tmp_path):
    gradual = dict(
        type='mmprune.GradualPruningHook',
        schedule=dict(
            type='mmprune.CubicSchedule', begin=2, end=14, final=0.5
        ),
        pruner=dict(type='mmprune.StructuredPruner'),
    )
    export = dict(type='mmprune.ExportHook', latency_runs=0)
    cfg = config(
        tmp_path,
        model=dict(type='SilentMLP'),
        custom_hooks=[gradual, export],
    )
    run(cfg)
    small = load_model(cfg, tmp_path / 'pruned.pth')
    assert small.net[0].out_features + small.net[3].out_features == 8  # of 16
