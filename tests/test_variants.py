"""The models that a run makes are an open list."""

import copy
import json
import runpy
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from tiny_project import TinyFamily, write_checkpoint, write_config

import mmprune.run.variants as variants
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.checkpoints.writing import pruned_model_config, save_pruned
from mmprune.models import build_model, load_model
from mmprune.plan import PruningPlan
from mmprune.pruners import WeightPruner
from mmprune.run import folder as run_folder
from mmprune.run import training, workflow
from mmprune.run.options import PruningOptions
from mmprune.run.report import markdown, variants_of

PRUNE = ROOT / 'tools' / 'prune_and_retrain.py'


@pytest.fixture
def files(tmp_path):
    return write_config(tmp_path), write_checkpoint(tmp_path)


def prune(files, *flags):
    folder = files[0].parent / 'out'
    words = [*files, '--latency-runs', 0, '--output-dir', folder, *flags]
    runpy.run_path(str(PRUNE))['main'](list(map(str, words)))
    return folder


def halved(dense, options, progress):
    """A variant of a test: every weight matrix is halved."""
    model = copy.deepcopy(dense.model)
    for param in model.parameters():
        param.data /= 2
    return variants.Pruned(model, PruningPlan((), {}), dense.groups)


def test_one_entry_adds_a_variant_to_files_and_report(files, monkeypatch):
    new = variants.Variant(halved, 'weights', 'halved.pth')
    monkeypatch.setitem(variants.VARIANTS, 'halved', new)
    cfg = Config.fromfile(files[0])
    model, meta = workflow.load_dense(cfg, files[1], PruningOptions())
    options = PruningOptions(latency_runs=0)
    result = workflow.prune(cfg, model, options, variants={'halved': new})
    assert set(result.report['models']) == {'dense', 'halved'}
    assert result.report['variants']['halved']['removes'] == 'weights'
    folder = files[0].parent / 'out'
    run_folder.write(
        result.models, result.plans, result.report, cfg, meta, folder
    )
    assert {p.name for p in folder.iterdir()} == {
        'tiny_halved.pth',
        'report.json',
        'report.md',
    }
    loaded = load_model(cfg, folder / 'tiny_halved.pth')
    assert torch.equal(loaded.one.weight, model.one.weight / 2)
    with pytest.raises(ValueError, match='holds another run'):
        run_folder.check_output(folder, '--output-dir', allowed=False)


def test_the_report_has_each_variant_and_the_old_keys(files):
    report = json.loads((prune(files) / 'report.json').read_text())
    found = report['variants']
    assert list(found) == ['unstructured', 'structured']
    assert found['structured']['removes'] == 'units'
    for key in ('groups', 'kinds', 'uncovered', 'modules', 'tensors'):
        assert report[key] == found['structured'][key]
    assert report['weights'] == found['unstructured']['weights']


def test_a_model_of_the_same_shapes_is_neither_counted_nor_timed_again(
    files, monkeypatch
):
    cfg = Config.fromfile(files[0])
    options = PruningOptions(latency_runs=3)
    model, _ = workflow.load_dense(cfg, files[1], options)
    ran, single = [], TinyFamily.single_frame

    def spy(self, model):
        ran.append(model)
        return single(self, model)

    monkeypatch.setattr(TinyFamily, 'single_frame', spy)
    result = workflow.prune(cfg, model, options)
    counts = {name: ran.count(m) for name, m in result.models.items()}
    # One count, one warm-up and three that are timed.
    assert counts == dict(unstructured=0, structured=1 + 1 + 3)
    assert ran.count(model) == 1 + 1 + 3
    rows = result.report['models']
    for key in ('macs', 'latency_ms', 'params'):
        assert rows['unstructured'][key] == rows['dense'][key]
    assert 'was not measured apart' in result.report['notes']


def test_widths_of_wide_groups_are_round_unless_that_misses_the_ratio(
    files, monkeypatch
):
    cfg = Config.fromfile(files[0])
    cfg.model.width = 64
    options = PruningOptions(sparsity=0.4, latency_runs=0)
    model = build_model(cfg).eval()
    dense = workflow.find_dense(cfg, model, options, lambda _: None)

    def kept(**changed) -> dict[str, int]:
        asked = replace(options, **changed)
        plan = variants.unit_plan(dense, dense.groups, asked)
        return {k: len(plan.keep[k]) for k in ('one', 'branch.0')}

    assert all(k % 16 == 0 for k in kept().values())
    free = kept(round_to=1)
    assert any(k % 16 for k in free.values())
    monkeypatch.setattr(variants, '_rounding', lambda _: {'round_to': 5000})
    assert kept() == free


class Insisting(TinyFamily):
    """Of a model whose own code asks for a width, as attentions of mmdet."""

    def forward(self, model):
        width = 2 * self.cfg.model.width
        assert model.one.out_channels == width, 'as wide as it was'
        return super().forward(model)


def test_a_group_whose_width_the_model_asserts_stays_dense(files):
    cfg = Config.fromfile(files[0])
    options = PruningOptions(
        sparsity=0.5, mode='structured', scope='layer', latency_runs=0
    )
    model = build_model(cfg).eval()
    dense = workflow.find_dense(cfg, model, options, lambda _: None)
    dense = replace(dense, family=Insisting(cfg))
    made = variants.remove_units(dense, options, lambda _: None)
    reasons = {g.name: g.dense for g in made.groups}
    assert 'as wide as it was' in reasons['one']
    assert made.plan.keep.keys() == {
        n for n, why in reasons.items() if not why
    }


