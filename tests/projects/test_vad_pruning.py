"""VAD loses units of every kind and still computes what the mask says."""

import copy
import json
import runpy
from collections import defaultdict

import pytest
import torch
from golden import ROOT, build_vad, golden_frames, golden_sets, golden_vad
from mmengine.config import Config
from mmengine.runner import Runner

from mmprune.cost import cost_table
from mmprune.cost_table import kept_cost
from mmprune.models import load_model
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner, masked_difference, protect_frozen
from mmprune.surgery import apply_plan
from projects.VAD.mini_world.keyframe import write_keyframe
from projects.VAD.pruning.family import VADPruning, all_lanes
from projects.VAD.pruning.groups import DENSE_REASONS, vad_groups

CONFIG = ROOT / 'projects' / 'configs' / 'VAD' / 'VAD_tiny_stage_2.py'
# Small enough for a test: one layer each, a 20 x 20 BEV, small pictures.
NANO = {
    'model.img_backbone.depth': 18,
    'model.img_neck.in_channels': [512],
    'model.pts_bbox_head.bev_h': 20,
    'model.pts_bbox_head.bev_w': 20,
    'model.pts_bbox_head.num_query': 30,
    'model.pts_bbox_head.num_map_vectors': 10,
    'model.pts_bbox_head.transformer.encoder.num_layers': 1,
    'model.pts_bbox_head.transformer.decoder.num_layers': 1,
    'model.pts_bbox_head.transformer.map_decoder.num_layers': 1,
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
}


@pytest.fixture(scope='module')
def golden(shared):
    """VAD-Tiny with golden weights, its groups, and two frames to run."""
    sets = [g for g in golden_sets(shared, 'tiny') if g.image_size[0] < 384]
    if not sets:
        pytest.skip('no small golden set of VAD-Tiny')
    model = golden_vad(shared, 'tiny', sets[0].tag)
    frames = golden_frames(shared, sets[0].tag, sets[0].image_size)

    def forward(model):
        model.forget()
        with torch.no_grad(), all_lanes(model):
            return [model.step(*copy.deepcopy(frame)) for frame in frames]

    return model, list(vad_groups(model)), forward


def kind(name: str, granularity: str) -> str:
    if granularity == 'channel':
        return 'neck' if name.startswith('img_neck') else 'backbone'
    if granularity == 'neuron':
        return 'ffn' if 'ffns' in name else 'branch'
    deformable = name.endswith(('.heads', '.points'))
    return f'deformable {granularity}' if deformable else granularity


def test_all_kinds_of_units_are_found(golden):
    _, groups, _ = golden
    kinds = defaultdict(int)
    for group in groups:
        if not group.dense:
            kinds[kind(group.name, group.granularity)] += 1
    assert kinds == {
        # conv1 and conv2 of 16 blocks, the stem, the outputs of 4 stages
        'backbone': 37,
        'neck': 2,
        # two per encoder layer, one per layer of both decoders
        'deformable head': 12,
        'deformable point': 12,
        # self-attention of both decoders' layers, and the motion and ego
        # decoders
        'head': 10,
        'ffn': 13,
        # 3 reg and 3 map reg branches, traj and ego with two hidden layers
        # each, and the can bus
        'branch': 17,
    }


@pytest.mark.parametrize('sparsity', [0.3, 0.5])
def test_masked_equals_pruned_over_two_frames(golden, sparsity):
    model, groups, forward = golden
    plan = StructuredPruner(sparsity)(model, groups)
    assert len(plan.groups) > 90
    assert masked_difference(model, plan, forward) < 1e-4


@pytest.mark.parametrize(
    'name',
    [
        'img_backbone.layer2.0.conv1',
        'img_neck.output',
        'pts_bbox_head.transformer.encoder.layers.0.attentions.0.heads',
        'pts_bbox_head.transformer.encoder.layers.0.attentions.0.points',
        'pts_bbox_head.transformer.encoder.layers.1.attentions.1'
        '.deformable_attention.heads',
        'pts_bbox_head.transformer.encoder.layers.1.attentions.1'
        '.deformable_attention.points',
        'pts_bbox_head.transformer.decoder.layers.0.attentions.0.attn',
        'pts_bbox_head.transformer.map_decoder.layers.2.attentions.1.points',
        'pts_bbox_head.ego_fut_decoder.0',
    ],
)
def test_masked_equals_pruned_for_one_group_of_each_kind(golden, name):
    """Every group alone: benchmarks/vad_masked_equals_pruned.py."""
    model, groups, forward = golden
    (group,) = [g for g in groups if g.name == name]
    plan = PruningPlan((group,), {name: list(range(1, group.size, 2))})
    assert masked_difference(model, plan, forward) < 1e-4


