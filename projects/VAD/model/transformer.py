"""BEV features from images and ego motion, and the two decoders on them."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .bev_encoder import BEVEncoder, ImageFeatures
from .decoders import RefiningDecoder
from .deformable_attention import DeformableAttention, SpatialCrossAttention
from .head_layers import hidden_layer

_META_KEYS = ('lidar2img', 'can_bus', 'img_shape')


class FrameGeometry(NamedTuple):
    """Where cameras and vehicle are in one frame of a batch.

    Attributes:
        lidar2img: ``[B, cameras, 4, 4]`` for the unpadded images.
        can_bus: ``[B, 18]`` float64 on the CPU; entries 0:3 and 17 relative
            to the frame before (metres, degrees), 16 the absolute heading.
        image_size: (height, width) of the padded images.
    """

    lidar2img: Tensor
    can_bus: Tensor
    image_size: tuple[int, int]

    @classmethod
    def from_metas(
        cls, metas: Sequence[dict], device: torch.device
    ) -> 'FrameGeometry':
        """Reads the geometry from the metainfo of each sample.

        Raises:
            KeyError: If a sample lacks a key.
        """
        for key in _META_KEYS:
            if any(key not in meta for meta in metas):
                raise KeyError(
                    f"VAD needs {key!r} in every sample's metainfo, but one "
                    f'lacks it; add it to meta_keys of the packing transform.'
                )
        lidar2img, can_bus = (
            np.stack([np.asarray(meta[key], np.float64) for meta in metas])
            for key in _META_KEYS[:2]
        )
        height, width = metas[0]['img_shape'][0][:2]
        return cls(
            torch.from_numpy(lidar2img).float().to(device),
            torch.from_numpy(can_bus),
            (int(height), int(width)),
        )


def bev_shift(can_bus: Tensor, pc_range: Sequence[float]) -> Tensor:
    """``[B, 2]``: motion since the last frame as fractions of the region.

    Args:
        can_bus: ``[B, 18]``.
        pc_range: Region x, y, z minima, then maxima, metres.
    """
    dx, dy, heading = can_bus[:, [0, 1, 16]].unbind(1)
    sin, cos = heading.sin(), heading.cos()
    moved = torch.stack((dx * sin - dy * cos, dx * cos + dy * sin), -1)
    low, high = can_bus.new_tensor(pc_range).chunk(2)
    return moved / (high - low)[:2]


def rotate_bev(
    bev: Tensor,
    shape: tuple[int, int],
    degrees: Tensor,
    centre: tuple[float, float],
) -> Tensor:
    """Turns BEV features, nearest cell, zeros from outside.

    Args:
        bev: ``[B, HW, C]``.
        shape: (H, W).
        degrees: ``[B]``, counter-clockwise in the image of the BEV.
        centre: (x, y) of the point that stays, in cells. The released
            weights were trained with (100, 100) whatever the size.

    Returns:
        ``[B, HW, C]``, a new tensor.
    """
    height, width = shape
    theta = degrees.double().to(bev.device) * (math.pi / 180)
    cos, sin = (f(theta)[:, None, None] for f in (torch.cos, torch.sin))
    y = torch.arange(height, device=bev.device).double() + 0.5 - centre[1]
    x = torch.arange(width, device=bev.device).double() + 0.5 - centre[0]
    y, x = y.view(1, -1, 1), x.view(1, 1, -1)
    column = (cos * x - sin * y + centre[0] - 0.5).round().long()
    row = (sin * x + cos * y + centre[1] - 0.5).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = ((row * width + column) * inside).flatten(1).unsqueeze(-1)
    turned = bev.gather(1, index.expand_as(bev))
    return turned * inside.flatten(1).unsqueeze(-1)


@MODELS.register_module()
class VADPerceptionTransformer(BaseModule):
    """Encoder and decoders of VAD (Jiang et al., ICCV 2023).

    Args:
        encoder: Keywords of :class:`BEVEncoder`.
        decoder: Keywords of the detection's :class:`RefiningDecoder`.
        map_decoder: Keywords of the map's.
        embed_dims: Width of BEV and queries.
        num_cams: Number of cameras.
        num_feature_levels: Rows of the level embedding; a model with fewer
            feature levels uses the first ones.
        can_bus_dims: Numbers that describe the vehicle's motion.
        rotate_center: Point (x, y), in cells, about which the previous BEV
            is turned.
    """

    def __init__(
        self,
        encoder: dict,
        decoder: dict,
        map_decoder: dict,
        *,
        embed_dims: int = 256,
        num_cams: int = 6,
        num_feature_levels: int = 4,
        can_bus_dims: int = 18,
        rotate_center: tuple[float, float] = (100, 100),
    ) -> None:
        super().__init__()
        self.rotate_center = tuple(rotate_center)
        self.level_embeds = nn.Parameter(
            torch.randn(num_feature_levels, embed_dims)
        )
        self.cams_embeds = nn.Parameter(torch.randn(num_cams, embed_dims))
        self.encoder = BEVEncoder(embed_dims=embed_dims, **encoder)
        # x, y and z in the code (cx, cy, log w, log l, cz, ...)
        self.decoder = RefiningDecoder(
            columns=(0, 1, 4), embed_dims=embed_dims, **decoder
        )
        self.map_decoder = RefiningDecoder(
            columns=(0, 1), embed_dims=embed_dims, **map_decoder
        )
        self.reference_points = nn.Linear(embed_dims, 3)
        self.map_reference_points = nn.Linear(embed_dims, 2)
        self.can_bus_mlp = _motion_network(can_bus_dims, embed_dims)

    def init_weights(self) -> None:
        """Xavier matrices, rings of sampling offsets.

        The biases of the CAN-bus network stay as PyTorch makes them.
        """
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention | SpatialCrossAttention):
                module.init_weights()
        for embedding in (self.level_embeds, self.cams_embeds):
            nn.init.normal_(embedding)
        for linear in (self.reference_points, self.map_reference_points):
            nn.init.zeros_(linear.bias)

    def flatten_features(self, features: Sequence[Tensor]) -> ImageFeatures:
        """Adds camera and level embeddings and joins the levels.

        Args:
            features: Per level ``[B, cameras, C, h, w]``.

        Raises:
            ValueError: If there are more cameras or levels than embeddings.
        """
        cameras = features[0].shape[1]
        if cameras != len(self.cams_embeds):
            raise ValueError(
                f'VAD was built for {len(self.cams_embeds)} cameras and got '
                f'{cameras}; set num_cams of the transformer.'
            )
        if len(features) > len(self.level_embeds):
            raise ValueError(
                f'VAD got {len(features)} feature levels and has embeddings '
                f'for {len(self.level_embeds)}; set num_feature_levels.'
            )
        flat = [
            level.flatten(3).transpose(2, 3)
            + self.cams_embeds.unsqueeze(1)
            + embed
            for level, embed in zip(features, self.level_embeds, strict=False)
        ]
        return ImageFeatures(
            torch.cat(flat, 2).flatten(0, 1),
            [tuple(level.shape[-2:]) for level in features],
        )

    def encode(
        self,
        features: Sequence[Tensor],
        queries: Tensor,
        bev_pos: Tensor,
        bev_shape: tuple[int, int],
        geometry: FrameGeometry,
        prev_bev: Tensor | None = None,
    ) -> Tensor:
        """Returns the BEV features ``[B, HW, C]``.

        Args:
            features: Per level ``[B, cameras, C, h, w]``.
            queries: ``[HW, C]``.
            bev_pos: ``[HW, C]``.
            bev_shape: (H, W).
            geometry: Of this frame.
            prev_bev: ``[B, HW, C]`` of the frame before.
        """
        motion = geometry.can_bus.to(queries)
        query = queries + self.can_bus_mlp(motion).unsqueeze(1)
        if prev_bev is not None:
            prev_bev = rotate_bev(
                prev_bev,
                bev_shape,
                geometry.can_bus[:, 17],
                self.rotate_center,
            )
        shift = bev_shift(geometry.can_bus, self.encoder.pc_range)
        return self.encoder(
            query,
            bev_pos.expand_as(query),
            self.flatten_features(features),
            bev_shape,
            self.encoder.project(
                bev_shape, geometry.lidar2img, geometry.image_size
            ),
            shift.float().to(queries.device),
            prev_bev,
        )


def _motion_network(inputs: int, width: int) -> nn.Sequential:
    """From the CAN-bus numbers to what is added to each BEV query."""
    layers = [
        *hidden_layer(inputs, width // 2, norm=False),
        *hidden_layer(width // 2, width, norm=False),
    ]
    named = {str(i): layer for i, layer in enumerate(layers)}
    # The released weights name the norm so.
    return nn.Sequential(OrderedDict(named, norm=nn.LayerNorm(width)))