def test_a_report_from_before_variants_had_names_is_read(files):
    report = json.loads((prune(files) / 'report.json').read_text())
    before = {k: v for k, v in report.items() if k != 'variants'}
    assert variants_of(before).keys() == {'structured', 'unstructured'}
    assert markdown(before) == markdown(report)


def test_scope_layer_holds_for_single_weights_too(files):
    folder = prune(files, '--scope', 'layer', '--pruning-ratio', 0.5)
    state = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    for name in ('one.weight', 'branch.0.weight', 'scored.2.weight'):
        zeros = (state[name] == 0).sum().item()
        assert zeros == state[name].numel() / 2


def test_a_criterion_of_units_leaves_weights_to_their_size_and_says_so(
    files, capsys
):
    plain = torch.load(prune(files) / 'tiny_pruned.pth')['state_dict']
    folder = prune(files, '--importance', 'bn_scale', '--force')
    state = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    assert torch.equal(state['one.weight'], plain['one.weight'])
    notes = json.loads((folder / 'report.json').read_text())['notes']
    assert 'bn_scale does not score single weights' in notes
    assert 'chosen by l1' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['dense.pth', 'tiny_structured_pruned.pth'])
def test_a_file_is_read_once_to_be_evaluated(files, monkeypatch, name):
    folder = prune(files)
    path = files[1] if name == 'dense.pth' else folder / name
    reads, original = [], torch.load

    def load(file, *args, **kwargs):
        reads.append(file)
        return original(file, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', load)
    cfg = Config.fromfile(files[0])
    metrics = training.evaluate(cfg, path, folder / 'evaluation', 'none')
    assert set(metrics) == {'mean'}
    assert len(reads) == 1


def test_one_writer_of_pruned_configs_replaces_the_plan_of_a_pruned_one():
    dense = dict(type='X', pretrained='far/away.pth')
    once = pruned_model_config(dense, 'a.json', dict(type='Pre'))
    assert once == dict(
        type='mmprune.PrunedModel',
        model=dict(type='X', pretrained=None),
        plan='a.json',
        data_preprocessor=dict(type='Pre'),
    )
    twice = pruned_model_config(once, 'b.json')
    assert twice == {**once, 'plan': 'b.json'}


def test_a_written_checkpoint_carries_plain_meta_only(files, tmp_path):
    model = load_model(Config.fromfile(files[0]), files[1])
    meta = dict(epoch=3, hooks=object(), dataset_meta=dict(classes=['a']))
    save_pruned(model, PruningPlan((), {}), tmp_path / 'x.pth', meta=meta)
    found = load_checkpoint_file(tmp_path / 'x.pth')['meta']
    assert found['epoch'] == 3
    assert found['dataset_meta'] == dict(classes=['a'])
    assert 'hooks' not in found
    assert found['pruning_plan']['groups'] == []


def test_a_vit_without_a_class_of_its_own_is_pruned_in_one_go(tmp_path):
    pytest.importorskip('timm')
    pytest.importorskip('sklearn')
    config = ROOT / 'projects/configs/vit/vit_tiny_digits_imp.py'
    from mmprune.models import build_model

    model = build_model(Config.fromfile(config))
    dense = tmp_path / 'vit.pth'
    torch.save(dict(meta={}, state_dict=model.state_dict()), dense)
    folder = tmp_path / 'out'
    words = [config, dense, '--latency-runs', 0, '--output-dir', folder]
    words += ['--pruning-ratio', 0.5, '--importance', 'l1']
    runpy.run_path(str(PRUNE))['main'](list(map(str, words)))
    name = 'vit_tiny_digits_imp_structured_pruned.pth'
    small = load_model(Config.fromfile(config), folder / name)
    assert sum(b.attn.num_heads for b in small.blocks) == 12  # of 24
    assert sum(b.mlp.fc1.out_features for b in small.blocks) == 384


# -- choices of single weights ---------------------------------------------

chooses = pytest.mark.skipif(
    'pattern' not in WeightPruner.__dataclass_fields__,
    reason='this WeightPruner has neither criteria nor patterns',
)


@chooses
def test_a_pattern_leaves_two_of_four_neighbouring_inputs(files):
    folder = prune(files, '--mode', 'unstructured', '--pattern', '2:4')
    checkpoint = load_checkpoint_file(folder / 'tiny_pruned.pth')
    weight = checkpoint['state_dict']['branch.0.weight']
    counts = (weight.view(len(weight), -1, 4) != 0).sum(2)
    assert (counts == 2).all()
    sparse = checkpoint['meta']['pruning_plan']['sparse']
    assert sparse['branch.0.weight'] == '2:4'


@chooses
def test_scope_row_zeroes_the_same_count_in_every_row(files):
    flags = ['--scope', 'row', '--pruning-ratio', 0.25]
    folder = prune(files, '--mode', 'unstructured', *flags)
    weight = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    zeros = (weight['branch.0.weight'] == 0).sum(1)
    assert (zeros == 4).all()  # of 16


@chooses
def test_taylor_chooses_other_weights_than_their_size(files):
    plain = torch.load(prune(files) / 'tiny_pruned.pth')['state_dict']
    folder = prune(files, '--importance', 'taylor', '--force')
    state = torch.load(folder / 'tiny_pruned.pth')['state_dict']
    zeros = [s['branch.0.weight'] == 0 for s in (plain, state)]
    assert not torch.equal(*zeros)
