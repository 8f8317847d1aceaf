"""Where mmcv has compiled kernels, which PyTorch does not see into, as many
channels are found and as many multiply-adds counted as where it has none."""

import sys

import pytest
import torch
from mmcv.ops import (
    DeformConv2dPack,
    MultiScaleDeformableAttention,
    multi_scale_deform_attn,
    roi_align,
)
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from mmprune.compat.ops import TABLE
from mmprune.cost import count_macs
from mmprune.pruning import find_groups


@pytest.fixture
def compiled(monkeypatch):
    """Makes every kernel one that computes out of PyTorch's sight."""
    extension = sys.modules['mmcv._ext']

    def hidden(function):
        def kernel(*args, **kwargs):
            with _disable_current_modes():
                return function(*args, **kwargs)

        return kernel

    for name, function in TABLE.items():
        monkeypatch.setattr(extension, name, hidden(function))
    return extension


class Regions(nn.Module):
    """Reads two regions of a map, of which each neuron sees all positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 4, 5)

    def forward(self, x):
        boxes = torch.tensor([[0, 0, 0, 8, 8], [0, 2, 2, 6, 9.0]])
        return self.head(roi_align(self.conv(x), boxes, (2, 2)).flatten(1))


class Bent(nn.Sequential):
    """A deformable convolution between two others."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3),
            DeformConv2dPack(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )


class Attending(nn.Module):
    """Deformable attention to a map of 4 x 4."""

    def __init__(self):
        super().__init__()
        self.attend = MultiScaleDeformableAttention(
            16, num_heads=4, num_levels=1, num_points=2, batch_first=True
        )

    def forward(self, x):
        tokens = x[:, :1, :4, :4].flatten(2).transpose(1, 2).repeat(1, 1, 16)
        return self.attend(
            tokens,
            reference_points=torch.full((1, 16, 1, 2), 0.5),
            spatial_shapes=torch.tensor([[4, 4]]),
            level_start_index=torch.tensor([0]),
        )


@pytest.fixture(autouse=True)
def attend_as_on_cuda(monkeypatch):
    """On a CPU mmcv attends in Python, whatever is compiled."""

    def attend(value, shapes, places, weights):
        start = torch.tensor([0])
        function = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
        return function.apply(value, shapes, start, places, weights, 64)

    name = 'multi_scale_deformable_attn_pytorch'
    monkeypatch.setattr(multi_scale_deform_attn, name, attend)


def run(model):
    return model(torch.ones(1, 3, 12, 12))


@pytest.mark.parametrize('kind', [Regions, Bent, Attending])
def test_as_much_is_found_as_without_them(kind, request):
    torch.manual_seed(0)
    model = kind().eval()
    expected = find_groups(model, run), count_macs(model, run)
    assert any(not group.dense for group in expected[0])
    request.getfixturevalue('compiled')
    assert (find_groups(model, run), count_macs(model, run)) == expected


def test_they_are_called_again_afterwards(compiled):
    before = {name: getattr(compiled, name) for name in TABLE}
    find_groups(Regions().eval(), run)
    with pytest.raises(RuntimeError):
        find_groups(Bent().eval(), lambda model: model(torch.ones(1, 4, 9, 9)))
    assert {name: getattr(compiled, name) for name in TABLE} == before
