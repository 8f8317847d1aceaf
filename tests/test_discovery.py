"""What goes together in a model, found by running it once.

Every model here is checked in the same way: the groups found hold (masked
equals pruned), and the sizes of the open ones are those worked out by hand.
"""

from enum import Enum

import pytest
import torch
import torch.nn.functional as F
from tiny_nets import PICTURE, Net, conv, found, lively, open_group, reasons
from torch import nn

from mmprune.discovery import discovered_groups
from mmprune.discovery.labels import tensors_in
from mmprune.groups import PruneGroup, Slice
from mmprune.plan import PruningPlan


def test_a_chain_of_layers():
    model = Net(
        lambda net, x: net.fc(
            net.two(F.relu(net.norm(net.one(x)))).flatten(1)
        ),
        one=conv(3, 8),
        norm=nn.BatchNorm2d(8),
        two=conv(8, 4),
        fc=nn.Linear(4 * 64, 5),
    )
    assert found(model) == {'one': 8, 'two': 4}
    assert reasons(model) == {'fc': 'an output of the model'}


def test_a_residual_ties_its_two_sides():
    model = Net(
        lambda net, x: net.last(net.stem(x) + net.branch(net.stem(x))),
        stem=conv(3, 8),
        branch=conv(8, 8),
        last=conv(8, 2),
    )
    assert found(model) == {'stem': 8}


def test_a_concatenation_keeps_its_parts_apart():
    model = Net(
        lambda net, x: net.last(torch.cat([net.one(x), net.two(x)], 1)),
        one=conv(3, 4),
        two=conv(3, 6),
        last=conv(10, 2),
    )
    assert found(model) == {'one': 4, 'two': 6}


def test_equal_parts_of_a_chunk_stay_equal():
    def run(net, x):
        left, right = net.one(x).chunk(2, dim=1)
        return net.last(left * right.sigmoid())

    assert found(Net(run, one=conv(3, 8), last=conv(4, 2))) == {'one': 4}


