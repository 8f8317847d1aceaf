"""How the weights of VAD start: as the original's, on purpose or not."""

import math

import pytest
import torch
from golden import build_vad
from mmdet.models.layers import LearnedPositionalEncoding
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from tiny_vad import build_config


def test_init_weights_starts_as_described():
    model = MODELS.build(build_config())
    model.init_weights()
    head = model.pts_bbox_head
    prior = -math.log(99)
    for branches in (
        head.cls_branches,
        head.map_cls_branches,
        head.traj_cls_branches,
    ):
        for branch in branches:
            assert branch[-1].bias.tolist() == pytest.approx(
                [prior] * len(branch[-1].bias)
            )
    temporal, spatial = head.transformer.encoder.layers[0].attentions
    for attention in (temporal, spatial.deformable_attention):
        assert attention.sampling_offsets.weight.abs().max() == 0
        assert attention.attention_weights.weight.abs().max() == 0
        bias = attention.sampling_offsets.bias.view(
            8, -1, attention.num_points, 2
        )
        # head 0 looks along x, head 1 diagonally, point k at radius k + 1
        radius = torch.arange(1, attention.num_points + 1.0)
        for queue in range(bias.shape[1]):
            torch.testing.assert_close(
                bias[0, queue], torch.stack((radius, radius * 0), 1)
            )
            torch.testing.assert_close(
                bias[1, queue], torch.stack((radius, radius), 1)
            )
    assert spatial.output_proj.bias.abs().max() == 0
    limit = math.sqrt(6 / (64 + 64))  # Xavier
    weight = spatial.output_proj.weight
    assert 0.9 * limit < weight.abs().max() <= limit
    modes = head.motion_mode_query.weight
    torch.testing.assert_close(
        modes @ modes.t(), torch.eye(6), atol=1e-5, rtol=0
    )
    assert head.transformer.level_embeds.std() > 0.8
    assert head.transformer.reference_points.bias.abs().max() == 0


def test_positions_start_as_in_the_original():
    """Of agents and lanes by Xavier, of the ego as PyTorch does.

    PyTorch draws weights and biases up to 1 / sqrt(inputs).
    """
    model = MODELS.build(build_config())
    model.init_weights()
    head = model.pts_bbox_head
    xavier = math.sqrt(6 / (2 + 64))
    for linear in (head.pos_mlp_sa, head.pos_mlp):
        assert 0.8 * xavier < linear.weight.abs().max() <= xavier
        assert linear.bias.abs().max() == 0
    for linear in (head.ego_agent_pos_mlp, head.ego_map_pos_mlp):
        assert xavier < linear.weight.abs().max() <= math.sqrt(1 / 2)
        assert xavier < linear.bias.abs().max() <= math.sqrt(1 / 2)


def test_the_can_bus_network_keeps_pytorchs_biases():
    model = MODELS.build(build_config())
    model.init_weights()
    network = model.pts_bbox_head.transformer.can_bus_mlp
    for linear, inputs in ((network[0], 18), (network[2], 32)):
        limit = math.sqrt(1 / inputs)
        assert 0.5 * limit < linear.bias.abs().max() <= limit
        xavier = math.sqrt(6 / (inputs + linear.out_features))
        assert 0.9 * xavier < linear.weight.abs().max() <= xavier


class HeadOfItsOwn(BaseModule):
    """As the original's head: ``init_weights`` asks the transformer alone."""

    def __init__(self):
        super().__init__()
        self.positional_encoding = LearnedPositionalEncoding(
            128, row_num_embed=100, col_num_embed=100
        )

    def init_weights(self):
        """Does not call the base class, which would ask the children."""


def is_normal(embedding):
    values = embedding.weight
    spread = values.min() < -2.5 and values.max() > 2.5
    return (
        spread and abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05
    )


def test_the_positional_encoding_stays_normally_distributed():
    """mmdet's encoding wants a uniform start, which nobody asks it for."""
    detector = BaseModule()
    detector.pts_bbox_head = HeadOfItsOwn()
    detector.init_weights()
    theirs = detector.pts_bbox_head.positional_encoding
    assert all(map(is_normal, theirs.children()))
    theirs.init_weights()
    assert theirs.row_embed.weight.min() >= 0 > -theirs.row_embed.weight.max()

    model = build_vad('tiny', 'stage_2')
    model.init_weights()
    ours = model.pts_bbox_head.positional_encoding
    assert all(map(is_normal, ours.children()))


def test_the_branches_of_all_layers_start_equal():
    head = MODELS.build(build_config()).pts_bbox_head
    first, second = head.reg_branches[:2]
    assert torch.equal(first[0].weight, second[0].weight)
    assert first[0].weight is not second[0].weight


def test_configs_start_from_imagenet_only_where_they_train_from_scratch():
    assert build_vad('tiny', 'stage_1').img_backbone.init_cfg['type'] == (
        'Pretrained'
    )
    init = build_vad('tiny', 'stage_2').img_backbone.init_cfg
    assert 'Pretrained' not in str(init)
