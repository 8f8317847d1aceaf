"""What goes together in layers of mmcv and mmdet, as they are published.

Each test names the groups that are open, with their sizes, and why the others
stay. That masked equals pruned, and that what is left runs and trains, is
seen of either half of the units of all open groups.
"""

import copy

import pytest
import torch
from mmcv import ops
from mmcv.ops import multi_scale_deform_attn
from tiny_nets import PICTURE, Net, conv
from torch import nn

from mmprune.plan import PruningPlan
from mmprune.pruners import check_groups, masked_difference
from mmprune.pruners.verify import largest_difference, tensors_of
from mmprune.pruning import find_groups
from mmprune.surgery import apply_plan

WIDTH = 16
# Two maps of 4 x 4 and 2 x 2 pixels, one behind the other.
SHAPES, STARTS = torch.tensor([[4, 4], [2, 2]]), torch.tensor([0, 16])
NORM = 'LayerNorm over the channels: its statistics would change'
OUTPUT = 'an output of the model'


def examined(model, forward):
    """Sizes of open groups, reasons of the others, and the smaller model."""
    for param in model.parameters():
        # Offsets, scales and tables of biases start at zero.
        nn.init.normal_(param, 0.5 * (param.ndim == 1), 0.3)
    model.eval()
    groups = find_groups(model, forward)
    groups = check_groups(model, groups, forward)
    left = [g for g in groups if not g.dense]
    for half in (0, 1):
        keep = {g.name: list(range(half, g.size, 2)) for g in left}
        plan = PruningPlan(tuple(left), keep)
        assert masked_difference(model, plan, forward) < 1e-5
        small = copy.deepcopy(model)
        apply_plan(small, plan)
        check_learning(small, forward)
        outputs = [tensors_of(forward(net)) for net in (model, small)]
        # Else the masks would do nothing.
        assert largest_difference(*outputs) > 0.01
    sizes = {g.name: g.size for g in left}
    return sizes, {g.name: g.dense for g in groups if g.dense}, small


def check_learning(model, forward):
    model.train()
    loss = sum(x.square().mean() for x in tensors_of(forward(model)))
    loss.backward()
    for name, param in model.named_parameters():
        assert param.grad is not None, name
        assert param.grad.isfinite().all(), name
    model.eval()


# -- deformable convolutions --------------------------------------------------


def between_convolutions(kind, **options):
    return Net(
        lambda net, x: net.last(net.dcn(net.one(x)).relu()),
        one=conv(3, 8),
        dcn=kind(8, 8, 3, padding=1, **options),
        last=conv(8, 2),
    )


both_kinds = pytest.mark.parametrize(
    'kind', [ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack]
)


@both_kinds
def test_a_deformable_convolution_loses_what_it_reads_and_writes(kind):
    model = between_convolutions(kind)
    sizes, why, small = examined(model, lambda net: net(PICTURE))
    assert sizes == {'one': 8, 'dcn': 8}
    assert why == {
        'dcn.conv_offset': 'offsets of a deformable convolution',
        'last': OUTPUT,
    }
    assert small.dcn.weight.shape == (4, 4, 3, 3)
    # What computes the offsets reads the same channels.
    assert small.dcn.conv_offset.weight.shape[1] == 4


@both_kinds
def test_channels_with_offsets_of_their_own_stay(kind):
    model = between_convolutions(kind, deform_groups=2)
    sizes, why, _ = examined(model, lambda net: net(PICTURE))
    assert sizes == {'dcn': 8}
    assert why['one'] == 'offset groups of a deformable convolution'


@both_kinds
def test_a_grouped_deformable_convolution_loses_whole_groups(kind):
    model = between_convolutions(kind, groups=4)
    sizes, _, small = examined(model, lambda net: net(PICTURE))
    assert sizes == {'one': 4}
    assert small.dcn.weight.shape == (4, 2, 3, 3)
    assert small.dcn.groups == 2


# -- attention ----------------------------------------------------------------


def test_channels_around_a_criss_cross_attention_go_together():
    """Its value is added to what it read; query and key are one head."""
    model = Net(
        lambda net, x: net.last(net.cross(net.one(x))),
        one=conv(3, WIDTH),
        cross=ops.CrissCrossAttention(WIDTH),
        last=conv(WIDTH, 2),
    )
    sizes, why, small = examined(model, lambda net: net(PICTURE))
    assert sizes == {'one': WIDTH}
    assert why.keys() == {'cross.query_conv', 'last'}
    assert small.cross.value_conv.weight.shape[:2] == (8, 8)
    assert small.cross.key_conv.weight.shape[:2] == (2, 8)


@pytest.fixture(params=['of mmcv', 'served'])
def attended(request, monkeypatch):
    """What attends: on the CPU mmcv's function, on CUDA the served op."""
    if request.param == 'served':

        def attend(value, shapes, places, weights):
            served = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
            return served.apply(value, shapes, STARTS, places, weights, 64)

        name = 'multi_scale_deformable_attn_pytorch'
        monkeypatch.setattr(multi_scale_deform_attn, name, attend)


def sampled(queries, coordinates=2):
    """Where queries look in the two maps: points, or boxes."""
    places = torch.rand(1, queries, 2, coordinates)
    maps = dict(spatial_shapes=SHAPES, level_start_index=STARTS)
    return dict(reference_points=places, **maps)


