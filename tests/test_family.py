"""A family without a class of its own: adapters and dataloaders by name."""

import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from tiny_project import CONFIG, TinyImages, TinyModel, write_config

from mmprune.family import Family, build_family, use_annotations

PRUNING = """
pruning = dict(
    type='mmprune.Family', adapters=['mmprune.ffn_groups'], num_batches=2
)
"""


@pytest.fixture
def cfg(tmp_path):
    return Config.fromfile(write_config(tmp_path, CONFIG + PRUNING))


@pytest.fixture
def read(monkeypatch):
    """The samples that were read, by number."""
    found = []
    original = TinyImages.prepare_data

    def prepare_data(self, idx):
        found.append(idx)
        return original(self, idx)

    monkeypatch.setattr(TinyImages, 'prepare_data', prepare_data)
    return found


def test_groups_are_found_without_any_data(cfg, read, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError('a data set was built')

    monkeypatch.setattr(DATASETS, 'build', refuse)
    monkeypatch.setattr(TinyImages, '__init__', refuse)
    family = build_family(cfg)
    names = [g.name for g in family.groups(TinyModel(16))]
    assert names == ['branch.0', 'scored.0']
    assert family.source == 'test_dataloader (TinyImages)'
    assert read == []


def test_the_example_is_the_first_sample_and_is_read_once(cfg, read):
    family = build_family(cfg)
    model = TinyModel(16).eval()
    first, again = family.forward(model), family.single_frame(model)
    assert read == [0]
    assert first['classes'].shape == (1, 3)
    assert torch.equal(first['classes'], again['classes'])


@pytest.mark.parametrize('there', ['val_dataloader', 'train_dataloader'])
def test_without_test_data_the_example_is_of_the_next_split(cfg, there):
    loader = cfg.pop('test_dataloader')
    cfg.pop('train_dataloader')
    cfg[there] = loader
    assert build_family(cfg).source == f'{there} (TinyImages)'


def test_calibration_reads_the_first_training_batches_in_order(cfg, read):
    cfg.test_dataloader.dataset = dict(type='Nothing')
    cfg.train_dataloader.sampler.shuffle = True
    cfg.train_dataloader.dataset.count = 100
    batches = build_family(cfg).batches()
    assert [len(batch['inputs']) for batch in batches] == [2, 2]
    assert read == [0, 1, 2, 3]


def test_augmentation_is_repeated_and_the_generators_are_left_alone(cfg):
    cfg.train_dataloader.dataset.noise = 0.5
    torch.manual_seed(1)
    first = build_family(cfg).batches()
    torch.manual_seed(2)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    again = build_family(cfg).batches()
    assert torch.equal(first[1]['inputs'][0], again[1]['inputs'][0])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()


def test_the_loss_is_the_models_own(cfg):
    family = build_family(cfg)
    model = TinyModel(16).eval()
    (batch, _) = family.batches()
    own = model(batch['inputs'], mode='loss')['loss']
    assert torch.equal(family.loss(model, batch), own)


def test_what_is_exported_is_one_call_on_the_example(cfg):
    family = build_family(cfg)
    model = TinyModel(16).eval()
    (part,) = family.tensor_path(model).parts
    found = part.run(part.inputs)
    with torch.no_grad():
        own = family.forward(model)
    assert torch.equal(found['classes'], own['classes'])


def test_an_adapter_that_runs_the_model_gets_the_example(cfg):
    cfg.pruning.adapters = ['mmprune.discovered_groups']
    model = TinyModel(16).eval()
    names = [g.name for g in build_family(cfg).groups(model)]
    assert {'stem', 'one', 'two'} <= set(names)


def test_of_two_adapters_the_first_one_s_group_counts(cfg):
    cfg.pruning.adapters = ['mmprune.ffn_groups', 'mmprune.discovered_groups']
    model = TinyModel(16).eval()
    found = list(build_family(cfg).groups(model))
    names = [g.name for g in found]
    assert len(names) == len(set(names))
    assert names.index('branch.0') < names.index('stem')


def test_an_adapter_that_is_not_there_is_named(cfg):
    cfg.pruning.adapters = ['mmprune.no_groups']
    with pytest.raises(ValueError, match="no adapter 'mmprune.no_groups'"):
        build_family(cfg)


def test_a_config_without_pruning_is_refused(cfg):
    cfg.pop('pruning')
    with pytest.raises(ValueError, match='no `pruning` entry'):
        build_family(cfg)


# -- --ann-file ------------------------------------------------------------


def test_annotations_are_those_of_the_test_data(cfg, tmp_path):
    (tmp_path / 'infos.pkl').touch()
    cfg.test_dataloader.dataset = dict(
        type='RepeatDataset', dataset=dict(type='TinyImages')
    )
    use_annotations(cfg, str(tmp_path / 'infos.pkl'))
    inner = cfg.test_dataloader.dataset.dataset
    assert inner.ann_file == str(tmp_path / 'infos.pkl')
    assert 'ann_file' not in cfg.train_dataloader.dataset


def test_a_family_may_know_better_which_data_that_is(cfg, monkeypatch):
    used = []
    monkeypatch.setattr(
        Family,
        'use_annotations',
        classmethod(lambda cls, cfg, path: used.append((cls, path))),
    )
    use_annotations(cfg, 'x.pkl')
    cfg.pop('pruning')
    use_annotations(cfg, 'y.pkl')
    assert used == [(Family, 'x.pkl'), (Family, 'y.pkl')]


def test_annotations_that_are_not_there_are_named(cfg):
    with pytest.raises(ValueError, match='no info file at nowhere.pkl'):
        use_annotations(cfg, 'nowhere.pkl')
