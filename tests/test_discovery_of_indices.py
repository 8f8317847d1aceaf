"""What goes together where a tensor is read or written by an index."""

import pytest
import torch
from tiny_nets import PICTURE, Net, conv, found, lively, reasons
from torch import nn

from mmprune.discovery import discovered_groups


def test_what_writes_into_parts_of_a_tensor_is_followed():
    def run(net, x):
        x = net.one(x)
        out = x.new_zeros(2, 8, 8, 8)
        out[:, :4] = x
        out[:, 4:] = x * 2
        return net.last(out)

    groups = discovered_groups(
        lively(Net(run, one=conv(3, 4), last=conv(8, 2))),
        lambda net: net(PICTURE),
    )
    # Each unit is written twice, so the last layer reads it twice.
    (group,) = [g for g in groups if g.name == 'one']
    assert [(s.tensor, s.offset) for s in group.consumers] == [
        ('last.weight', 0),
        ('last.weight', 4),
    ]


@pytest.fixture
def one_of_four():
    return Net(
        lambda net, x: net.last(net.one(x)) + net.one(x)[:, :1],
        one=conv(3, 4),
        last=conv(4, 2),
    )


def test_a_channel_that_is_read_by_its_position_stays_alone(one_of_four):
    assert list(found(one_of_four).values()) == [3]
    assert 'single position' in reasons(one_of_four)['one']


@pytest.mark.parametrize(
    ('run', 'why'),
    [
        (lambda net, x: net.last(net.one(x).softmax(1)), 'softmax'),
        (lambda net, x: net.last(net.one(x)[:, [1, 0, 2, 3]]), 'index'),
        (
            lambda net, x: net.last(net.one(x).cumsum(1)),
            'cumsum over the channels',
        ),
        (
            lambda net, x: net.last(torch.fft.fft(net.one(x)).real),
            'no rule for the operation',
        ),
    ],
)
def test_what_depends_on_all_channels_or_one_holds_them(run, why):
    model = Net(run, one=conv(3, 4), last=conv(4, 2))
    assert found(model) == {}
    assert why in reasons(model)['one']


def test_rows_written_by_an_index_keep_their_channels():
    def run(net, x):
        x = net.one(x).mean((2, 3))
        out = x.new_zeros(5, x.shape[1])
        out[torch.tensor([0, 3])] = x
        return net.last(out)

    model = Net(run, one=conv(3, 6), last=nn.Linear(6, 2))
    assert found(model) == {'one': 6}


def on_a_canvas(net, x):
    """Features of some pixels on an empty map, as pillars are scattered."""
    places = torch.arange(0, 64, 3)
    pillars = net.one(x)[0].flatten(1).t()[places]
    canvas = torch.zeros(pillars.shape[1], 64)
    canvas[:, places] = pillars.t()
    return net.two(canvas.view(1, -1, 8, 8))


def test_columns_written_by_an_index_keep_their_channels():
    model = Net(on_a_canvas, one=conv(3, 6), two=conv(6, 5))
    assert found(model) == {'one': 6}


def test_an_index_between_two_dimensions_is_followed_or_held():
    """Of what is written at an index in front of and behind the channels."""

    def run(net, x):
        y = net.one(x)
        canvas = torch.zeros(9, y.shape[1], 64)
        rows = torch.tensor([1, 5])
        canvas[rows, :, rows] = y.flatten(2).mean(2)
        return net.two(canvas.unflatten(2, (8, 8)))

    model = Net(run, one=conv(3, 6), two=conv(6, 5))
    held = reasons(model)
    assert held['one'] == 'positions are picked by an index'


@pytest.mark.parametrize('kind', ['amax', 'mean', 'sum'])
def test_what_is_scattered_into_voxels_keeps_its_channels(kind):
    def run(net, x):
        points = net.one(x)[0].flatten(1).t()
        voxel = (torch.arange(64) % 7)[:, None].expand_as(points)
        voxels = torch.zeros(7, points.shape[1])
        voxels = voxels.scatter_reduce(
            0, voxel, points, kind, include_self=False
        )
        return net.fc(voxels)

    model = Net(run, one=conv(3, 6), fc=nn.Linear(6, 5))
    assert found(model) == {'one': 6}
