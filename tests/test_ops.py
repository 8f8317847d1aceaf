"""The served ops: focal losses, and which names there are."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv import ops
from ops_inputs import devices
from torch.autograd import gradcheck

from mmprune.compat import ops as served

# ------------------------------------------------------------------ focal loss


@devices
def test_sigmoid_focal_loss_is_torchvision_s(device):
    logits = torch.randn(6, 4, device=device).double() * 3
    logits.requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4], device=device)
    hot = F.one_hot(target, 5)[:, :4].double()
    expected = torchvision.ops.sigmoid_focal_loss(
        logits, hot, alpha=0.3, gamma=1.5
    )

    def ours(x, reduction='none'):
        return ops.sigmoid_focal_loss(x, target, 1.5, 0.3, None, reduction)

    torch.testing.assert_close(ours(logits), expected)
    torch.testing.assert_close(ours(logits, 'mean'), expected.sum() / 6)
    torch.testing.assert_close(ours(logits, 'sum'), expected.sum())
    for reduction in ('none', 'mean', 'sum'):
        assert gradcheck(lambda x, r=reduction: ours(x, r), logits)


def test_sigmoid_focal_loss_weighs_classes_and_stays_finite():
    logits = torch.tensor([[200.0, -200], [0, 0]], requires_grad=True)
    target = torch.tensor([1, 0])
    weight = torch.tensor([3.0, 2.0])
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    # Row 1: weight 3, p 0.5: 0.25 * 0.25 * ln 2 and 0.75 * 0.25 * ln 2.
    expected = torch.tensor([0.0625, 0.1875]) * math.log(2) * 3
    torch.testing.assert_close(loss[1], expected)
    # log(0) counts as the log of the smallest float32, -87.34.
    torch.testing.assert_close(
        loss[0], torch.tensor([2 * 0.75 * 87.3365, 2 * 0.25 * 87.3365])
    )
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_softmax_focal_loss_is_its_formula():
    logits = torch.randn(5, 3).double().requires_grad_()
    target = torch.tensor([0, 1, 2, 2, 0])
    weight = torch.tensor([1.0, 2.0, 0.5]).double()
    p = logits.softmax(1)[range(5), target]
    expected = -0.25 * (1 - p) ** 2 * p.log() * weight[target]

    def ours(x, reduction='sum'):
        return ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, reduction)

    torch.testing.assert_close(ours(logits, 'none'), expected)
    torch.testing.assert_close(ours(logits, 'mean'), expected.mean())
    assert gradcheck(ours, logits)


# ------------------------------------------------------------------- the table


def test_unserved_op_raises_with_its_name():
    with pytest.raises(NotImplementedError, match="'min_area_polygons'"):
        ops.min_area_polygons(torch.rand(1, 18))


def test_every_served_name_is_one_that_mmcv_asks_for():
    from pathlib import Path

    source = '\n'.join(
        p.read_text() for p in Path(ops.__file__).parent.glob('*.py')
    )
    assert [n for n in served.TABLE if f"'{n}'" not in source] == []
