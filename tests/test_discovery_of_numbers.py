"""Numbers that modules hold follow the channels that they count."""

from contextlib import suppress

import torch
import torch.nn.functional as F  # noqa: N812
from tiny_nets import PICTURE, Net, conv, found, open_group
from torch import nn

from mmprune.discovery import discovered_groups


class Extractor(nn.Module):
    """Writes regions into a tensor whose width it holds, as mmdet's do."""

    def __init__(self, width):
        super().__init__()
        self.out_channels = width

    def forward(self, x):
        regions = x.new_zeros(3, self.out_channels, 2, 2)
        regions[torch.tensor([1, 2])] = x[:, :, :2, :2]
        return regions


class Pooling(nn.Module):
    """Has layers of its own and checks its width, as mmcv's pooling does."""

    def __init__(self, width):
        super().__init__()
        self.output_channels = width
        self.one = conv(width, width)

    def forward(self, x):
        assert x.shape[1] == self.output_channels
        return F.max_pool2d(x, 2) + self.one(x).mean()


def test_a_width_that_a_module_checks_follows_the_channels():
    model = Net(
        lambda net, x: net.two(net.pool(net.one(x))),
        one=conv(3, 6),
        pool=Pooling(6),
        two=conv(6, 5),
    )
    assert found(model)['one'] == 6


def test_a_width_that_a_module_holds_follows_the_channels():
    model = Net(
        lambda net, x: net.two(net.take(net.one(x))),
        one=conv(3, 6),
        take=Extractor(6),
        two=conv(6, 5),
    )
    assert found(model) == {'one': 6}
    group = open_group(model)
    assert group.attrs == {'take.out_channels': 1}


class Refining(Extractor):
    """Has a layer of its own beside the tensor it makes, as GRoIE's."""

    def __init__(self, width):
        super().__init__(width)
        self.one = conv(width, width)

    def forward(self, x):
        return super().forward(self.one(x))


def test_a_width_of_a_tensor_that_a_module_makes_follows_the_channels():
    model = Net(
        lambda net, x: net.two(net.take(net.one(x))),
        one=conv(3, 6),
        take=Refining(6),
        two=conv(6, 5),
    )
    assert found(model) == {'one': 6, 'take.one': 6}
    groups = discovered_groups(model, lambda net: net(PICTURE))
    attrs = {g.name: g.attrs for g in groups if g.attrs}
    assert attrs == {'take.one': {'take.out_channels': 1}}


class Scales(nn.Module):
    """Splits its channels by the width that it holds, as Res2Net does."""

    def __init__(self, width, parts):
        super().__init__()
        self.width, self.parts = width, parts
        self.one = conv(3, width * parts)
        self.inner = conv(width, width)

    def forward(self, x):
        first, *others = torch.split(self.one(x), self.width, 1)
        for other in others:
            first = self.inner(first) + other
        return first


def test_a_size_by_which_channels_are_split_follows_them():
    model = Net(
        lambda net, x: net.two(net.scales(x)),
        scales=Scales(4, parts=3),
        two=conv(4, 5),
    )
    assert found(model) == {'scales.one': 4}
    assert open_group(model).attrs == {'scales.width': 1}


class Relay(nn.Module):
    """Makes a map of what a linear layer gives, as SCNet does."""

    def __init__(self, width, side, same=False):
        super().__init__()
        self.width, self.side = width, side
        self.input_width = width if same else width + 1
        self.fc = nn.Linear(3, width * side**2)

    def forward(self, x):
        x = self.fc(x.mean((2, 3)))
        return x.reshape(len(x), self.width, self.side, self.side)


def test_a_number_in_the_shape_of_a_view_follows_the_channels():
    model = Net(
        lambda net, x: net.two(net.relay(x)),
        relay=Relay(6, side=5),
        two=conv(6, 5),
    )
    assert found(model) == {'relay.fc': 6}
    assert open_group(model).attrs == {'relay.width': 1}