def test_the_predicted_macs_are_the_measured_ones(golden):
    model, groups, forward = golden
    costs = cost_table(model, forward)
    plan = StructuredPruner(0.5, target='macs')(model, groups, costs=costs)
    pruned = copy.deepcopy(model)
    apply_plan(pruned, plan)
    measured = cost_table(pruned, forward).total('macs')
    predicted = kept_cost(costs, 'macs', plan.groups)(plan.keep)
    assert predicted == pytest.approx(measured, rel=1e-3)
    assert measured / costs.total('macs') == pytest.approx(0.5, abs=0.01)


def test_every_matrix_of_vad_is_covered_or_has_a_reason():
    model = build_vad('base')
    covered = {s.tensor for g in vad_groups(model) for s in g.producers}
    family = VADPruning(Config.fromfile(CONFIG))
    for name, param in model.named_parameters():
        if param.ndim > 1 and name not in covered:
            assert family.dense_reason(name) != 'no group covers it', name
    assert family.dense_reason('x') == 'no group covers it'
    assert DENSE_REASONS


def test_groups_of_the_base_model_reach_over_all_levels():
    groups = {g.name: g for g in vad_groups(build_vad('base'))}
    neck = groups['img_neck.output']
    written = {s.tensor for s in neck.producers}
    assert {f'img_neck.fpn_convs.{i}.conv.weight' for i in range(4)} < written
    read = {s.tensor for s in neck.consumers}
    assert 'img_neck.fpn_convs.3.conv.weight' in read
    lateral = groups['img_neck.lateral_convs.0.conv']
    assert not lateral.dense
    assert {s.tensor for s in lateral.producers} >= {
        f'img_neck.lateral_convs.{i}.conv.weight' for i in range(3)
    }


def test_frozen_stem_and_first_stage_stay_by_default():
    model = build_vad('tiny')
    groups = protect_frozen(vad_groups(model), model)
    frozen = [g.name for g in groups if g.dense == 'frozen in training']
    assert len(frozen) == 8
    assert all(
        n == 'img_backbone.conv1' or n.startswith('img_backbone.layer1')
        for n in frozen
    )


# -- the whole job on a small VAD -----------------------------------------


@pytest.fixture(scope='module')
def nano(tmp_path_factory):
    """Config, dense checkpoint, drawn keyframe, and the folder of a run."""
    folder = tmp_path_factory.mktemp('nano')
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(NANO)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] == 'RandomScaleImageMultiViewImage':
            step['scales'] = [0.1]
    config = folder / 'vad_nano.py'
    cfg.dump(config)
    torch.manual_seed(0)
    model = load_untrained(cfg)
    dense = folder / 'dense.pth'
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, dense)
    infos = write_keyframe(folder / 'keyframe')
    main = runpy.run_path(str(ROOT / 'tools' / 'prune_and_retrain.py'))['main']
    main(
        [
            *(str(config), str(dense), '--ann-file', str(infos)),
            *('--pruning-ratio', '0.4', '--importance', 'taylor'),
            *('--target', 'params', '--latency-runs', '1'),
            *('--output-dir', str(folder / 'out')),
        ]
    )
    return config, dense, infos, folder / 'out'


def load_untrained(cfg):
    from mmprune.models import build_model

    model = build_model(cfg)
    for param in model.parameters():
        if param.ndim > 1:
            torch.nn.init.xavier_uniform_(param)
    return model


def test_files_have_the_prefix_of_the_family(nano):
    names = {p.name for p in nano[-1].iterdir()}
    assert {'vad_pruned.pth', 'vad_structured_pruned.pth'} < names


def test_taylor_calibrates_on_the_keyframe_and_meets_the_target(nano):
    report = json.loads((nano[-1] / 'report.json').read_text())
    models = report['models']
    left = models['structured']['params'] / models['dense']['params']
    assert left == pytest.approx(0.6, abs=0.01)
    assert models['structured']['masked_difference'] < 1e-4
    plan = PruningPlan.load(nano[-1] / 'plan.json')
    assert plan.provenance['calibration'] == str(nano[2])
    assert plan.provenance['calibration_batches'] == 1


def test_the_test_command_runs_the_pruned_model_on_the_keyframe(
    nano, tmp_path
):
    config, _, infos, out = nano
    main = runpy.run_path(str(ROOT / 'tools' / 'test.py'))['main']
    metrics = main(
        [
            *(str(config), str(out / 'vad_structured_pruned.pth')),
            *('--ann-file', str(infos), '--work-dir', str(tmp_path)),
        ]
    )
    assert metrics['VAD/plan_L2_avg_3s'] > 0


def test_a_stock_runner_gives_bit_identical_outputs(nano, tmp_path):
    config, _, infos, out = nano
    cfg = Config.fromfile(out / 'vad_structured_pruned.py')
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = 'stock_vad'
    cfg.test_dataloader.dataset.ann_file = str(infos)
    runner = Runner.from_cfg(cfg)
    runner.test()
    model = load_model(
        Config.fromfile(config), out / 'vad_structured_pruned.pth'
    )
    cfg = Config.fromfile(config)
    VADPruning.use_annotations(cfg, infos)
    family = VADPruning(cfg)
    expected, found = (family.forward(m) for m in (model, runner.model.eval()))
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
