"""Losses that ask a running Runner how far it is, where none runs.

Three detectors of mmdet read it of mmengine's MessageHub: TOOD the epoch,
which chooses its assigner, BoxInst and the resizing of YOLOX's batches the
iteration. Each is its stock config, an eighth as wide.
"""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.logging import MessageHub

from mmprune.family import build_family

pytest.importorskip('mmdet')
from test_detector_family import CONFIGS, detector, stock  # noqa: E402

TOOD = 'tood/tood_r50_fpn_1x_coco.py'
BOXINST = 'boxinst/boxinst_r50_fpn_ms-90k_coco.py'
YOLOX = 'yolox/yolox_tiny_8xb8-300e_coco.py'


def thin(name: str) -> Config:
    """A stock config, an eighth as wide, with a backbone of 18 layers."""
    if name == YOLOX:
        cfg = Config.fromfile(CONFIGS / name)
        cfg.model.backbone.update(widen_factor=0.125, init_cfg=None)
        cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=16)
        cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
        return cfg
    cfg = stock(name)
    cfg.model.backbone.update(depth=18, base_channels=8)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32)
    if name == BOXINST:
        pytest.importorskip('skimage')
        cfg.model.mask_head.mask_feature_head.in_channels = 32
    return cfg


@pytest.fixture
def hub():
    """A hub that nobody has told anything, as in a fresh process."""
    name = Path(__file__).stem
    yield MessageHub.get_instance(name)
    del MessageHub._instance_dict[name]


@pytest.mark.parametrize('name', [TOOD, BOXINST, YOLOX])
def test_a_loss_is_that_of_the_first_iteration(hub, name):
    cfg = thin(name)
    model, family = detector(cfg), build_family(cfg)
    batch = family.small_batch(model, training=True)
    assert not hub.runtime_info
    loss = family.loss(model, batch)
    assert loss.isfinite() and loss.requires_grad
    assert hub.runtime_info == dict(epoch=0, iter=0, max_epochs=1, max_iters=1)


def test_groups_are_found_with_the_loss_of_the_first_epoch(hub):
    cfg = thin(TOOD)
    model = detector(cfg)
    groups = list(build_family(cfg).groups(model))
    assert sum(not group.dense for group in groups) > 10
    assert model.bbox_head.epoch == hub.get_info('epoch') == 0


def test_what_a_running_runner_has_said_stays(hub):
    """TOOD assigns by alignment from its fourth epoch on."""
    hub.update_info('epoch', 7)
    cfg = thin(TOOD)
    model, family = detector(cfg), build_family(cfg)
    assert family.loss(model, family.small_batch(model)).isfinite()
    assert model.bbox_head.epoch == hub.get_info('epoch') == 7
    assert hub.get_info('iter') == 0
