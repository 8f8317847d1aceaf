"""A pruned model is built from the dense config and a plan, in any Runner."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from tiny_project import IMAGE, TinyFamily, TinyModel, write_config

from mmprune.models import (
    build_model,
    load_model,
    load_weights,
    pruned_model_config,
)
from mmprune.plan import PruningPlan
from mmprune.surgery import apply_plan


def plan(model) -> PruningPlan:
    groups = tuple(g for g in TinyFamily(None).groups(model) if not g.dense)
    keep = {g.name: list(range(0, g.size, 2)) for g in groups}
    return PruningPlan(groups, keep)


@pytest.fixture
def pruned(tmp_path):
    """A pruned model, its checkpoint, and the config of the dense one."""
    model = TinyModel(16).eval()
    apply_plan(model, plan(model))
    meta = {'pruning_plan': model.pruning_plan.to_dict()}
    path = tmp_path / 'pruned.pth'
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, path)
    return model, path, Config.fromfile(write_config(tmp_path))


@pytest.mark.parametrize('form', ['dict', 'json', 'checkpoint'])
def test_every_form_of_a_plan_builds_the_same_model(pruned, form, tmp_path):
    model, path, cfg = pruned
    given = model.pruning_plan.to_dict() if form == 'dict' else str(path)
    if form == 'json':
        given = str(tmp_path / 'plan.json')
        model.pruning_plan.save(given)
    built = MODELS.build(
        dict(type='mmprune.PrunedModel', model=cfg.model, plan=given)
    )
    assert type(built) is TinyModel  # no wrapper
    shapes = {k: v.shape for k, v in built.state_dict().items()}
    assert shapes == {k: v.shape for k, v in model.state_dict().items()}
    assert built.pruning_plan == model.pruning_plan


def test_start_weights_are_not_replayed_onto_smaller_layers(pruned):
    _, path, cfg = pruned
    cfg.model.init_cfg = None
    built = build_model(
        Config(dict(model=dict(type='TinyModel', width=16))),
        PruningPlan.load(path).to_dict(),
    )
    before = built.one.weight.clone()
    built.init_cfg = dict(type='Constant', layer='Conv2d', val=7)
    built.init_weights()
    assert torch.equal(built.one.weight, before)


def test_loading_needs_the_dense_config_only(pruned):
    model, path, cfg = pruned
    loaded = load_model(cfg, path)
    assert not loaded.training
    with torch.no_grad():
        for key, value in model(IMAGE).items():
            assert torch.equal(loaded(IMAGE)[key], value)


def test_a_written_config_takes_the_plan_of_the_checkpoint(pruned):
    _, path, cfg = pruned
    cfg.model = pruned_model_config(cfg.model, 'gone.json')
    assert load_model(cfg, path).one.out_channels == 16


def test_the_preprocessor_is_passed_through(pruned):
    _, path, cfg = pruned
    cfg.data_preprocessor = dict(type='BaseDataPreprocessor')
    built = build_model(cfg, PruningPlan.load(path).to_dict())
    assert type(built.data_preprocessor).__name__ == 'BaseDataPreprocessor'


def test_weights_of_data_parallel_models_load():
    model = TinyModel(4)
    state = {f'module.{k}': v for k, v in TinyModel(4).state_dict().items()}
    load_weights(model, {'state_dict': state}, 'x.pth')
    assert torch.equal(model.one.weight, state['module.one.weight'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('one.weight'), r'1 keys are missing \(one.weight\)'),
        (lambda s: s.update(x=torch.ones(1)), r'1 are unknown \(x\)'),
        (
            lambda s: s.update({'one.bias': torch.ones(3)}),
            r'1 shapes differ \(one.bias \(3,\) for \(8,\)\)',
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    state = TinyModel(4).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_weights(TinyModel(4), {'state_dict': state}, 'x.pth')


def test_a_plan_of_another_model_is_refused(pruned):
    _, path, cfg = pruned
    cfg.model.width = 4
    with pytest.raises(ValueError, match='belongs to another model'):
        load_model(cfg, path)


def test_a_config_without_a_model_is_refused():
    with pytest.raises(ValueError, match='has no `model`'):
        build_model(Config(dict(x=1)))