def attending(forward, **further):
    """A deformable attention of four heads between two layers."""
    return Net(
        forward,
        one=nn.Linear(6, WIDTH),
        attention=ops.MultiScaleDeformableAttention(
            WIDTH, 4, 2, 3, batch_first=True
        ),
        out=nn.Linear(WIDTH, 5),
        **further,
    )


@pytest.mark.parametrize('coordinates', [2, 4])
def test_a_deformable_attention_loses_heads_and_channels(
    attended, coordinates
):
    looked = sampled(20, coordinates)
    model = attending(
        lambda net, x: net.out(net.attention(net.one(x), **looked))
    )
    tokens = torch.randn(1, 20, 6)
    sizes, why, small = examined(model, lambda net: net(tokens))
    assert sizes == {'one': WIDTH, 'attention.sampling_offsets': 4}
    assert why == {'out': OUTPUT}
    attention = small.attention
    assert attention.num_heads == 2
    assert attention.value_proj.weight.shape == (8, 8)
    assert attention.output_proj.weight.shape == (8, 8)
    # Per head: an offset in x and y, and a weight, of 3 points in 2 maps.
    assert attention.sampling_offsets.weight.shape == (2 * 12, 8)
    assert attention.attention_weights.weight.shape == (2 * 6, 8)


def test_heads_may_go_where_the_model_puts_out_what_they_look_from(attended):
    """Each head adds its offsets to points that are predictions as well."""

    def forward(net, x):
        points = net.points(x).sigmoid()
        looked = dict(sampled(20), reference_points=points[:, :, None])
        return net.out(net.attention(net.one(x), **looked)), points

    model = attending(forward, points=nn.Linear(6, 2))
    tokens = torch.randn(1, 20, 6)
    sizes, why, small = examined(model, lambda net: net(tokens))
    assert sizes == {'one': WIDTH, 'attention.sampling_offsets': 4}
    assert why == {'points': OUTPUT, 'out': OUTPUT}
    assert small.attention.sampling_offsets.weight.shape == (2 * 12, 8)


# -- layers of detectors ------------------------------------------------------


HEADS = dict(embed_dims=WIDTH, num_heads=4)
NEURONS = dict(embed_dims=WIDTH, feedforward_channels=12)


def decoder_layer(name, attention):
    layers = pytest.importorskip('mmdet.models.layers.transformer')
    return getattr(layers, name)(dict(HEADS), attention, dict(NEURONS))


def test_a_decoder_layer_of_detr_loses_heads_and_neurons():
    layer = decoder_layer('DetrTransformerDecoderLayer', dict(HEADS))
    query, key = torch.randn(1, 5, WIDTH), torch.randn(1, 7, WIDTH)
    given = dict(key=key, value=key, query_pos=query + 1, key_pos=key + 1)
    sizes, why, small = examined(layer, lambda net: net(query, **given))
    assert sizes == {
        'self_attn.attn': 4,
        'cross_attn.attn': 4,
        'ffn.layers.0.0': 12,
    }
    assert why == {'self_attn.attn.out_proj': NORM}
    assert small.cross_attn.attn.num_heads == 2
    assert small.ffn.layers[1].in_features == 6


def test_a_decoder_layer_of_deformable_detr_loses_both_kinds_of_heads(
    attended,
):
    layer = decoder_layer(
        'DeformableDetrTransformerDecoderLayer',
        dict(HEADS, num_levels=2, num_points=3),
    )
    query, value = torch.randn(1, 5, WIDTH), torch.randn(1, 20, WIDTH)
    given = dict(value=value, query_pos=query + 1, **sampled(5))
    sizes, why, small = examined(layer, lambda net: net(query, **given))
    assert sizes == {
        'self_attn.attn': 4,
        'cross_attn.sampling_offsets': 4,
        'ffn.layers.0.0': 12,
    }
    assert why == {'self_attn.attn.out_proj': NORM}
    assert small.self_attn.attn.num_heads == small.cross_attn.num_heads == 2
    assert small.cross_attn.output_proj.in_features == 8


def test_windows_of_a_swin_lose_heads():
    """8 x 8 pixels in windows of 3 x 3: padded, and shifted in turn."""
    backbones = pytest.importorskip('mmdet.models.backbones')
    model = backbones.SwinTransformer(
        embed_dims=8,
        depths=(2, 2),
        num_heads=(2, 4),
        strides=(4, 2),
        out_indices=(0, 1),
        window_size=3,
        mlp_ratio=2,
    )
    picture = torch.randn(2, 3, 32, 32)
    sizes, why, small = examined(model, lambda net: net(picture))
    expected = {}
    for stage in (0, 1):
        for block in (0, 1):
            path = f'stages.{stage}.blocks.{block}'
            expected[f'{path}.attn.w_msa'] = 2 + 2 * stage
            expected[f'{path}.ffn.layers.0.0'] = 16 + 16 * stage
    assert sizes == expected
    assert why == {
        'patch_embed.projection': NORM,
        'stages.0.downsample.reduction': NORM,
    }
    windows = small.stages[1].blocks[1].attn.w_msa
    assert windows.num_heads == 2
    assert windows.qkv.weight.shape == (3 * 2 * 4, 16)
    assert windows.relative_position_bias_table.shape == (25, 2)
