"""How the detector behaves around its forward pass."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import ROOT, build_vad
from mmdet.models.layers import LearnedPositionalEncoding
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData

from mmprune.adapters import deformable_groups
from mmprune.masks import mask_plan
from mmprune.plan import PruningPlan
from mmprune.surgery import apply_plan
from projects.VAD.data.box_convention import to_new, to_old
from projects.VAD.model.coders import VADBoxCoder
from projects.VAD.model.deformable_sampling import (
    _sample_compiled,
    sample_levels,
)
from projects.VAD.model.grid_mask import GridMask, _stripes
from projects.VAD.model.transformer import bev_shift, rotate_bev

BASE_CONFIG = ROOT / 'projects' / 'configs' / '_base_' / 'vad_model_tiny.py'
HEIGHT, WIDTH, CLASSES = 64, 96, 10


def small_vad():
    """VAD-Tiny with every part, but few and narrow ones."""
    config = build_config()
    model = MODELS.build(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    # lanes on both sides of the probability 0.5, so that motion reads some
    torch.nn.init.normal_(model.pts_bbox_head.map_cls_branches[-1][-1].weight)
    return model.eval()


def build_config():
    init_default_scope('mmdet3d')
    config = Config.fromfile(BASE_CONFIG).model
    config.img_backbone.depth = 18
    config.img_neck.update(in_channels=[512], out_channels=64)
    head = config.pts_bbox_head
    head.update(
        embed_dims=64,
        feedforward_channels=32,
        bev_h=20,
        bev_w=20,
        num_query=30,
        num_map_vectors=12,
    )
    head.transformer.update(embed_dims=64, rotate_center=(10, 10))
    for name in ('encoder', 'decoder', 'map_decoder'):
        head.transformer[name].update(num_layers=2, feedforward_channels=32)
    return config


def frame(index: int = 0, scene: str = 'a', **extra) -> Det3DDataSample:
    """Six cameras around the vehicle, which drives 2 m per frame."""
    cameras = []
    for camera in range(6):
        yaw = camera * math.pi / 3
        forward = [math.sin(yaw), math.cos(yaw), 0]
        right = [math.cos(yaw), -math.sin(yaw), 0]
        pose = np.eye(4)
        pose[:3, :3] = [right, [0, 0, -1], forward]
        lens = np.eye(4)
        lens[:2, :3] = [[50, 0, WIDTH / 2], [0, 50, HEIGHT / 2]]
        cameras.append(lens @ pose)
    can_bus = np.zeros(18)
    can_bus[:2] = 100 + 2 * index, 50
    can_bus[16:] = 0.1 * index, math.degrees(0.1 * index)
    meta = dict(
        lidar2img=np.stack(cameras),
        can_bus=can_bus,
        img_shape=[(HEIGHT, WIDTH, 3)] * 6,
        scene_token=scene,
    )
    return Det3DDataSample(metainfo={**meta, **extra})


def images(seed: int = 0, batch: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 6, 3, HEIGHT, WIDTH)
    return dict(img=torch.randn(shape, generator=generator))


@pytest.fixture(scope='module')
def vad():
    return small_vad()


@pytest.fixture
def model(vad):
    vad.eval().forget()
    return vad


@torch.no_grad()
def plan_of(model, seed, sample):
    return model(images(seed), [sample], mode='predict')[0].pred_ego.plans


def test_predict_gives_boxes_lines_trajectories_and_plans(model):
    sample = frame()
    sample.gt_ego = BaseDataElement(fut_cmd=torch.tensor([0.0, 1.0, 0.0]))
    with torch.no_grad():
        (out,) = model(images(), [sample], mode='predict')
    objects, lines, ego = out.pred_instances_3d, out.pred_map, out.pred_ego
    num = len(objects)
    assert num > 0
    assert isinstance(objects.bboxes_3d, LiDARInstance3DBoxes)
    assert objects.bboxes_3d.tensor.shape == (num, 9)
    assert objects.trajs.shape == (num, 6, 6, 2)
    assert objects.traj_scores.shape == (num, 6)
    assert ((objects.traj_scores >= 0) & (objects.traj_scores <= 1)).all()
    assert objects.scores_3d.diff().le(0).all()
    assert lines.pts.shape == (len(lines), 20, 2)
    assert lines.bboxes.shape == (len(lines), 4)
    assert ego.plans.shape == (3, 6, 2)
    assert ego.command == 1


def test_trajectories_start_at_the_box_and_plans_at_the_ego(model):
    with torch.no_grad():
        outs = model.step(images(), [frame()])
        model.forget()
        (out,) = model(images(), [frame()], mode='predict')
    raw, _ = model.pts_bbox_head.decode(outs)[0]
    objects = out.pred_instances_3d
    start = objects.bboxes_3d.tensor[:, None, :2]
    first = objects.trajs[:, :, 0] - start
    torch.testing.assert_close(first, raw['trajs'][..., :2])
    last = objects.trajs[:, :, -1] - start
    steps = raw['trajs'].view(-1, 6, 6, 2)
    torch.testing.assert_close(last, steps.sum(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        out.pred_ego.plans[:, -1], outs['ego_fut_preds'][0].sum(1)
    )


def test_predicted_boxes_are_in_the_new_convention(model):
    with torch.no_grad():
        outs = model.step(images(), [frame()])
        model.forget()
        (out,) = model(images(), [frame()], mode='predict')
    raw, _ = model.pts_bbox_head.decode(outs)[0]
    new = out.pred_instances_3d.bboxes_3d
    torch.testing.assert_close(new.tensor[:, 3], raw['boxes'][:, 4])
    torch.testing.assert_close(new.tensor[:, 4], raw['boxes'][:, 3])
    torch.testing.assert_close(new.bottom_center, raw['boxes'][:, :3])


def test_command_is_none_without_ground_truth(model):
    with torch.no_grad():
        (out,) = model(images(), [frame()], mode='predict')
    assert out.pred_ego.command is None


def test_the_previous_frame_of_a_scene_is_remembered(model):
    alone = plan_of(model, 1, frame(1))
    model.forget()
    plan_of(model, 0, frame(0))
    after = plan_of(model, 1, frame(1))
    assert (after - alone).abs().max() > 1e-4


def test_a_new_scene_starts_without_memory(model):
    alone = plan_of(model, 1, frame(1, 'b'))
    model.forget()
    plan_of(model, 0, frame(0, 'a'))
    assert torch.equal(plan_of(model, 1, frame(1, 'b')), alone)


def test_an_evaluation_starts_without_memory(model):
    first = plan_of(model, 0, frame(0))
    plan_of(model, 1, frame(1))
    model.eval()
    assert torch.equal(plan_of(model, 0, frame(0)), first)


def test_memory_is_not_in_the_state_dict(model):
    before = list(model.state_dict())
    plan_of(model, 0, frame())
    assert list(model.state_dict()) == before
    assert not any('memory' in name for name in before)


def test_tensor_mode_neither_reads_nor_writes_the_memory(model):
    with torch.no_grad():
        alone = model(images(1), [frame(1)], mode='tensor')
        plan_of(model, 0, frame(0))
        expected = plan_of(model, 1, frame(1))
        model.forget()
        plan_of(model, 0, frame(0))
        after = model(images(1), [frame(1)], mode='tensor')
        assert torch.equal(plan_of(model, 1, frame(1)), expected)
    for name, value in alone.items():
        assert torch.equal(value, after[name]), name


def test_a_frame_without_history_begins_a_scene(model):
    with torch.no_grad():
        outs = model(images(1), [frame(1)], mode='tensor')
        first = model.step(images(1), [frame(1)])
    for name, value in first.items():
        assert torch.equal(outs[name], value), name


def test_predict_leaves_the_samples_can_bus_alone(model):
    sample = frame(3)
    before = sample.can_bus.copy()
    plan_of(model, 0, frame(2))
    plan_of(model, 0, sample)
    np.testing.assert_array_equal(sample.can_bus, before)


def test_predict_refuses_a_batch(model):
    with pytest.raises(ValueError, match='one frame at a time, got 2'):
        model(images(batch=2), [frame(), frame()], mode='predict')


@pytest.mark.parametrize(
    'key', ['lidar2img', 'can_bus', 'img_shape', 'scene_token']
)
def test_a_lacking_metainfo_key_is_named(model, key):
    meta = {k: v for k, v in frame().metainfo.items() if k != key}
    sample = Det3DDataSample(metainfo=meta)
    with pytest.raises(KeyError, match=f"VAD needs '{key}' in"):
        model(images(), [sample], mode='predict')


def test_images_of_a_wrong_shape_are_refused(model):
    inputs = dict(img=images()['img'][0])
    with pytest.raises(ValueError, match=r'\[batch, cameras, 3, H, W\]'):
        model(inputs, [frame()], mode='predict')


def test_a_wrong_number_of_cameras_is_refused(model):
    inputs = dict(img=images()['img'][:, :5])
    with pytest.raises(ValueError, match='6 cameras and got 5'):
        model(inputs, [frame()], mode='predict')


def test_samples_are_needed(model):
    with pytest.raises(ValueError, match='data_samples in every mode'):
        model(images(), None, mode='tensor')


def test_samples_of_a_batch_do_not_mix(model):
    pictures = images(batch=2)
    history = [frame(0).metainfo]
    history[0]['can_bus'] = np.zeros(18)
    sequence = dict(img=torch.stack([pictures['img']] * 2, 1))
    samples = [frame(i, history=history) for i in (0, 1)]
    for sample in samples:
        sample.can_bus[:2] -= 100, 50
    with torch.no_grad():
        both = model(sequence, samples, mode='tensor')
        for i in (0, 1):
            one = dict(img=sequence['img'][i : i + 1])
            alone = model(one, samples[i : i + 1], mode='tensor')
            torch.testing.assert_close(
                both['ego_fut_preds'][i : i + 1],
                alone['ego_fut_preds'],
                rtol=1e-3,
                atol=1e-4,
            )


def test_history_gives_what_the_frames_in_order_give(model):
    frames = [frame(i) for i in range(3)]
    with torch.no_grad():
        for i, sample in enumerate(frames):
            expected = model.step(images(i), [sample])
    metas = [copy.deepcopy(sample.metainfo) for sample in frames]
    for meta, before in zip(metas, frames[:1] + frames, strict=False):
        meta['can_bus'][:3] -= before.can_bus[:3]
        meta['can_bus'][17] -= before.can_bus[17]
    sample = Det3DDataSample(metainfo=dict(metas[2], history=metas[:2]))
    queue = torch.stack([images(i)['img'] for i in range(3)], 1)
    with torch.no_grad():
        outs = model(dict(img=queue), [sample], mode='tensor')
    for name, value in expected.items():
        torch.testing.assert_close(outs[name], value)


def test_history_and_images_must_agree(model):
    both = dict(img=torch.stack([images()['img']] * 3, 1))
    with pytest.raises(ValueError, match='2 history frames'):
        model(both, [frame(history=[frame().metainfo])], mode='tensor')


def training_sample() -> Det3DDataSample:
    sample = frame(1, history=[frame(0).metainfo])
    sample.can_bus[:3] = 2, 0, 0
    boxes = torch.tensor(
        [[3, 5, -1, 4, 2, 1.5, 0.3, 1, 0], [-6, 9, -1, 1, 1, 2, 1, 0, 0]]
    )
    attr = torch.rand(2, 34)
    attr[:, 12:18] = 1
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        labels_3d=torch.tensor([0, 8]),
        attr_labels=attr,
    )
    line = torch.stack((torch.full((20,), 2.0), torch.linspace(-9, 9, 20)), 1)
    shifts = torch.full((1, 19, 20, 2), -10000.0)
    shifts[0, 0], shifts[0, 1] = line, line.flip(0)
    sample.gt_map = InstanceData(
        labels=torch.tensor([2]),
        bboxes=torch.tensor([[2.0, -9, 2, 9]]),
        pts=line[None],
        shift_pts=shifts,
    )
    sample.gt_ego = BaseDataElement(
        fut_trajs=torch.rand(6, 2),
        fut_masks=torch.ones(6),
        fut_cmd=torch.tensor([0.0, 0.0, 1.0]),
    )
    return sample


def test_loss_reaches_every_trainable_parameter():
    model = small_vad().train()
    both = dict(img=torch.stack([images(i)['img'] for i in (0, 1)], 1))
    losses = model(both, [training_sample()], mode='loss')
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    total.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []
    assert model.training
    assert not model.img_backbone.bn1.training  # norm_eval


def test_history_frames_take_no_gradient_and_no_grid_mask(monkeypatch):
    model = small_vad().train()
    seen = []
    model.grid_mask.register_forward_hook(
        lambda module, args, out: seen.append(module.training)
    )
    encode = model.pts_bbox_head.encode
    grads = []

    def spy(features, geometry, prev_bev=None):
        bev = encode(features, geometry, prev_bev)
        grads.append(bev.requires_grad)
        return bev

    monkeypatch.setattr(model.pts_bbox_head, 'encode', spy)
    both = dict(img=torch.stack([images(i)['img'] for i in (0, 1)], 1))
    model(both, [training_sample()], mode='loss')
    assert seen == [False, True]
    assert grads == [False, True]


def test_loss_without_a_loss_module_is_refused():
    config = build_config()
    config.pts_bbox_head.loss = None
    model = MODELS.build(config)
    with pytest.raises(ValueError, match='give it loss=dict'):
        model(images(), [frame()], mode='loss')


def test_loss_without_ground_truth_is_refused(vad):
    with pytest.raises(KeyError, match='gt_instances_3d'):
        vad(images(), [frame()], mode='loss')


def test_init_weights_starts_as_described():
    model = MODELS.build(build_config())
    model.init_weights()
    head = model.pts_bbox_head
    prior = -math.log(99)
    for branches in (
        head.cls_branches,
        head.map_cls_branches,
        head.traj_cls_branches,
    ):
        for branch in branches:
            assert branch[-1].bias.tolist() == pytest.approx(
                [prior] * len(branch[-1].bias)
            )
    temporal, spatial = head.transformer.encoder.layers[0].attentions
    for attention in (temporal, spatial.deformable_attention):
        assert attention.sampling_offsets.weight.abs().max() == 0
        assert attention.attention_weights.weight.abs().max() == 0
        bias = attention.sampling_offsets.bias.view(
            8, -1, attention.num_points, 2
        )
        # head 0 looks along x, head 1 diagonally, point k at radius k + 1
        radius = torch.arange(1, attention.num_points + 1.0)
        for queue in range(bias.shape[1]):
            torch.testing.assert_close(
                bias[0, queue], torch.stack((radius, radius * 0), 1)
            )
            torch.testing.assert_close(
                bias[1, queue], torch.stack((radius, radius), 1)
            )
    assert spatial.output_proj.bias.abs().max() == 0
    limit = math.sqrt(6 / (64 + 64))  # Xavier
    weight = spatial.output_proj.weight
    assert 0.9 * limit < weight.abs().max() <= limit
    modes = head.motion_mode_query.weight
    torch.testing.assert_close(
        modes @ modes.t(), torch.eye(6), atol=1e-5, rtol=0
    )
    assert head.transformer.level_embeds.std() > 0.8
    assert head.transformer.reference_points.bias.abs().max() == 0


def test_positions_start_as_in_the_original():
    """Of agents and lanes by Xavier, of the ego as PyTorch does.

    PyTorch draws weights and biases up to 1 / sqrt(inputs).
    """
    model = MODELS.build(build_config())
    model.init_weights()
    head = model.pts_bbox_head
    xavier = math.sqrt(6 / (2 + 64))
    for linear in (head.pos_mlp_sa, head.pos_mlp):
        assert 0.8 * xavier < linear.weight.abs().max() <= xavier
        assert linear.bias.abs().max() == 0
    for linear in (head.ego_agent_pos_mlp, head.ego_map_pos_mlp):
        assert xavier < linear.weight.abs().max() <= math.sqrt(1 / 2)
        assert xavier < linear.bias.abs().max() <= math.sqrt(1 / 2)


def test_the_can_bus_network_keeps_pytorchs_biases():
    model = MODELS.build(build_config())
    model.init_weights()
    network = model.pts_bbox_head.transformer.can_bus_mlp
    for linear, inputs in ((network[0], 18), (network[2], 32)):
        limit = math.sqrt(1 / inputs)
        assert 0.5 * limit < linear.bias.abs().max() <= limit
        xavier = math.sqrt(6 / (inputs + linear.out_features))
        assert 0.9 * xavier < linear.weight.abs().max() <= xavier


class HeadOfItsOwn(BaseModule):
    """As the original's head: ``init_weights`` asks the transformer alone."""

    def __init__(self):
        super().__init__()
        self.positional_encoding = LearnedPositionalEncoding(
            128, row_num_embed=100, col_num_embed=100
        )

    def init_weights(self):
        """Does not call the base class, which would ask the children."""


