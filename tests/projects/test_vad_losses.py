"""Losses and matching of VAD, against golden numbers and by hand."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub

from projects.VAD.model.assigners import assign_boxes, assign_lines, hungarian
from projects.VAD.model.box_code import encode_boxes
from projects.VAD.model.losses import VADLoss
from projects.VAD.model.perception_losses import (
    focal_loss,
    giou_loss,
    motion_losses,
    turning_loss,
)
from projects.VAD.model.plan_losses import (
    boundary_loss,
    collision_loss,
    direction_loss,
)

OUTPUTS = (
    'all_cls_scores',
    'all_bbox_preds',
    'all_traj_preds',
    'all_traj_cls_scores',
    'map_all_cls_scores',
    'map_all_bbox_preds',
    'map_all_pts_preds',
    'ego_fut_preds',
)
CODE_WEIGHTS = torch.tensor([1.0] * 8 + [0.2] * 2)
MAP_CODE_WEIGHTS = torch.ones(4)


def golden_ground_truth(golden):
    def tensor(name):
        return torch.from_numpy(golden[name])

    return dict(
        gt_boxes=tensor('gt_boxes'),
        gt_labels=tensor('gt_labels'),
        gt_attr=tensor('gt_attr'),
        map_labels=tensor('map_labels'),
        map_bboxes=tensor('map_gt_bbox'),
        map_pts=tensor('map_gt_fixed_pts'),
        shift_pts=tensor('shift_pts_v2'),
        ego_fut_trajs=tensor('ego_fut_trajs')[0],
        ego_fut_masks=tensor('ego_fut_masks')[0, 0],
        ego_fut_cmd=tensor('ego_fut_cmd')[0, 0],
    )


@pytest.fixture
def golden_steps(shared):
    """(name, loss arrays, outputs of frame 1, ground truth) per model.

    The outputs are those of evaluation mode: with frozen batch norm and no
    dropout they are what the training step saw.
    """
    folder = shared / 'vad' / 'golden'
    steps = []
    for path in sorted(folder.glob('*_loss.npz')):
        outputs = folder / path.name.replace('_loss', '_eval')
        if not outputs.exists():
            continue
        golden, arrays = np.load(path), np.load(outputs)
        outs = {n: torch.from_numpy(arrays[f'f1_{n}']) for n in OUTPUTS}
        steps.append((path.stem, golden, outs, golden_ground_truth(golden)))
    if not steps:
        pytest.skip(f'no pair of *_loss.npz and *_eval.npz in {folder}')
    return steps


def test_every_loss_equals_the_original(golden_steps):
    for name, golden, outs, gt in golden_steps:
        losses = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
        expected = dict(
            zip(golden['loss_names'], golden['loss_values'], strict=True)
        )
        assert losses.keys() == expected.keys(), name
        for key, value in expected.items():
            assert losses[key].item() == pytest.approx(
                value, rel=1e-5, abs=1e-7
            ), (name, key)
        total = sum(losses.values()).item()
        assert total == pytest.approx(float(golden['loss_total']), rel=1e-5)


def test_every_match_equals_the_original(golden_steps):
    loss = VADLoss()
    for name, golden, outs, gt in golden_steps:
        for i, expected in enumerate(golden['det_assigned_gt']):
            assigned = loss.match_boxes(
                outs['all_cls_scores'][i, 0], outs['all_bbox_preds'][i, 0], gt
            )
            assert (assigned.numpy() + 1 == expected).all(), (name, i)
            lines, orders = loss.match_lines(
                outs['map_all_cls_scores'][i, 0],
                outs['map_all_pts_preds'][i, 0],
                gt,
            )
            matched = golden['map_assigned_gt'][i]
            assert (lines.numpy() + 1 == matched).all(), (name, i)
            order = golden['map_assigned_order'][i]
            assert (orders.numpy() == order).all(), (name, i)


def test_two_equal_samples_weigh_as_much_as_one(golden_steps):
    _, _, outs, gt = golden_steps[-1]
    twice = {
        n: torch.cat((v, v), dim=0 if n == 'ego_fut_preds' else 1)
        for n, v in outs.items()
    }
    one = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    two = VADLoss()(twice, [gt, gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)


def random_step(num_boxes=3, num_lines=2, layers=2, queries=9, vectors=7):
    points = torch.rand(layers, 1, vectors, 20, 2)
    low, high = points.amin(3), points.amax(3)
    outs = dict(
        all_cls_scores=torch.randn(layers, 1, queries, 10),
        all_bbox_preds=torch.randn(layers, 1, queries, 10),
        all_traj_preds=torch.randn(layers, 1, queries, 6, 12),
        all_traj_cls_scores=torch.randn(layers, 1, queries, 6),
        map_all_cls_scores=torch.randn(layers, 1, vectors, 3) + 1,
        map_all_bbox_preds=torch.cat(((low + high) / 2, high - low), -1),
        map_all_pts_preds=points,
        ego_fut_preds=torch.randn(1, 3, 6, 2),
    )
    outs = {name: value.requires_grad_() for name, value in outs.items()}
    lines = torch.rand(num_lines, 20, 2) * 20 - 10
    gt = dict(
        gt_boxes=torch.rand(num_boxes, 9) + 0.5,
        gt_labels=torch.arange(num_boxes),
        gt_attr=torch.ones(num_boxes, 34),
        map_labels=torch.arange(num_lines),
        map_bboxes=torch.cat((lines.amin(1), lines.amax(1)), dim=1),
        map_pts=lines,
        shift_pts=lines[:, None].repeat(1, 19, 1, 1),
        ego_fut_trajs=torch.ones(6, 2),
        ego_fut_masks=torch.ones(6),
        ego_fut_cmd=torch.tensor([0.0, 0.0, 1.0]),
    )
    return outs, gt


def test_it_has_no_parameters_and_no_buffers():
    loss = VADLoss()
    assert not list(loss.parameters()) and not list(loss.buffers())
    assert not loss.state_dict()


def test_each_weight_scales_its_own_loss_in_every_layer():
    outs, gt = random_step()
    once = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    name = 'loss_map_pts'
    more = VADLoss(**{name: 1.2})(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    for key, value in once.items():
        factor = 3.0 if key.endswith(name) else 1.0
        torch.testing.assert_close(more[key], factor * value)


@pytest.mark.parametrize('part', ['all_', 'map_all_'])
def test_every_layer_of_the_longer_decoder_learns(part):
    outs, gt = random_step(layers=4)
    for name in list(outs):
        if 'all_' in name and not name.startswith(part):
            outs[name] = outs[name].detach()[:2].requires_grad_()
    losses = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    sum(losses.values()).backward()
    scores = outs[f'{part}cls_scores'].grad
    assert (scores.flatten(1).abs().sum(1) > 0).all()
    assert {'d0.loss_cls', 'd0.loss_map_cls'} < losses.keys()
    assert ('d2.loss_cls' in losses) == (part == 'all_')
    assert ('d2.loss_map_cls' in losses) == (part == 'map_all_')


@pytest.mark.parametrize(
    ('epoch', 'weight'),
    # 1.1 / (1 + exp(32.5 - 100 p)): the exponent is 32.5, 2.5, -2.5, -67.5
    [(0, 0.0), (6, 0.083444), (7, 1.016556), (20, 1.1), (None, 1.0)],
)
def test_the_trajectory_loss_sets_in_after_a_third_if_asked(epoch, weight):
    outs, gt = random_step()
    step = outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS
    hub = MessageHub.get_current_instance()
    plain = VADLoss()(*step)
    if epoch is not None:
        hub.update_info('epoch', epoch)
        hub.update_info('max_epochs', 20)
    try:
        grown = VADLoss(use_traj_lr_warmup=True)(*step)
        same = VADLoss()(*step)
    finally:
        for key in ('epoch', 'max_epochs'):
            hub.runtime_info.pop(key, None)
    for name, loss in plain.items():
        factor = weight if name == 'loss_traj' else 1.0
        assert grown[name].item() == pytest.approx(
            factor * loss.item(), rel=1e-5, abs=1e-9
        )
        assert same[name] == loss


def test_a_sample_without_any_object_still_trains_the_background():
    outs, gt = random_step(num_boxes=0, num_lines=0)
    losses = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    assert losses['loss_cls'] > 0 and losses['loss_map_cls'] > 0
    for name in ('bbox', 'traj', 'map_pts', 'map_dir', 'map_bbox'):
        assert losses[f'loss_{name}'] == 0
    sum(losses.values()).backward()
    assert all(o.grad.isfinite().all() for o in outs.values())


def test_a_box_without_velocity_or_size_drops_out_of_the_regression():
    outs, gt = random_step(num_boxes=1)
    gt['gt_boxes'][0, 3] = 0.0
    losses = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    assert losses['loss_bbox'] == 0 and losses['loss_cls'] > 0
    sum(losses.values()).backward()
    assert all(o.grad.isfinite().all() for o in outs.values())


def test_plan_losses_reach_perception_but_matching_does_not_leak():
    outs, gt = random_step()
    # a boundary 0.6 m beside a straight plan, in every layer
    outs['ego_fut_preds'].data[:] = torch.tensor([0.0, 1.0])
    outs['map_all_pts_preds'].data[:, 0, 0, :, 0] = 0.52
    outs['map_all_pts_preds'].data[:, 0, 0, :, 1] = torch.linspace(
        0.5, 0.7, 20
    )
    outs['map_all_cls_scores'].data[:, 0, 0, 2] = 5.0
    losses = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    losses['loss_plan_bound'].backward()
    assert outs['map_all_pts_preds'].grad[-1].abs().sum() > 0
    assert outs['map_all_pts_preds'].grad[:-1].abs().sum() == 0
    assert outs['ego_fut_preds'].grad.abs().sum() > 0
    assert outs['map_all_cls_scores'].grad is None


def test_map_box_losses_vanish_on_the_true_box():
    outs, gt = random_step(num_lines=1, vectors=1, layers=1)
    x1, y1, x2, y2 = gt['map_bboxes'][0]
    box = [(x1 + x2) / 60 + 0.5, (y1 + y2) / 120 + 0.5]
    box += [(x2 - x1) / 30, (y2 - y1) / 60]
    outs['map_all_bbox_preds'] = torch.tensor(box).view(1, 1, 1, 4)
    loss = VADLoss(loss_map_bbox=1.0, loss_map_iou=1.0)
    losses = loss(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    assert losses['loss_map_bbox'] == pytest.approx(0, abs=1e-5)
    assert losses['loss_map_iou'] == pytest.approx(0, abs=1e-5)
    outs['map_all_bbox_preds'] = outs['map_all_bbox_preds'] + 0.1
    losses = loss(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    assert losses['loss_map_bbox'] == pytest.approx(0.4, abs=1e-5)
    assert losses['loss_map_iou'] > 0.1


def test_half_precision_outputs_give_single_precision_losses():
    outs, gt = random_step()
    halves = {n: v.detach().bfloat16() for n, v in outs.items()}
    losses = VADLoss()(halves, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    assert {v.dtype for v in losses.values()} == {torch.float32}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(loss_iou=0.5), 'no 3-D IoU loss; set it to 0'),
        (dict(loss_cls=-1.0), r"negative, found \{'loss_cls': -1.0\}"),
    ],
)
def test_impossible_weights_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VADLoss(**options)


def _loss_in_process(rank, folder):
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    outs, gt = random_step(num_boxes=3 if rank else 1)
    losses = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
    (folder / f'{rank}.txt').write_text(str(losses['loss_cls'].item()))
    torch.distributed.destroy_process_group()


def test_pairs_are_counted_over_all_processes(tmp_path):
    """One and three pairs: both processes divide by two."""
    context = mp.get_context('spawn')
    workers = [
        context.Process(
            target=_loss_in_process, args=(rank, tmp_path), daemon=True
        )
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    for rank, pairs in ((0, 1), (1, 3)):
        torch.manual_seed(0)
        outs, gt = random_step(num_boxes=pairs)
        alone = VADLoss()(outs, [gt], CODE_WEIGHTS, MAP_CODE_WEIGHTS)
        shared_count = float((tmp_path / f'{rank}.txt').read_text())
        assert shared_count == pytest.approx(
            alone['loss_cls'].item() * pairs / 2, rel=1e-5
        )


def test_focal_loss_of_two_numbers_by_hand():
    logits = torch.zeros(1, 2, 1)
    one = torch.zeros(1, dtype=torch.int64)
    value = focal_loss(logits, batch=one, query=one, labels=one)
    # p = 1/2 for both: (alpha + (1 - alpha)) * (1/2)^2 * log 2
    assert value.item() == pytest.approx(0.25 * np.log(2), rel=1e-6)


@pytest.mark.parametrize(('last_known', 'best'), [(True, 2), (False, 0)])
def test_the_best_mode_ends_nearest_if_the_end_is_known(last_known, best):
    trajs = torch.zeros(1, 1, 3, 12)
    trajs[0, 0, :, 0] = torch.tensor([5.0, 4.0, -1.0])
    trajs[0, 0, 2, 10] = 1.0  # ends at 0 but starts 1 m beside the truth
    attributes = torch.zeros(1, 34)
    attributes[0, 12:18] = 1.0
    attributes[0, 17] = float(last_known)
    zero = torch.zeros(1, dtype=torch.int64)
    error, _ = motion_losses(
        trajs, torch.zeros(1, 1, 3), attributes, zero, zero
    )
    assert error.item() == {2: 2.0, 0: 5.0}[best]


def test_turning_loss_is_0_along_and_2_against():
    line = torch.arange(6.0).view(1, 3, 2)
    assert turning_loss(line, line).item() == pytest.approx(0, abs=1e-6)
    assert turning_loss(line, line.flip(1)).item() == pytest.approx(4)


def test_giou_loss_by_hand():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    b = torch.tensor([[1.0, 0, 3, 2], [2, 0, 3, 1]])
    # overlap 2 of 6, hull 6; no overlap, hull 3 of which 1 is empty
    expected = torch.tensor([1 - 2 / 6, 1 + 1 / 3])
    torch.testing.assert_close(giou_loss(a, b), expected)


def test_hungarian_survives_what_is_not_finite():
    nan, inf = float('nan'), float('inf')
    cost = torch.tensor([[nan, 1.0], [0.0, inf], [nan, nan]])
    assert hungarian(cost).tolist() == [1, 0, -1]


def test_velocity_does_not_decide_a_match():
    gt = encode_boxes(torch.tensor([[1.0, 2, 0, 1, 1, 1, 0, 9, 9]]))
    codes = gt.repeat(2, 1)
    codes[0, 8:] = -100.0
    codes[1, 0] += 0.5
    logits = torch.zeros(2, 10)
    labels = torch.zeros(1, dtype=torch.int64)
    assert assign_boxes(logits, codes, gt, labels, 1, 1).tolist() == [0, -1]


def test_a_line_is_matched_in_its_nearest_order():
    line = torch.linspace(0, 1, 20)[:, None].repeat(1, 2)
    orders = torch.full((1, 3, 20, 2), -300.0)
    orders[0, 0], orders[0, 1] = line, line.flip(0)
    points = torch.stack((torch.ones(20, 2), line.flip(0) + 0.01))
    labels = torch.zeros(1, dtype=torch.int64)
    assigned, order = assign_lines(
        torch.zeros(2, 3), points, orders, labels, 1.0, 1.0
    )
    assert assigned.tolist() == [-1, 0]
    assert order.tolist() == [-1, 1]


def straight(step=(0.0, 1.0), steps=6):
    return torch.tensor(step).repeat(1, steps, 1).requires_grad_()


def line_at(x, points=40):
    y = torch.linspace(0, 10, points)
    return torch.stack((torch.full_like(y, x), y), dim=1)[None, None]


def test_boundary_loss_is_the_missing_distance():
    kept = torch.ones(1, 1, dtype=torch.bool)
    loss = boundary_loss(straight(), line_at(0.7), kept)
    torch.testing.assert_close(
        loss, torch.full_like(loss, 0.3), atol=2e-2, rtol=0
    )
    assert (boundary_loss(straight(), line_at(1.5), kept) == 0).all()
    assert (boundary_loss(straight(), line_at(0.7), ~kept) == 0).all()


def test_boundary_loss_ends_with_the_first_crossing():
    kept = torch.ones(1, 1, dtype=torch.bool)
    plan = straight((0.3, 1.0))
    loss = boundary_loss(plan, line_at(0.7), kept)[0]
    assert (loss[:2] > 0).all() and (loss[2:] == 0).all()


def test_collision_loss_takes_its_minima_from_different_agents():
    centers = torch.tensor([[[0.5, 2.0], [1.4, 0.1], [0.0, 99.0]]])
    agents = torch.zeros(1, 3, 2, 1, 2)
    kept = torch.tensor([[True, True, True]])
    plan = torch.zeros(1, 1, 2)
    scores = torch.zeros(1, 3, 2)
    loss = collision_loss(plan, centers, agents, scores, kept)
    torch.testing.assert_close(loss, torch.tensor([[[1.0, 2.9]]]))
    none = collision_loss(plan, centers, agents, scores, ~kept)
    assert (none == 0).all()


@pytest.mark.parametrize('step', [(0.0, 0.0), (0.0, 1.0)])
def test_direction_loss_sends_no_nan_back(step):
    plan = straight(step)
    lines = line_at(0.5).clone()
    lines[0, 0, 3:6] = lines[0, 0, 3]  # repeated points have no direction
    lines = lines.requires_grad_()
    kept = torch.ones(1, 1, dtype=torch.bool)
    loss = direction_loss(plan, lines, kept)
    loss.sum().backward()
    assert plan.grad.isfinite().all() and lines.grad.isfinite().all()


def test_direction_loss_is_the_angle_to_the_divider():
    kept = torch.ones(1, 1, dtype=torch.bool)
    for turn in (line_at(0.0), line_at(0.0).flip(2)):
        loss = direction_loss(straight((0.2, 1.0)), turn, kept)
        assert loss[0, 0].item() == pytest.approx(np.arctan(0.2), abs=1e-5)
    slow = direction_loss(straight((0.02, 0.1)), turn, kept)
    assert (slow == 0).all()
