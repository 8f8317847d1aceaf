"""How the BEV is turned and shifted, and boxes are written, by hand."""

import math

import pytest
import torch
from tiny_vad import CLASSES

from projects.VAD.data.box_convention import to_new, to_old
from projects.VAD.model.coders import VADBoxCoder
from projects.VAD.model.transformer import bev_shift, rotate_bev


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