def is_normal(embedding):
    values = embedding.weight
    spread = values.min() < -2.5 and values.max() > 2.5
    return (
        spread and abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05
    )


def test_the_positional_encoding_stays_normally_distributed():
    """mmdet's encoding wants a uniform start, which nobody asks it for."""
    detector = BaseModule()
    detector.pts_bbox_head = HeadOfItsOwn()
    detector.init_weights()
    theirs = detector.pts_bbox_head.positional_encoding
    assert all(map(is_normal, theirs.children()))
    theirs.init_weights()
    assert theirs.row_embed.weight.min() >= 0 > -theirs.row_embed.weight.max()

    model = build_vad('tiny', 'stage_2')
    model.init_weights()
    ours = model.pts_bbox_head.positional_encoding
    assert all(map(is_normal, ours.children()))


def test_the_branches_of_all_layers_start_equal():
    head = MODELS.build(build_config()).pts_bbox_head
    first, second = head.reg_branches[:2]
    assert torch.equal(first[0].weight, second[0].weight)
    assert first[0].weight is not second[0].weight


def test_configs_start_from_imagenet_only_where_they_train_from_scratch():
    assert build_vad('tiny', 'stage_1').img_backbone.init_cfg['type'] == (
        'Pretrained'
    )
    init = build_vad('tiny', 'stage_2').img_backbone.init_cfg
    assert 'Pretrained' not in str(init)


