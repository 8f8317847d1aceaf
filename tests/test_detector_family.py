"""Detectors of mmdet from their stock configs, with no line about pruning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmprune.checkpoints.loading import load_model
from mmprune.checkpoints.writing import save_pruned
from mmprune.families.detector import (
    DetectorFamily,
    _in_training,
    drawn,
)
from mmprune.families.drawn_picture import drawn_batch, trained_size
from mmprune.family import build_family, family_kind
from mmprune.masks import mask_plan
from mmprune.pruners import TOLERANCE, masked_difference
from mmprune.run.options import PruningOptions
from mmprune.run.workflow import prune

mmdet = pytest.importorskip('mmdet')

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


def stock(name: str) -> Config:
    """A config of mmdet's wheel, on small pictures and without a download."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.init_cfg = None
    for step in cfg.test_dataloader.dataset.pipeline:
        if 'scale' in step:
            step.scale = (96, 64)
    return cfg


def detector(cfg: Config) -> nn.Module:
    """The model, with norms that do something and scores that differ."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity='linear')
    model.eval()
    return model


@pytest.fixture(scope='module')
def retinanet():
    cfg = stock('retinanet/retinanet_r18_fpn_1x_coco.py')
    return cfg, detector(cfg)


@pytest.fixture(scope='module')
def pruned(retinanet):
    cfg, model = retinanet
    options = PruningOptions(
        sparsity=0.3, mode='structured', latency_runs=1, prune_frozen=True
    )
    return prune(cfg, model, options)


def test_a_stock_config_is_pruned_without_a_word_about_pruning(
    retinanet, pruned
):
    cfg, model = retinanet
    small, plan = pruned.models['structured'], pruned.plans['structured']
    before, after = (
        sum(p.numel() for p in m.parameters()) for m in (model, small)
    )
    assert after < 0.75 * before
    # Backbone, neck and both towers of the shared head take part.
    names = {group.name.split('.')[0] for group in plan.groups}
    assert names == {'backbone', 'neck', 'bbox_head'}
    forward = build_family(cfg).forward
    assert masked_difference(model, plan, forward) < TOLERANCE


@pytest.mark.parametrize('scope', ['mmdet', 'mmdet3d'])
def test_a_stock_config_of_either_package_is_a_detectors(scope):
    cfg = Config(dict(default_scope=scope))
    assert family_kind(cfg) is DetectorFamily
    assert isinstance(build_family(cfg), DetectorFamily)


def test_masks_change_what_is_predicted(retinanet, pruned):
    """Otherwise the comparison above could not fail."""
    import copy

    cfg, model = retinanet
    masked = copy.deepcopy(model)
    mask_plan(masked, pruned.plans['structured'])
    forward = build_family(cfg).forward
    dense, thin = forward(model)[-1], forward(masked)[-1]
    assert (dense - thin).abs().max() > 0.01 * dense.abs().max()


def test_it_reloads_and_trains_by_the_detectors_own_loss(
    retinanet, pruned, tmp_path
):
    cfg, _ = retinanet
    small, plan = pruned.models['structured'], pruned.plans['structured']
    path = tmp_path / 'pruned.pth'
    save_pruned(small, plan, path)
    again = load_model(cfg, path)
    family = build_family(cfg)
    for one, other in zip(
        family.forward(small), family.forward(again), strict=True
    ):
        assert torch.equal(one, other)
    before = {n: p.clone() for n, p in again.named_parameters()}
    again.train()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.01)
    family.loss(again, drawn_batch(cfg, 128, 128)).backward()
    optimizer.step()
    still = [
        name
        for name, p in again.named_parameters()
        if p.requires_grad and torch.equal(p, before[name])
    ]
    assert still == []


def test_a_two_stage_detector_is_followed_through_its_regions():
    cfg = stock('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.roi_head.bbox_head.fc_out_channels = 32
    model = detector(cfg)
    family = build_family(cfg)
    groups = {g.name: g for g in family.groups(model) if not g.dense}
    neck = [g for name, g in groups.items() if name.startswith('neck')]
    # The pyramid's channels are 7 x 7 blocks of the first linear layer.
    assert any(
        part.tensor == 'roi_head.bbox_head.shared_fcs.0.weight'
        and part.block == 49
        for group in neck
        for part in group.consumers
    )
    assert groups['roi_head.bbox_head.shared_fcs.0'].size == 32


def test_the_drawn_sample_holds_what_training_reads():
    plain = stock('retinanet/retinanet_r18_fpn_1x_coco.py')
    masks = stock('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    (sample,) = drawn_batch(plain, 64, 96)['data_samples']
    assert 'masks' not in sample.gt_instances
    (sample,) = drawn_batch(masks, 64, 96)['data_samples']
    assert sample.gt_instances.masks.masks.shape == (3, 64, 96)
    assert sample.gt_instances.bboxes.max() <= 96


def test_costs_are_counted_at_the_size_of_the_config():
    cfg = Config.fromfile(CONFIGS / 'yolox/yolox_tiny_8xb8-300e_coco.py')
    assert trained_size(cfg) == (416, 416)
    assert trained_size(stock('retinanet/retinanet_r18_fpn_1x_coco.py')) == (
        64,
        96,
    )


def test_a_criterion_that_needs_data_says_that_there_is_none(retinanet):
    cfg, _ = retinanet
    with pytest.raises(ValueError, match='training data is not at hand'):
        build_family(cfg).batches()


def test_a_scene_holds_what_a_detector_of_mmdet3d_reads():
    mmdet3d = pytest.importorskip('mmdet3d')
    configs = Path(mmdet3d.__file__).parent / '.mim' / 'configs'
    pillars = Config.fromfile(
        configs / 'pointpillars'
        '/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car.py'
    )
    batch = drawn(pillars, 64, 96)
    (points,), (sample,) = batch['inputs']['points'], batch['data_samples']
    boxes = sample.gt_instances_3d.bboxes_3d
    area = torch.tensor(
        pillars.model.data_preprocessor.voxel_layer['point_cloud_range']
    )
    assert points.shape[1] == 4
    assert (points[:, :3] >= area[:3]).all()
    assert (points[:, :3] <= area[3:]).all()
    inside = boxes.points_in_boxes_part(points[:, :3])
    assert set(inside.tolist()) == {-1, 0, 1, 2}
    camera = Config.fromfile(
        configs / 'fcos3d'
        '/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py'
    )
    batch = drawn(camera, 64, 96)
    (sample,) = batch['data_samples']
    assert 'points' not in batch['inputs']
    assert batch['inputs']['img'][0].shape == (3, 64, 96)
    assert sample.gt_instances_3d.bboxes_3d.tensor.shape == (3, 9)
    assert (sample.gt_instances_3d.depths > 0).all()


@pytest.mark.parametrize(
    ('name', 'floor'),
    [  # of 18 classes, and of 20
        ('votenet/votenet_8xb8_scannet-3d.py', 18),
        ('pointnet2/pointnet2_ssg_2xb16-cosine-200e_scannet-seg.py', 19),
    ],
)
def test_the_floor_is_no_object_and_of_a_class(name, floor):
    mmdet3d = pytest.importorskip('mmdet3d')
    configs = Path(mmdet3d.__file__).parent / '.mim' / 'configs'
    (sample,) = drawn(Config.fromfile(configs / name), 64, 96)['data_samples']
    of_point = sample.gt_pts_seg.pts_semantic_mask
    assert of_point.unique().tolist() == [0, 1, 2, floor]


def test_a_room_is_tested_as_wide_as_a_block_without_its_coordinates():
    """A segmentor adds to points where in the room they are, 3 numbers."""
    mmdet3d = pytest.importorskip('mmdet3d')
    configs = Path(mmdet3d.__file__).parent / '.mim' / 'configs'
    rooms = Config.fromfile(
        configs / 'dgcnn/dgcnn_4xb32-cosine-100e_s3dis-seg_test-area5.py'
    )
    tested, trained = (
        drawn(rooms, 64, 96, training)['inputs']['points'][0]
        for training in (False, True)
    )
    assert tested.shape[1] == 6  # x, y, z and colours
    assert trained.shape[1] == rooms.model.backbone.in_channels == 9
    block = rooms.model.test_cfg.block_size
    assert (tested[:, :2].amax(0) - tested[:, :2].amin(0) <= block).all()


def test_a_loss_is_that_of_training_while_norms_keep_their_statistics():
    """DETR's descendants compute half of their losses in training only."""
    from mmengine.model import BaseModel

    class Detector(BaseModel):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, inputs, mode):
            extra = 1.0 if self.training else 0.0
            return dict(loss=self.norm(inputs).sum() + extra)

    model = Detector().eval()
    family = build_family(stock('retinanet/retinanet_r18_fpn_1x_coco.py'))
    x = torch.randn(4, 2)
    loss = family.loss(model, dict(inputs=x))
    torch.testing.assert_close(loss, model.norm(x).sum() + 1)
    assert not model.training
    assert model.norm.num_batches_tracked == 0


