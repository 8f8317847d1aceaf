"""Served deformable convolutions and attention, through mmcv's wrappers."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from ops_inputs import cuda, devices
from torch.autograd import gradcheck

# --------------------------------------------------- deformable convolutions


def _deform_inputs(groups: int, deform_groups: int, device: str) -> list:
    shapes = dict(
        input=(2, 4, 7, 8),
        offset=(2, deform_groups * 2 * 6, 4, 4),
        mask=(2, deform_groups * 6, 4, 4),
        weight=(6, 4 // groups, 3, 2),
        bias=(6,),
    )
    return [
        torch.randn(s, dtype=torch.double, device=device, requires_grad=True)
        for s in shapes.values()
    ]


@devices
@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 2)])
def test_deform_conv_and_its_gradients(device, groups, deform_groups):
    x, offset, _, weight, _ = _deform_inputs(groups, deform_groups, device)
    settings = ((2, 2), (1, 1), (1, 2))

    def ours(x, offset, weight):
        return ops.deform_conv2d(
            x, offset, weight, *settings, groups, deform_groups
        )

    theirs = torchvision.ops.deform_conv2d(x, offset, weight, None, *settings)
    torch.testing.assert_close(ours(x, offset, weight), theirs)
    assert gradcheck(ours, (x, offset, weight), fast_mode=True)


@devices
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 2)])
def test_modulated_deform_conv_and_its_gradients(
    device, groups, deform_groups, with_bias
):
    inputs = _deform_inputs(groups, deform_groups, device)
    x, offset, mask, weight, bias = inputs
    settings = ((2, 2), (1, 1), (1, 2))
    used = inputs if with_bias else inputs[:4]

    def ours(x, offset, mask, weight, bias=None):
        return ops.modulated_deform_conv2d(
            x, offset, mask, weight, bias, *settings, groups, deform_groups
        )

    theirs = torchvision.ops.deform_conv2d(
        x, offset, weight, bias if with_bias else None, *settings, mask
    )
    torch.testing.assert_close(ours(*used), theirs)
    assert gradcheck(ours, used, fast_mode=True)


def test_deform_conv_without_offsets_is_a_convolution():
    conv = ops.DeformConv2dPack(4, 6, 3, padding=1, stride=2)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, conv.weight, stride=2, padding=1)
    )
    conv = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    # Its mask starts at sigmoid(0) = 0.5.
    torch.testing.assert_close(
        conv(x),
        F.conv2d(x, conv.weight, padding=1) / 2 + conv.bias[:, None, None],
    )


# ----------------------------------------------------- deformable attention


def _attention_inputs(device: str) -> tuple:
    shapes = torch.tensor([[6, 4], [3, 2]], device=device)
    starts = torch.tensor([0, 24], device=device)
    value = torch.rand(2, 30, 2, 4, device=device).double()
    # Some points lie outside of the map.
    location = torch.rand(2, 5, 2, 2, 3, 2, device=device).double() * 1.4 - 0.2
    weight = torch.rand(2, 5, 2, 2, 3, device=device).double()
    for tensor in (value, location, weight):
        tensor.requires_grad_()
    return value, shapes, starts, location, weight


@devices
def test_deformable_attention_is_mmcv_s_reference(device):
    value, shapes, starts, location, weight = _attention_inputs(device)

    def ours(value, location, weight):
        return MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, location, weight, 64
        )

    theirs = multi_scale_deformable_attn_pytorch(
        value, shapes, location, weight
    )
    torch.testing.assert_close(ours(value, location, weight), theirs)
    assert gradcheck(ours, (value, location, weight), fast_mode=True)


def test_deformable_attention_reads_one_pixel():
    # One head and point at the centre of pixel (row 1, column 0) of 2 x 2.
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    location = torch.tensor([0.25, 0.75]).view(1, 1, 1, 1, 1, 2)
    out = MultiScaleDeformableAttnFunction.apply(
        value,
        torch.tensor([[2, 2]]),
        torch.tensor([0]),
        location,
        torch.full((1, 1, 1, 1, 1), 0.5),
        1,
    )
    assert out.flatten().tolist() == [1.5]


@cuda
def test_deformable_attention_module_runs_on_cuda_under_autocast():
    module = ops.MultiScaleDeformableAttention(
        32, 4, 1, 2, dropout=0.0, batch_first=True
    )
    query = torch.randn(1, 12, 32)
    inputs = dict(
        reference_points=torch.rand(1, 12, 1, 2),
        spatial_shapes=torch.tensor([[3, 4]]),
        level_start_index=torch.tensor([0]),
    )
    expected = module(query, **inputs)
    inputs = {k: v.cuda() for k, v in inputs.items()}
    with torch.autocast('cuda', torch.float16):
        found = module.cuda()(query.cuda(), **inputs)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)