def test_a_channel_shuffle_has_positions_of_its_own():
    def run(net, x):
        x = torch.cat([net.one(x), net.two(x)], 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return net.last(x)

    model = Net(run, one=conv(3, 4), two=conv(3, 4), last=conv(8, 2))
    # Both halves have to lose as much, or the shuffle pairs other channels.
    assert found(model) == {'one': 4}


def test_a_grouped_convolution_loses_whole_groups():
    model = Net(
        lambda net, x: net.last(net.grouped(net.one(x))),
        one=conv(3, 16),
        grouped=conv(16, 24, groups=4),
        last=conv(24, 2),
    )
    assert found(model) == {'one': 4}
    group = open_group(model)
    assert group.attrs == {'grouped.groups': 1}


def test_a_depthwise_convolution_passes_its_channels_on():
    model = Net(
        lambda net, x: net.last(net.depthwise(net.one(x))),
        one=conv(3, 6),
        depthwise=conv(6, 6, groups=6),
        last=conv(6, 2),
    )
    assert found(model) == {'one': 6}


def test_group_norm_loses_whole_norm_groups():
    model = Net(
        lambda net, x: net.last(net.norm(net.one(x)).relu()),
        one=conv(3, 16),
        norm=nn.GroupNorm(4, 16),
        last=conv(16, 2),
    )
    assert found(model) == {'one': 4}


def test_layer_norm_holds_its_channels():
    model = Net(
        lambda net, x: net.two(net.norm(net.one(x))),
        one=nn.Linear(4, 8),
        norm=nn.LayerNorm(8),
        two=nn.Linear(8, 2),
    )
    x = torch.randn(3, 4)
    assert found(model, x) == {}
    assert 'LayerNorm' in reasons(model, x)['one']


def test_channel_attention_follows_its_channels():
    model = Net(
        lambda net, x: net.last(
            net.one(x)
            * net.up(net.down(net.one(x).mean((2, 3), True)).relu()).sigmoid()
        ),
        one=conv(3, 8),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        last=conv(8, 2),
    )
    assert found(model) == {'one': 8, 'down': 4}


def test_regions_of_a_map_are_flattened_into_blocks():
    from torchvision.ops import roi_align

    boxes = torch.tensor([[0, 1.0, 1, 6, 6], [1, 0.0, 0, 5, 7]])
    model = Net(
        lambda net, x: net.fc(roi_align(net.one(x), boxes, 3).flatten(1)),
        one=conv(3, 6),
        fc=nn.Linear(54, 2),
    )
    assert found(model) == {'one': 6}
    group = open_group(model)
    assert group.consumers == (Slice('fc.weight', 1, block=9),)


def test_a_head_that_is_shared_by_levels_is_one_reader():
    model = Net(
        lambda net, x: (net.head(net.one(x)), net.head(net.two(x))),
        one=conv(3, 6),
        two=conv(3, 6),
        head=conv(6, 2),
    )
    assert found(model) == {'one': 6}


def test_a_table_keeps_its_rows_and_may_lose_columns():
    model = Net(
        lambda net, x: net.fc(net.table(x)),
        table=nn.Embedding(10, 6),
        fc=nn.Linear(6, 2),
    )
    assert found(model, torch.tensor([[1, 2], [3, 4]])) == {'table': 6}


def test_the_model_is_left_as_it_is():
    model = lively(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    discovered_groups(model, lambda net: net(PICTURE))
    assert all(
        torch.equal(before[k], v) for k, v in model.state_dict().items()
    )
    assert not any(p.grad is not None for p in model.parameters())


def test_a_slice_with_positions_survives_a_plan_file(tmp_path):
    part = Slice('w', 0, block=2, positions=(0, 3, 1, 2))
    group = PruneGroup('w', 'channel', 2, (part,), (Slice('v', 1),))
    plan = PruningPlan((group,), {'w': [1]})
    plan.save(tmp_path / 'plan.json')
    read = PruningPlan.load(tmp_path / 'plan.json')
    assert read.groups == (group,)
    assert part.index([1], 2).tolist() == [1, 2]
    assert part.end(2) == 4


def test_a_padded_border_belongs_to_its_channel():
    model = Net(
        lambda net, x: net.last(F.pad(net.one(x), (1, 2, 0, 1))),
        one=conv(3, 4),
        last=conv(4, 2),
    )
    assert found(model) == {'one': 4}


def test_averages_that_nobody_reads_hold_nothing():
    model = Net(
        lambda net, x: (net.last(net.one(x)), net.one(x).mean(1) / 2)[0],
        one=conv(3, 4),
        last=conv(4, 2),
    )
    assert found(model) == {'one': 4}
    both = Net(
        lambda net, x: (net.last(net.one(x)), net.one(x).mean(1) / 2),
        one=conv(3, 4),
        last=conv(4, 2),
    )
    assert found(both) == {}


def test_what_is_multiplied_by_zero_holds_nothing():
    model = Net(
        lambda net, x: net.last(net.one(x)) + net.one(x).sum() * 0.0,
        one=conv(3, 4),
        last=conv(4, 2),
    )
    assert found(model) == {'one': 4}


def test_the_channels_of_the_input_are_no_units():
    model = Net(
        lambda net, x: net.two(net.one(x - net.mean)),
        one=conv(3, 4),
        two=conv(4, 2),
    )
    model.register_buffer('mean', torch.rand(3, 1, 1))
    assert found(model) == {'one': 4}


def test_tensors_are_found_in_results_of_any_kind():
    """As mmdet3d returns them: a class and a kind lie beside the tensors."""

    class Kind(Enum):
        BOX = 1

    class Result:
        pass

    result = Result()
    result.kind, result.made_of, result.scores = Kind.BOX, Result, PICTURE
    result.boxes = [dict(one=PICTURE[0])]
    one, other = tensors_in((result,))
    assert one is result.boxes[0]['one']  # by name, not in order of setting
    assert other is PICTURE


@pytest.mark.parametrize('width', [6, 2])
def test_a_grouped_transposed_convolution_holds_its_channels(width):
    model = Net(
        lambda net, x: net.two(net.up(net.one(x))),
        one=conv(3, 6),
        up=nn.ConvTranspose2d(6, width, 2, stride=2, groups=2),
        two=conv(width, 5),
    )
    assert found(model) == {}
    assert 'grouped transposed' in reasons(model)['one']


def test_what_is_expanded_as_another_keeps_as_many_channels():
    def run(net, x):
        pooled, map_ = net.one(x).mean((2, 3), keepdim=True), net.two(x)
        return net.three(torch.cat([pooled.expand_as(map_), map_], 1))

    model = Net(run, one=conv(3, 6), two=conv(3, 6), three=conv(12, 5))
    assert found(model) == {'one': 6}


def test_nothing_found_holds_no_channels():
    """As where no box is above a threshold."""

    def run(net, x):
        rows = net.one(x).movedim(1, -1).flatten(0, 2)
        chosen = rows[torch.arange(0)]
        return net.fc(rows), chosen.sum()

    model = Net(run, one=conv(3, 6), fc=nn.Linear(6, 5))
    assert reasons(model).keys() == {'fc'}


def test_a_group_of_one_unit_is_not_asked_to_lose_it():
    model = Net(
        lambda net, x: net.last(net.norm(net.one(x))),
        one=conv(3, 8),
        norm=nn.GroupNorm(1, 8),
        last=conv(8, 2),
    )
    assert found(model) == {}
    why = reasons(model)['one']
    assert why == 'every group keeps a unit, and this has one only'