def test_bfloat16_autocast_stays_close(model):
    with torch.no_grad():
        exact = model(images(), [frame()], mode='tensor')
        with torch.autocast('cpu', torch.bfloat16):
            rough = model(images(), [frame()], mode='tensor')
            model(images(), [frame()], mode='predict')
    for name, value in rough.items():
        assert value.isfinite().all(), name
        gap = (value.float() - exact[name]).abs().mean()
        assert gap < 0.1 * exact[name].abs().mean() + 0.02, name


def test_gradients_flow_under_autocast():
    model = small_vad().train()
    both = dict(img=torch.stack([images(i)['img'] for i in (0, 1)], 1))
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(both, [training_sample()], mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    grad = model.pts_bbox_head.bev_embedding.weight.grad
    assert grad.isfinite().all()
    assert grad.abs().max() > 0


def test_attentions_run_and_agree_without_half_their_heads_and_points():
    dense = small_vad()
    groups = tuple(deformable_groups(dense))
    keep = {g.name: list(range(g.size))[: max(1, g.size // 2)] for g in groups}
    plan = PruningPlan(groups, keep)
    pruned, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    apply_plan(pruned, plan)
    mask_plan(masked, plan)
    spatial = pruned.pts_bbox_head.transformer.encoder.layers[0].attentions[1]
    assert spatial.deformable_attention.num_points == 4
    assert spatial.deformable_attention.num_heads == 4
    with torch.no_grad():
        want = masked(images(), [frame()], mode='tensor')
        got = pruned(images(), [frame()], mode='tensor')
        other = dense(images(), [frame()], mode='tensor')
    torch.testing.assert_close(
        got['bev_embed'], want['bev_embed'], rtol=1e-4, atol=1e-4
    )
    assert (got['bev_embed'] - other['bev_embed']).abs().max() > 1e-2


def sampled_by_torch(value, shapes, locations, weights, batch):
    """One grid_sample per query's map and level."""
    heads, width = value.shape[2:]
    out = 0
    levels = value.split([h * w for h, w in shapes], 1)
    for i, (level, (h, w)) in enumerate(zip(levels, shapes, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(-1, width, h, w)
        head = torch.arange(heads).repeat(len(batch))
        chosen = maps[batch.repeat_interleave(heads) * heads + head]
        grid = locations[:, :, i].flatten(0, 1).unsqueeze(1) * 2 - 1
        read = F.grid_sample(chosen, grid, align_corners=False).squeeze(2)
        out = out + (read * weights[:, :, i].flatten(0, 1).unsqueeze(1)).sum(2)
    return out.view(len(batch), heads * width)


@pytest.fixture
def sampling_arguments():
    shapes = [(7, 9), (4, 5)]
    value = torch.randn(3, 83, 2, 5, requires_grad=True)
    locations = (torch.rand(40, 2, 2, 3, 2) * 1.6 - 0.3).requires_grad_()
    weights = torch.rand(40, 2, 2, 3, requires_grad=True)
    batch = torch.randint(0, 3, (40,)).sort().values
    return value, shapes, locations, weights, batch


def test_sampling_equals_grid_sample_with_gradients(sampling_arguments):
    value, _, locations, weights, _ = sampling_arguments
    leaves = (value, locations, weights)
    ours = sample_levels(*sampling_arguments)
    theirs = sampled_by_torch(*sampling_arguments)
    torch.testing.assert_close(ours, theirs)
    grads = [
        torch.autograd.grad(out.square().sum(), leaves)
        for out in (ours, theirs)
    ]
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_operations_give_what_the_compiled_loops_give(
    sampling_arguments, monkeypatch
):
    leaves = [sampling_arguments[i] for i in (0, 2, 3)]
    loops = sample_levels(*sampling_arguments)
    monkeypatch.setattr('torch.jit.is_tracing', lambda: True)
    operations = sample_levels(*sampling_arguments)
    assert 'SampleOnCPU' in loops.grad_fn.name()
    assert 'SampleOnCPU' not in operations.grad_fn.name()
    torch.testing.assert_close(loops, operations)
    grads = [
        torch.autograd.grad(out.square().sum(), leaves)
        for out in (loops, operations)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith('AVX'),
    reason='embedding_bag rounds products here before it adds them',
)
def test_the_compiled_loops_give_the_bits_of_the_operations(monkeypatch):
    """Of large maps too, where positions have few digits after the point."""
    value = torch.randn(2, 100 * 100 + 12 * 20, 4, 32)
    locations = torch.rand(500, 4, 2, 4, 2) * 1.2 - 0.1
    weights, batch = torch.rand(500, 4, 2, 4), torch.arange(500) // 250
    given = (value, [(100, 100), (12, 20)], locations, weights, batch)
    with torch.no_grad():
        loops = sample_levels(*given)
        monkeypatch.setattr('torch.jit.is_tracing', lambda: True)
        assert torch.equal(loops, sample_levels(*given))


def test_the_number_of_threads_changes_no_bit(sampling_arguments):
    value, _, locations, weights, _ = sampling_arguments
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = sample_levels(*sampling_arguments)
            leaves = value, locations, weights
            found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_location_that_is_no_number_shows(sampling_arguments):
    value, shapes, locations, weights, batch = sampling_arguments
    lost = locations.detach().clone()
    lost[3, 1, 0, 2, 0] = float('nan')
    out = sample_levels(value, shapes, lost, weights, batch)
    assert out[3, 5:].isnan().all()
    assert out.isnan().sum() == 5


def test_sampling_through_mmcvs_op_is_the_same(sampling_arguments):
    """mmprune serves the op on any device, so its packing is tested here."""
    with torch.no_grad():
        ours = sample_levels(*sampling_arguments)
        theirs = _sample_compiled(*sampling_arguments)
    torch.testing.assert_close(ours, theirs)


def test_sampling_far_outside_is_zero(sampling_arguments):
    value, shapes, _, weights, batch = sampling_arguments
    for far in (1e30, -1e30, float('inf'), float('nan')):
        where = torch.full((40, 2, 2, 3, 2), far)
        with torch.no_grad():
            out = sample_levels(value, shapes, where, weights, batch)
        if math.isfinite(far):
            assert out.abs().max() == 0
        assert out.shape == (40, 10)


def test_sampling_nothing_gives_nothing(sampling_arguments):
    value, shapes, locations, weights, batch = sampling_arguments
    out = sample_levels(value, shapes, locations[:0], weights[:0], batch[:0])
    assert out.shape == (0, 10)


def test_rotation_is_torchvisions():
    from torchvision.transforms.functional import rotate

    bev = torch.randn(1, 900, 3)
    for degrees, centre in ((3.7, (100, 100)), (-61.0, (15, 15))):
        ours = rotate_bev(
            bev, (30, 30), torch.tensor([degrees]).double(), centre
        )
        picture = bev[0].view(30, 30, 3).permute(2, 0, 1)
        theirs = rotate(picture, degrees, center=list(centre))
        assert torch.equal(ours[0].view(30, 30, 3).permute(2, 0, 1), theirs)


def test_shift_is_the_way_driven_in_the_vehicles_frame():
    can_bus = torch.zeros(2, 18)
    can_bus[0, 1], can_bus[0, 16] = 3, math.pi / 2  # heading y, 3 m ahead
    can_bus[1, 1], can_bus[1, 16] = 3, 0  # heading x, 3 m to the left
    shift = bev_shift(can_bus, (-15, -30, -2, 15, 30, 2))
    expected = torch.tensor([[0, 3 / 60], [-3 / 30, 0]])
    torch.testing.assert_close(shift, expected, atol=1e-6, rtol=0)


def test_box_conventions_are_each_others_inverse():
    old = torch.tensor([[1.0, 2, 3, 1.9, 4.5, 1.6, 0.4, 5, 6]])
    new = to_new(old)
    expected = [1, 2, 3, 4.5, 1.9, 1.6, -0.4 - math.pi / 2, 5, 6]
    assert new[0].tolist() == pytest.approx(expected)
    torch.testing.assert_close(to_old(new), old)
    turned = torch.zeros(1, 7)
    turned[0, 6] = 3.0
    assert to_new(turned)[0, 6].item() == pytest.approx(
        2 * math.pi - 3.0 - math.pi / 2
    )
    with pytest.raises(ValueError, match='at least 7 columns'):
        to_new(torch.zeros(1, 6))


def test_box_coder_drops_centres_outside_its_range():
    coder = VADBoxCoder([-20, -35, -10, 20, 35, 10], max_num=5)
    code = torch.zeros(3, 10)
    code[:, 5] = math.log(2.0)  # height
    code[1, 0] = 21
    logits = torch.full((3, CLASSES), -9.0)
    logits[0, 3], logits[1, 1], logits[2, 0] = 1, 2, 3
    found = coder.decode(logits, code)
    assert found['labels'][:2].tolist() == [0, 3]
    assert found['queries'][:2].tolist() == [2, 0]
    assert 1 not in found['queries']
    assert found['boxes'][0, 2] == -1  # half the height below the centre


def test_grid_mask_keeps_stripes_and_drops_squares_in_training_only():
    mask = GridMask(prob=1.0)
    pictures = torch.ones(2, 3, 40, 60)
    np.random.seed(3)
    kept = mask.train()(pictures)
    assert torch.equal(kept[0, 0], kept[1, 2])
    fraction = kept.mean().item()
    assert 0.6 < fraction < 0.95
    rows = kept[0, 0].amin(1)
    columns = kept[0, 0].amin(0)
    stripes = (rows[:, None] + columns[None]).clamp(max=1)
    assert torch.equal(stripes, kept[0, 0])
    assert mask.eval()(pictures) is pictures
    never = GridMask(prob=0.0).train()
    assert never(pictures) is pictures
    with pytest.raises(ValueError, match='no probability'):
        GridMask(prob=1.5)


def grid_mask_by_loops(seed, height, width):
    """What VAD draws and keeps, stripe by stripe on its canvas."""
    rng = np.random.RandomState(seed)
    keep = np.zeros((height * 3 // 2, width * 3 // 2), bool)
    if rng.rand() > 0.7:
        return np.ones((height, width), bool)
    period = rng.randint(2, height)
    stripe = min(max(int(period / 2 + 0.5), 1), period - 1)
    top, left = rng.randint(period), rng.randint(period)
    for k in range(len(keep) // period):
        keep[top + k * period : top + k * period + stripe] = True
    for k in range(keep.shape[1] // period):
        keep[:, left + k * period : left + k * period + stripe] = True
    y, x = (len(keep) - height) // 2, (keep.shape[1] - width) // 2
    return keep[y : y + height, x : x + width]


@pytest.mark.parametrize('size', [(384, 640), (40, 60)])
def test_a_seed_gives_the_grid_masks_of_the_original(size):
    mask = GridMask().train()
    for seed in range(60):
        np.random.seed(seed)
        kept = mask(torch.ones(1, 1, *size))[0, 0].bool().numpy()
        assert (kept == grid_mask_by_loops(seed, *size)).all(), seed


def test_no_stripe_begins_before_the_first_one():
    """Canvas of 30, picture from 5 on; the stripe is 18 to 27 of it.

    A period earlier it would be -1 to 8: there is none.
    """
    stripes = _stripes(20, period=19, stripe=10, first=18)
    assert stripes.nonzero()[0].tolist() == list(range(13, 20))


def test_evaluation_draws_one_number_as_the_original_does():
    np.random.seed(0)
    GridMask().eval()(torch.ones(1, 1, 8, 8))
    after = np.random.rand()
    np.random.seed(0)
    assert after == np.random.rand(2)[1]


def test_preprocessor_stacks_images_and_refuses_mixed_sizes():
    init_default_scope('mmdet3d')
    preprocessor = MODELS.build(dict(type='VADDataPreprocessor'))
    one = torch.rand(6, 3, 4, 8)
    data = dict(inputs=dict(img=[one, one]), data_samples=[frame(), frame()])
    out = preprocessor(data)
    assert out['inputs']['img'].shape == (2, 6, 3, 4, 8)
    assert len(out['data_samples']) == 2
    data['inputs']['img'] = [one, one[..., :4]]
    with pytest.raises(ValueError, match='pad them to one size'):
        preprocessor(data)


def test_the_planner_reads_the_chosen_ego_status():
    config = build_config()
    config.pts_bbox_head.ego_lcf_feat_idx = (7, 4)
    model = MODELS.build(config).eval()
    samples = [frame()]
    with pytest.raises(KeyError, match='lcf_feat in gt_ego'):
        model(images(), samples, mode='tensor')
    plans = []
    for speed, ignored in ((3.0, 0.0), (3.0, 9.0), (8.0, 0.0)):
        status = torch.zeros(9)
        status[7], status[0] = speed, ignored
        samples[0].gt_ego = BaseDataElement(lcf_feat=status)
        with torch.no_grad():
            outs = model(images(), samples, mode='tensor')
        plans.append(outs['ego_fut_preds'])
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


def test_an_ego_status_column_that_does_not_exist_is_refused():
    config = build_config()
    config.pts_bbox_head.ego_lcf_feat_idx = (0, 9)
    with pytest.raises(ValueError, match=r'columns \[9\]'):
        MODELS.build(config)
