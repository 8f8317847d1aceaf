"""What goes together in an attention: heads, and where they sample."""

import pytest
import torch
import torch.nn.functional as F
from tiny_nets import Net, conv, found, reasons
from torch import nn

from mmprune.discovery import discovered_groups
from mmprune.discovery.components import _components
from mmprune.discovery.labels import Labels
from mmprune.discovery.products import _contract
from mmprune.plan import PruningPlan
from mmprune.pruners import masked_difference


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


def test_a_scale_of_each_head_goes_with_its_neurons():
    model = Net(
        lambda net, x: net.out(
            (net.one(x).view(-1, 3, 4) * net.scale.weight).flatten(1)
        ),
        one=nn.Linear(8, 12),
        scale=nn.Embedding(3, 1),
        out=nn.Linear(12, 2),
    )
    (group,) = discovered_groups(model, lambda net: net(torch.randn(5, 8)))[:1]
    assert (group.size, group.dense) == (3, '')
    assert {s.tensor for s in group.slices} == {
        'one.weight',
        'one.bias',
        'scale.weight',
        'out.weight',
    }


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


def test_every_row_of_a_product_goes_with_every_column():
    labels = Labels(nn.Linear(6, 12))
    left, right = torch.arange(1, 7), torch.arange(7, 19)
    _contract(labels, (left.view(2, 3),), (right.view(3, 4),))
    component = _components(labels, labels.ties)
    assert len(set(component[1:19])) == 1
