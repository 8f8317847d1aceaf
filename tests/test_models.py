"""A pruned model is built from the dense config and a plan, in any Runner."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from tiny_project import IMAGE, TinyFamily, TinyModel, write_config
from torch import nn

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.checkpoints.unfilled import is_unfilled, unfilled
from mmprune.checkpoints.writing import save_pruned
from mmprune.models import (
    build_model,
    load_model,
    load_weights,
    loaded_model,
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


class HidesAWeight(TinyModel):
    """Its state dict lacks a parameter."""

    def state_dict(self, *args, **kwargs):
        full = super().state_dict(*args, **kwargs)
        full.pop('one.weight', None)
        return full

    def load_state_dict(self, state, strict=True):
        return super().load_state_dict(state, strict=False)


@pytest.fixture
def hides_a_weight():
    MODELS.register_module(module=HidesAWeight)
    yield
    MODELS.module_dict.pop('HidesAWeight')


@pytest.mark.parametrize('form', ['pruned', 'dense'])
def test_loading_draws_no_start_that_the_file_overwrites(
    pruned, form, tmp_path
):
    model, path, cfg = pruned
    if form == 'dense':
        model, path = TinyModel(16), tmp_path / 'dense.pth'
        torch.save({'state_dict': model.state_dict()}, path)
    before = torch.get_rng_state()
    loaded = load_model(cfg, path)
    assert torch.equal(torch.get_rng_state(), before)
    found = loaded.state_dict()
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def test_weights_that_no_file_holds_get_their_start(hides_a_weight):
    state = HidesAWeight(8).state_dict()
    cfg = Config(dict(model=dict(type='HidesAWeight', width=8)))
    torch.manual_seed(0)
    expected = TinyModel(8)
    torch.manual_seed(0)
    loaded = loaded_model(cfg, {'state_dict': state}, 'x.pth')
    assert torch.equal(loaded.one.weight, expected.one.weight)
    assert torch.equal(loaded.two.weight, state['two.weight'])


def test_what_is_built_without_being_loaded_starts_at_random(pruned):
    model, path, cfg = pruned
    torch.manual_seed(0)
    dense = TinyModel(16)
    apply_plan(dense, model.pruning_plan)
    torch.manual_seed(0)
    built = build_model(cfg, PruningPlan.load(path).to_dict())
    found = built.state_dict()
    assert all(torch.equal(found[k], v) for k, v in dense.state_dict().items())


def test_unfilled_parameters_are_noted_and_constants_are_not():
    before = torch.get_rng_state()
    with unfilled():
        linear = nn.Linear(3, 3)
        nn.init.trunc_normal_(linear.weight)
        norm = nn.BatchNorm2d(3)
        noise = torch.rand(3)
        assert is_unfilled(linear.weight)
        assert not is_unfilled(norm.weight)
    assert torch.equal(norm.weight, torch.ones(3))
    assert noise.unique().numel() == 3
    assert not torch.equal(torch.get_rng_state(), before)
    assert not is_unfilled(linear.weight)


def test_a_plan_is_read_as_text_or_as_data(pruned, tmp_path):
    model, path, cfg = pruned
    save_pruned(model, model.pruning_plan, tmp_path / 'text.pth')
    raw = torch.load(tmp_path / 'text.pth', weights_only=True)
    text = raw['meta']['pruning_plan']
    assert text == model.pruning_plan.to_json()
    read = load_checkpoint_file(tmp_path / 'text.pth')
    older = load_checkpoint_file(path)
    assert read['meta']['pruning_plan'] == older['meta']['pruning_plan']
    raw['meta']['pruning_plan'] = text[:-5]
    torch.save(raw, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match='cut.pth is truncated'):
        load_model(cfg, tmp_path / 'cut.pth')


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