class Caller(nn.Module):
    """Names its arguments, and goes on where a part of it fails."""

    def __init__(self, width):
        super().__init__()
        self.width, self.broken = width, nn.Linear(1, 1)

    def forward(self, x):
        with suppress(RuntimeError):
            self.broken(x)
        x = torch.reshape(input=x, shape=(len(x), self.width, -1, 1))
        return torch.cat(torch.split(tensor=x, split_size_or_sections=3), 0)


def test_arguments_may_be_named_and_parts_may_fail():
    model = Net(
        lambda net, x: net.two(net.call(net.one(x))),
        one=conv(3, 6),
        call=Caller(6),
        two=conv(6, 5),
    )
    assert found(model) == {'one': 6}
    assert open_group(model).attrs == {'call.width': 1}


def test_of_two_numbers_of_one_size_none_is_taken():
    model = Net(
        lambda net, x: net.two(net.relay(x)),
        relay=Relay(6, side=5, same=True),
        two=conv(6, 5),
    )
    assert open_group(model).attrs == {}


class Twins(nn.Module):
    """Views two layers by one number."""

    def __init__(self):
        super().__init__()
        self.width = 6
        self.one, self.two = nn.Linear(3, 24), nn.Linear(3, 24)
        self.first, self.second = conv(6, 5), conv(6, 5)

    def forward(self, x):
        x = x.mean((2, 3))
        one = self.one(x).reshape(-1, self.width, 2, 2)
        two = self.two(x).reshape(-1, self.width, 2, 2)
        return self.first(one) + self.second(two).relu()


def test_what_is_viewed_by_one_number_goes_together():
    model = Net(lambda net, x: net.twins(x), twins=Twins())
    assert found(model) == {'twins.one': 6}
    group = open_group(model)
    assert group.attrs == {'twins.width': 1}
    assert {'twins.one.weight', 'twins.two.weight'} <= {
        part.tensor for part in group.producers
    }


class Doubled(nn.Module):
    """Holds a number that counts each channel twice."""

    def __init__(self, width):
        super().__init__()
        self.both = 2 * width

    def forward(self, x):
        twice = torch.cat([x, x.relu()], 1)
        return twice.view(len(x), self.both, -1, 2).movedim(3, 2)


def test_a_number_may_count_a_channel_more_than_once():
    model = Net(
        lambda net, x: net.two(net.doubled(net.one(x))),
        one=conv(3, 6),
        doubled=Doubled(6),
        two=conv(12, 5),
    )
    assert found(model) == {'one': 6}
    assert open_group(model).attrs == {'doubled.both': 2}


class LearntQueries(nn.Module):
    """Attention by a weight of each head, as mmcv's generalized one."""

    def __init__(self, heads, width):
        super().__init__()
        self.num_heads, self.width = heads, width
        self.query = nn.Parameter(torch.randn(heads * width))
        self.key = nn.Conv2d(3, heads * width, 1)
        self.value = nn.Conv2d(3, heads * width, 1)

    def forward(self, x):
        query = self.query.view(1, self.num_heads, 1, self.width)
        key, value = (
            layer(x).view(len(x), self.num_heads, self.width, -1)
            for layer in (self.key, self.value)
        )
        weights = (query.repeat(len(x), 1, 1, 1) @ key).softmax(-1)
        return (weights @ value.transpose(-1, -2)).flatten(1)


def test_a_query_that_is_a_weight_goes_with_its_head():
    model = Net(
        lambda net, x: net.last(net.attend(x)),
        attend=LearntQueries(4, 6),
        last=nn.Linear(24, 5),
    )
    assert found(model) == {'attend.key': 4}
    group = open_group(model)
    assert group.granularity == 'head'
    assert group.attrs == {'attend.num_heads': 1}
    assert 'attend.query' in {part.tensor for part in group.slices}
