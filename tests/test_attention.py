"""The slim attention is torch's, with a free number of heads."""

import copy

import pytest
import torch
from torch import nn

from mmprune.adapters import mha_groups
from mmprune.attention import SlimMultiheadAttention, SlimWindowAttention
from mmprune.plan import PruningPlan
from mmprune.surgery import apply_plan


def pair(**options):
    """The same weights in both classes."""
    attention = nn.MultiheadAttention(16, 4, **options).eval()
    if options.get('bias', True):
        nn.init.normal_(attention.out_proj.bias)
    slim = copy.deepcopy(attention)
    SlimMultiheadAttention.take_over(slim)
    return attention, slim


def inputs(batch_first):
    query, key = torch.randn(3, 2, 16), torch.randn(5, 2, 16)
    if batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    return query, key, key


MASK = torch.tensor(
    [[False] * 5, [False, True, True, False, True], [False] * 4 + [True]]
)
PADDING = torch.tensor([[False] * 5, [False, False, True, True, True]])


@pytest.mark.parametrize('batch_first', [False, True])
@pytest.mark.parametrize('need_weights', [False, True])
@pytest.mark.parametrize(
    'masks',
    [
        {},
        {'attn_mask': MASK},
        {'attn_mask': torch.randn(3, 5)},
        {'attn_mask': torch.randn(8, 3, 5)},
        {'key_padding_mask': PADDING},
        {'attn_mask': MASK, 'key_padding_mask': PADDING},
    ],
)
def test_equals_torch(batch_first, need_weights, masks):
    attention, slim = pair(batch_first=batch_first)
    args = inputs(batch_first)
    expected = attention(*args, need_weights=need_weights, **masks)
    found = slim(*args, need_weights=need_weights, **masks)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if need_weights:
        torch.testing.assert_close(found[1], expected[1])


def test_equals_torch_without_batch_and_with_zero_attention():
    attention, slim = pair(add_zero_attn=True, bias=False)
    query, key = torch.randn(3, 16), torch.randn(5, 16)
    expected = attention(query, key, key, attn_mask=MASK)
    found = slim(query, key, key, attn_mask=MASK)
    torch.testing.assert_close(found, expected)


def test_weights_of_each_head():
    attention, slim = pair()
    args = inputs(False)
    options = dict(average_attn_weights=False)
    torch.testing.assert_close(
        slim(*args, **options), attention(*args, **options)
    )


def pruned():
    model = nn.ModuleDict({'a': nn.MultiheadAttention(16, 4)}).eval()
    (group,) = mha_groups(model)
    apply_plan(model, PruningPlan((group,), {'a': [1, 3]}))
    return model['a']


def test_a_mask_that_repeats_for_the_dense_heads_still_fits():
    mask = torch.randn(2, 1, 3, 5).expand(2, 4, 3, 5).flatten(0, 1)
    found = pruned()(*inputs(False), attn_mask=mask)
    assert found[0].shape == (3, 2, 16)


def test_masks_that_differ_between_dense_heads_are_refused():
    with pytest.raises(ValueError, match='different masks for 4 heads'):
        pruned()(*inputs(False), attn_mask=torch.randn(8, 3, 5))


def test_dropout_acts_in_training_only():
    attention = pruned()
    attention.dropout = 0.5
    args = inputs(False)
    torch.testing.assert_close(attention(*args)[0], attention(*args)[0])
    attention.train()
    assert not torch.equal(attention(*args)[0], attention(*args)[0])


def test_key_biases_are_refused():
    with pytest.raises(ValueError, match='add_bias_kv'):
        SlimMultiheadAttention.take_over(
            nn.MultiheadAttention(8, 2, add_bias_kv=True)
        )


def window_attention():
    """A Swin layer of four heads, in the shape that mmdet gives it."""
    swin = pytest.importorskip('mmdet.models.backbones.swin')
    torch.manual_seed(0)
    module = swin.WindowMSA(16, num_heads=4, window_size=(3, 3))
    torch.nn.init.normal_(module.relative_position_bias_table)
    return module.eval()


def test_a_window_attention_computes_the_same_from_its_weights():
    module = window_attention()
    x, mask = torch.randn(6, 9, 16), torch.randn(2, 9, 9)
    for given in (None, mask):
        expected = module(x, given)
        slim = copy.deepcopy(module)
        slim.__class__ = SlimWindowAttention
        torch.testing.assert_close(slim(x, given), expected)


def test_a_window_attention_loses_heads():
    from mmprune.discovery import discovered_groups
    from mmprune.pruners import masked_difference

    model = torch.nn.Sequential(window_attention())
    x = torch.randn(6, 9, 16)
    groups = discovered_groups(model, lambda net: net(x))
    (heads,) = [g for g in groups if g.granularity == 'head' and not g.dense]
    assert heads.size == 4
    plan = PruningPlan((heads,), {heads.name: [0, 2]})
    assert masked_difference(model, plan, lambda net: net(x)) < 1e-5
