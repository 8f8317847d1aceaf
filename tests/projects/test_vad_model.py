"""How the detector behaves around its forward pass."""

import copy

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from tiny_vad import build_config, frame, images, small_vad, training_sample

from mmprune.adapters import deformable_groups
from mmprune.masks import mask_plan
from mmprune.plan import PruningPlan
from mmprune.surgery import apply_plan


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
