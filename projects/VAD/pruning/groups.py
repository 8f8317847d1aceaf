"""What can be removed from VAD, and what stays dense and why."""

from collections.abc import Iterator

import torch
from torch import nn

from mmprune.adapters import deformable_groups, ffn_groups, mha_groups
from mmprune.discovery import discovered_groups
from mmprune.groups import PruneGroup, Slice
from mmprune.pruners import check_groups
from mmprune.registry import FUNCTIONS

# Tensors that no group covers: pattern of the name -> why.
DENSE_REASONS = (
    (r'(sampling_offsets|attention_weights)\.', 'read by the BEV width'),
    (
        r'norms?\.|\.norm\d?\.|_branches\.\d+\.[14]\.(weight|bias)$',
        'a norm keeps the statistics of its whole width',
    ),
    (
        r'(bev_embedding|positional_encoding|can_bus_mlp)',
        'BEV width: a residual stream under LayerNorm',
    ),
    (
        r'(query_embedding|motion_mode_query|reference_points|_embedding)',
        'query width: a residual stream under LayerNorm',
    ),
    (r'(code_weights)', 'constants of the loss'),
    (r'^hints\.', 'read in training alone'),
    (r'_branches\.\d+\.\d+\.', 'an output with a meaning, or under LayerNorm'),
    (r'(ego_fut_decoder|agent_fus_mlp)', 'an output with a meaning'),
    (r'lane_encoder', 'LayerNorm over the units'),
    (r'(pos_mlp|ego_query)', 'query width: a residual stream'),
    (r'(attentions|ffns)\.', 'stream width: a residual under LayerNorm'),
)


@FUNCTIONS.register_module()
def vad_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields all groups of a VAD model.

    Channels of backbone and neck, as discovered, the channels that the neck
    hands to the BEV encoder, heads and points of the deformable attentions,
    heads of the multi-head attentions, hidden units of feed-forward networks
    and of branches without a norm in between.

    Args:
        model: The detector, dense.
    """
    yield from _image_groups(model)
    yield from deformable_groups(model)
    yield from mha_groups(model)
    yield from ffn_groups(model)


def _image_groups(model: nn.Module) -> Iterator[PruneGroup]:
    part = nn.ModuleDict(
        dict(img_backbone=model.img_backbone, img_neck=model.img_neck)
    )
    weight = next(part.parameters())
    # Values only matter for the check; five strides of 2 leave 3 x 4 pixels.
    image = torch.linspace(-1, 1, 3 * 96 * 128, device=weight.device)
    image = image.sin().view(1, 3, 96, 128).to(weight.dtype)

    def forward(part: nn.ModuleDict) -> tuple[torch.Tensor, ...]:
        return part['img_neck'](part['img_backbone'](image))

    found = [
        g
        for g in discovered_groups(part, forward)
        if not g.name.startswith('img_neck.fpn_convs')
    ]
    modes = [(m, m.training) for m in part.modules()]
    part.eval()
    try:
        yield from check_groups(part, found, forward)
    finally:
        for module, mode in modes:
            module.training = mode
    yield _neck_output(model)


def _neck_output(model: nn.Module) -> PruneGroup:
    """Channels of all levels at once: the encoder concatenates them."""
    transformer = 'pts_bbox_head.transformer'
    outputs = [f'img_neck.fpn_convs.{i}.conv' for i in _neck_convs(model)]
    producers = [
        Slice(f'{path}.{leaf}') for path in outputs for leaf in _LEAVES
    ]
    producers += [
        Slice(f'{transformer}.{name}', 1)
        for name in ('cams_embeds', 'level_embeds')
    ]
    laterals = len(model.img_neck.lateral_convs)
    # An extra level is made from the last output.
    consumers = [Slice(f'{path}.weight', 1) for path in outputs[laterals:]]
    consumers += [
        Slice(f'{path}.value_proj.weight', 1)
        for path, module in model.named_modules()
        if type(module).__name__ == 'MSDeformableAttention3D'
    ]
    return PruneGroup(
        name='img_neck.output',
        granularity='channel',
        size=model.img_neck.fpn_convs[0].conv.out_channels,
        producers=tuple(producers),
        consumers=tuple(consumers),
    )


_LEAVES = ('weight', 'bias')


def _neck_convs(model: nn.Module) -> range:
    return range(len(model.img_neck.fpn_convs))
