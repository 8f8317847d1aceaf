"""One training step of VAD has the gradients of the original."""

import numpy as np
import pytest
import torch
from golden import golden_frames, golden_vad
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import BaseDataElement, InstanceData

from projects.VAD.data.box_convention import to_new

RELATIVE = 3e-3


def training_sample(recipe_frames, golden):
    """The queue of two frames as one sample with its ground truth."""

    def tensor(name):
        return torch.from_numpy(golden[name])

    (first, (history,)), (last, (sample,)) = recipe_frames
    earlier, later = history.metainfo, sample.metainfo
    can_bus = np.array(later['can_bus'])
    for part in (slice(0, 3), 17):
        can_bus[part] -= earlier['can_bus'][part]
    start = np.array(earlier['can_bus'])
    start[:3] = start[17] = 0
    sample.set_metainfo(
        dict(can_bus=can_bus, history=[dict(earlier, can_bus=start)])
    )
    boxes = LiDARInstance3DBoxes(
        to_new(tensor('gt_boxes')), box_dim=9, origin=(0.5, 0.5, 0.5)
    )
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=boxes,
        labels_3d=tensor('gt_labels'),
        attr_labels=tensor('gt_attr'),
    )
    sample.gt_map = InstanceData(
        labels=tensor('map_labels'),
        bboxes=tensor('map_gt_bbox'),
        pts=tensor('map_gt_fixed_pts'),
        shift_pts=tensor('shift_pts_v2'),
    )
    sample.gt_ego = BaseDataElement(
        fut_trajs=tensor('ego_fut_trajs')[0],
        fut_masks=tensor('ego_fut_masks')[0, 0],
        fut_cmd=tensor('ego_fut_cmd')[0, 0],
    )
    return dict(img=torch.stack((first['img'], last['img']), 1)), [sample]


def without_noise(model):
    """Training mode with dropout and grid mask switched off."""
    model.train()
    model.grid_mask.prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model


@pytest.fixture(scope='module')
def step(shared):
    """(golden arrays, model after backward, losses) of the first set."""
    folder = shared / 'vad' / 'golden'
    for path in sorted(folder.glob('*_loss.npz')):
        golden = np.load(path)
        if 'grad_names' in golden.files:
            break
    else:
        pytest.skip(f'no *_loss.npz with gradients in {folder}')
    size = int(golden['height']), int(golden['width'])
    tag = str(golden['tag'])
    model = without_noise(golden_vad(shared, str(golden['model']), tag))
    frames = golden_frames(shared, tag, size)
    inputs, samples = training_sample(frames, golden)
    losses = model(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    return golden, model, losses


def test_the_whole_model_has_the_losses_of_the_original(step):
    golden, _, losses = step
    for name, value in zip(
        golden['loss_names'], golden['loss_values'], strict=True
    ):
        assert losses[name].item() == pytest.approx(
            value, rel=1e-4, abs=1e-6
        ), name


def test_every_gradient_has_the_norm_of_the_original(step):
    golden, model, _ = step
    norms = {
        name: parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert set(norms) == set(golden['grad_names'])
    largest = golden['grad_norm'].max()
    for name, norm in zip(
        golden['grad_names'], golden['grad_norm'], strict=True
    ):
        assert norms[name] == pytest.approx(
            norm, rel=RELATIVE, abs=1e-7 * largest
        ), name
    total = np.sqrt(sum(norm**2 for norm in norms.values()))
    assert total == pytest.approx(
        float(golden['grad_norm_total']), rel=RELATIVE
    )


def test_every_gradient_sums_to_that_of_the_original(step):
    """The norm does not see a sign; the sum does."""
    golden, model, _ = step
    parameters = dict(model.named_parameters())
    for name, norm, total in zip(
        golden['grad_names'],
        golden['grad_norm'],
        golden['grad_sum'],
        strict=True,
    ):
        grad = parameters[name].grad.double()
        # A few numbers do not average out: on one processor the sum of a
        # bias of two differs by 1e-3, within what its norm may.
        relative = 3e-4 if grad.numel() > 8 else RELATIVE
        room = relative * norm * np.sqrt(grad.numel())
        assert abs(grad.sum().item() - total) <= room + 1e-4, name