def test_what_a_model_draws_is_the_same_in_every_run():
    """A segmentor draws the points of a block that it looks at."""
    from mmengine.model import BaseModel

    class Segmentor(BaseModel):
        def forward(self, inputs, data_samples, mode):
            return torch.rand(3), torch.from_numpy(np.random.rand(3))

    family = build_family(stock('retinanet/retinanet_r18_fpn_1x_coco.py'))
    torch.manual_seed(1)
    one, other = (family.forward(Segmentor()) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


class Branches(nn.Module):
    """A layer of a detector's own that depends on the mode (TridentNet)."""


class Head(nn.Module):
    """Puts out more in training, and hangs a module into another there."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout()
        self.mix = nn.MultiheadAttention(4, 2, dropout=0.5)
        self.other = nn.Sequential(nn.ReLU())
        self.branches = Branches()


def test_heads_are_in_training_for_the_loss_and_layers_are_not():
    model = nn.ModuleDict(dict(head=Head())).eval()
    head = model['head']
    with _in_training(model):
        assert head.training and head.branches.training
        layers = (head.norm, head.drop, head.mix, head.other)
        assert not any(layer.training for layer in layers)
        head.hung = head.norm
    assert not head.training
    assert not hasattr(head, 'hung')


def test_a_head_that_predicts_less_than_it_trains_is_pruned():
    """RepPoints puts out two results in evaluation and three in training."""
    cfg = stock('reppoints/reppoints-moment_r50_fpn_1x_coco.py')
    cfg.model.backbone.update(depth=18)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    model = detector(cfg)
    groups = list(build_family(cfg).groups(model))
    assert sum(not group.dense for group in groups) > 10


def test_ssd_of_mmdet_3_3_predicts():
    cfg = stock('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py')
    model = detector(cfg)
    batch = drawn_batch(cfg, 64, 64)
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        (found,) = model(**data, mode='predict')
    assert len(found.pred_instances) > 0


def test_what_a_nested_step_loads_is_drawn():
    cfg = stock('retinanet/retinanet_r18_fpn_1x_coco.py')
    load = dict(type='LoadTrackAnnotations', with_mask=True)
    choice = dict(type='RandomChoice', transforms=[[load], []])
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='TransformBroadcaster', transforms=[choice])
    ]
    (sample,) = drawn_batch(cfg, 32, 48)['data_samples']
    assert len(sample.gt_instances.masks) == 3
