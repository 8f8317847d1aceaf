"""Masks and distillation while VAD trains."""

import copy

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.optim import OptimWrapper
from tiny_vad import build_config, images, small_vad, training_sample

from mmprune.pruners import StructuredPruner, plan_from_zeros
from mmprune.sparsifying import Growth, Masking
from mmprune.surgery import apply_plan
from projects.VAD.pruning.groups import vad_groups

HEADS = ['all_cls_scores', 'all_bbox_preds', 'ego_fut_preds']
TERMS = [
    dict(source='pts_bbox_head', keys=HEADS, loss='l1', weight=0.5),
    dict(source='img_backbone.layer4.1.conv1', loss='mse'),
    dict(source='pts_bbox_head', keys=['map_all_cls_scores'], loss='kl'),
]


@pytest.fixture(scope='module')
def distilled(tmp_path_factory):
    """A student without a third of its units, and its teacher's file."""
    path = tmp_path_factory.mktemp('distilled') / 'dense.pth'
    dense = small_vad()
    torch.save(dict(meta={}, state_dict=dense.state_dict()), path)
    plan = StructuredPruner(0.3)(dense, list(vad_groups(dense)))
    config = build_config()
    config.use_grid_mask = False
    return MODELS.build(
        dict(
            type='mmprune.DistilledModel',
            student=dict(
                type='mmprune.PrunedModel', model=config, plan=plan.to_dict()
            ),
            teacher_checkpoint=str(path),
            terms=TERMS,
        )
    )


def test_heads_and_pruned_features_are_distilled(distilled):
    distilled.train()
    losses = distilled(images(), [training_sample()], mode='loss')
    found = {n: v for n, v in losses.items() if 'distill' in n}
    assert found.keys() == {
        'loss_distill_pts_bbox_head',
        'loss_distill_img_backbone.layer4.1.conv1',
    }
    assert all(torch.isfinite(v) and v > 0 for v in found.values())
    assert len(losses) > 10
    parsed, _ = distilled.parse_losses(losses)
    parsed.backward()
    grad = distilled.img_backbone.layer4[1].conv1.weight.grad
    assert grad is not None and grad.abs().max() > 0


def test_the_ground_truth_is_untouched_by_the_teacher(distilled):
    distilled.train()
    sample = training_sample()
    before = sample.gt_instances_3d.bboxes_3d.tensor.clone()
    distilled(images(), [sample], mode='loss')
    assert torch.equal(sample.gt_instances_3d.bboxes_3d.tensor, before)


def test_masked_units_train_and_become_a_small_model():
    model = small_vad()
    groups = list(vad_groups(model))
    growth = Growth(StructuredPruner(0.4), model, groups)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.1)
    masking = Masking(model, [optimizer])
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=35))
    for sparsity in (0.2, 0.4):
        growth.advance(sparsity, growth.calibrate(sparsity))
        masking.hold(
            lambda net: growth.regions(net, growth.pruned, consumers_only=True)
        )
        data = dict(inputs=images(), data_samples=[training_sample()])
        model.train().train_step(data, wrapper)
        masking.apply()
    pruned, total = growth.count()
    assert pruned / total == pytest.approx(0.4, abs=0.01)
    # Removed points of the deformable attentions have another fill than 0.
    assert {region.fill for region in masking.regions} == {0, -1e4}
    plan = plan_from_zeros(model, groups)
    assert plan.keep == growth.plan().keep
    small = copy.deepcopy(model)
    apply_plan(small, plan)
    with torch.no_grad():
        one, other = (
            m.eval()(images(), [training_sample()], mode='tensor')
            for m in (model, small)
        )
    for name in HEADS:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-3, atol=1e-4
        )
