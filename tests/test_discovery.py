"""What goes together in a model, found by running it once.

Every model here is checked in the same way: the groups found hold (masked
equals pruned), and the sizes of the open ones are those worked out by hand.
"""

from enum import Enum

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprune.discovery import discovered_groups
from mmprune.discovery.labels import tensors_in
from mmprune.groups import PruneGroup, Slice
from mmprune.plan import PruningPlan
from mmprune.pruners import masked_difference

PICTURE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def lively(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    return model.eval()


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def found(model, x=PICTURE):
    """Name -> size of the open groups, after masked == pruned was seen."""
    lively(model)
    groups = discovered_groups(model, lambda net: net(x))
    open_groups = [g for g in groups if not g.dense]
    for half in (0, 1):  # either half of the units of every group
        keep = {g.name: list(range(half, g.size, 2)) for g in open_groups}
        plan = PruningPlan(tuple(open_groups), keep)
        if open_groups and all(keep.values()):
            difference = masked_difference(model, plan, lambda net: net(x))
            assert difference < 1e-5
    return {g.name: g.size for g in open_groups}


def open_group(model):
    """The only group of which units can be removed."""
    groups = discovered_groups(model, lambda net: net(PICTURE))
    (group,) = [g for g in groups if not g.dense]
    return group


def reasons(model, x=PICTURE):
    groups = discovered_groups(lively(model), lambda net: net(x))
    return {g.name: g.dense for g in groups if g.dense}


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


def test_heads_of_an_attention_are_found_from_its_products():
    model = Net(
        lambda net, x: run_heads(net, x, width=4),
        **{name: nn.Linear(8, 12) for name in 'qkv'},
        out=nn.Linear(12, 2),
    )
    assert found(model, torch.randn(2, 5, 8)) == {'q': 3}


def run_heads(net, x, width):
    b, n, _ = x.shape
    q, k, v = (
        layer(x).view(b, n, -1, width).transpose(1, 2)
        for layer in (net.q, net.k, net.v)
    )
    weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    return net.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize('need_weights', [True, False])
def test_the_attention_of_pytorch_loses_heads_and_its_layer_neurons(
    need_weights,
):
    model = Net(
        lambda net, x: net.two(
            net.one(net.attention(x, x, x, need_weights=need_weights)[0])
        ),
        attention=nn.MultiheadAttention(8, 4, batch_first=True),
        one=nn.Linear(8, 6),
        two=nn.Linear(6, 2),
    )
    sizes = found(model, torch.randn(2, 5, 8))
    assert sizes == {'attention': 4, 'attention.out_proj': 8, 'one': 6}


class TwoAttentions(nn.Module):
    """Makes masks by one number of heads, as Mask2Former's head does."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.one, self.two = (
            nn.MultiheadAttention(8, 4, batch_first=True) for _ in range(2)
        )

    def forward(self, x):
        mask = torch.zeros(len(x) * self.num_heads, *x.shape[1:2] * 2)
        x = self.one(x, x, x, attn_mask=mask)[0]
        return self.two(x, x, x, attn_mask=mask)[0]


@pytest.mark.parametrize('name', ['one', 'two'])
def test_one_number_of_heads_for_two_attentions_follows_neither(name):
    model = nn.Sequential(TwoAttentions(), nn.Linear(8, 2))
    x = torch.randn(2, 5, 8)
    groups = {g.name: g for g in discovered_groups(model, lambda net: net(x))}
    group = groups[f'0.{name}']
    assert group.attrs == {f'0.{name}.num_heads': 1}
    plan = PruningPlan((group,), {group.name: [0, 3]})
    assert masked_difference(model, plan, lambda net: net(x)) < 1e-5


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


def test_rows_written_by_an_index_keep_their_channels():
    def run(net, x):
        x = net.one(x).mean((2, 3))
        out = x.new_zeros(5, x.shape[1])
        out[torch.tensor([0, 3])] = x
        return net.last(out)

    model = Net(run, one=conv(3, 6), last=nn.Linear(6, 2))
    assert found(model) == {'one': 6}


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


class Deformable(nn.Module):
    """Heads that sample a map where their own offsets say."""

    def __init__(self):
        super().__init__()
        self.value = nn.Linear(6, 8)
        self.offsets = nn.Linear(6, 4 * 3 * 2)
        self.weights = nn.Linear(6, 4 * 3)
        self.output = nn.Linear(8, 5)
        self.num_heads = 4

    def forward(self, x):
        batch, count, _ = x.shape
        heads = self.num_heads
        value = self.value(x).view(batch, count, heads, -1)
        value = value.permute(0, 2, 3, 1).reshape(batch * heads, -1, 4, 4)
        grid = self.offsets(x).view(batch, count, heads, 3, 2).tanh()
        grid = grid.transpose(1, 2).flatten(0, 1)
        share = self.weights(x).view(batch, count, heads, 3).softmax(-1)
        share = share.transpose(1, 2).flatten(0, 1)[:, None]
        found = F.grid_sample(value, grid, align_corners=False) * share
        found = found.sum(-1).view(batch, -1, count)
        return self.output(found.transpose(1, 2))


def test_what_computes_where_a_head_samples_goes_with_it():
    model = nn.Sequential(Deformable())
    tokens = torch.randn(1, 16, 6)
    assert found(model, tokens) == {'0.value': 4}
    (group,) = [
        g
        for g in discovered_groups(model, lambda net: net(tokens))
        if not g.dense
    ]
    assert group.granularity == 'head'
    assert group.attrs == {'0.num_heads': 1}
    blocks = {part.tensor: part.block for part in group.producers}
    assert blocks['0.offsets.weight'] == 6
    assert blocks['0.weights.weight'] == 3


def test_positions_that_no_head_owns_hold_their_channels():
    model = Net(
        lambda net, x: F.grid_sample(
            net.map(x),
            net.grid(x).permute(0, 2, 3, 1).tanh(),
            align_corners=False,
        ),
        map=conv(3, 4),
        grid=conv(3, 2),
    )
    assert reasons(model)['grid'] == 'positions to sample at'


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
