"""From camera features to a bird's-eye view: projection, layers, encoder."""

from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from .deformable_attention import (
    SpatialCrossAttention,
    TemporalSelfAttention,
)
from .deformable_sampling import Shapes
from .post_norm import PostNormLayer

# A point closer than this to the camera plane (m) is behind the camera.
_MIN_DEPTH = 1e-5


class ImageFeatures(NamedTuple):
    """Camera features as the encoder reads them.

    Attributes:
        value: ``[B * cameras, sum(h * w), C]``.
        shapes: ``(h, w)`` of each level.
    """

    value: Tensor
    shapes: Shapes


class VisibleCells(NamedTuple):
    """Which BEV cell is seen by which image, as a list of R pairs.

    Attributes:
        reference: ``[R, heights, 2]``, the cell's pillar in the image.
        image: ``[R]``, index into the B * cameras images, ascending.
        cell: ``[R]``, index into the B * HW cells.
    """

    reference: Tensor
    image: Tensor
    cell: Tensor

    @classmethod
    def from_projection(cls, points: Tensor, seen: Tensor) -> 'VisibleCells':
        """Lists the pairs of a projection (see ``project_pillars``)."""
        cameras, size, num_cells = seen.shape[:3]
        pairs = seen.any(-1).transpose(0, 1).nonzero()  # sample, camera, cell
        sample, camera, cell = pairs.unbind(1)
        return cls(
            points[camera, sample, cell],
            sample * cameras + camera,
            sample * num_cells + cell,
        )


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """``[HW, 2]``: (x, y) of the BEV cells as fractions of the region."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    y, x = torch.meshgrid(y, x, indexing='ij')
    return torch.stack((x, y), -1).flatten(0, 1)


def project_pillars(
    centres: Tensor,
    lidar2img: Tensor,
    image_size: tuple[int, int],
    pc_range: tuple[float, ...],
    num_heights: int,
) -> tuple[Tensor, Tensor]:
    """Projects points of the pillar of each BEV cell into each camera.

    Args:
        centres: ``[HW, 2]``, fractions of the region.
        lidar2img: ``[B, cameras, 4, 4]`` for the unpadded image.
        image_size: (height, width) of the padded image in pixels; the
            features cover it, so coordinates are fractions of it.
        pc_range: Region x, y, z minima, then maxima, metres.
        num_heights: Points per pillar.

    Returns:
        Points ``[cameras, B, HW, heights, 2]`` as fractions of the padded
        image and whether each is in the image, of the same shape without the
        last dimension. Points that are not seen can be anywhere.
    """
    with torch.autocast(centres.device.type, enabled=False):
        low = centres.new_tensor(pc_range[:3])
        high = centres.new_tensor(pc_range[3:])
        z = torch.arange(num_heights, device=centres.device) + 0.5
        z = (z / num_heights).expand(len(centres), -1).unsqueeze(-1)
        xy = centres.unsqueeze(1).expand(-1, num_heights, -1)
        points = torch.cat((xy, z), -1) * (high - low) + low
        points = torch.cat((points, torch.ones_like(z)), -1)
        # [cameras, B, 4, HW * heights]
        pixels = lidar2img.float().transpose(0, 1) @ points.flatten(0, 1).t()
        pixels = pixels.unflatten(-1, (-1, num_heights))
        u, v, depth, _ = pixels.unbind(2)
        safe = depth.clamp(min=_MIN_DEPTH)
        x = u / safe / image_size[1]
        y = v / safe / image_size[0]
        seen = (depth > _MIN_DEPTH) & (x > 0) & (x < 1) & (y > 0) & (y < 1)
        return torch.stack((x, y), -1), seen


class BEVEncoderLayer(PostNormLayer):
    """Temporal self-attention, spatial cross-attention, FFN; post-norm.

    Args:
        embed_dims: Width of the BEV.
        feedforward_channels: Hidden width of the FFN.
        num_heads: Heads of both attentions.
        num_levels: Image feature levels.
        num_points: Points per head and level in the images.
        dropout: Probability in all parts.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        num_levels: int = 1,
        num_points: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            embed_dims,
            feedforward_channels,
            dropout,
            TemporalSelfAttention(embed_dims, num_heads, dropout=dropout),
            SpatialCrossAttention(
                embed_dims, num_heads, num_levels, num_points, dropout
            ),
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        history: Tensor | None,
        reference: Tensor,
        bev_shape: tuple[int, int],
        visible: VisibleCells,
        features: ImageFeatures,
    ) -> Tensor:
        """Returns the BEV after this layer, ``[B, HW, C]``.

        Args:
            query: ``[B, HW, C]``.
            query_pos: ``[B, HW, C]``.
            history: ``[B, 2, HW, C]``, the previous BEV and the encoder's
                input; without a previous BEV the layer reads its own query.
            reference: ``[B, HW, 2]``, shifted cell centres.
            bev_shape: (H, W).
            visible: Which cells are seen where.
            features: What the cameras see.
        """
        if history is None:
            history = torch.stack((query, query), 1)
        return self.run(
            query,
            (query_pos, history, reference, [bev_shape]),
            (features.value, *visible, features.shapes),
        )


class BEVEncoder(BaseModule):
    """Stack of encoder layers over one set of projected pillars.

    Args:
        num_layers: Number of layers.
        pc_range: Region x, y, z minima, then maxima, metres.
        num_heights: Points per pillar.
        layer: Keywords of :class:`BEVEncoderLayer`.
    """

    # What cross-attention is told of a projection; an export sets another
    # form on its copy.
    visible_cells = staticmethod(VisibleCells.from_projection)

    def __init__(
        self,
        num_layers: int,
        pc_range: tuple[float, ...],
        num_heights: int = 4,
        **layer,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            BEVEncoderLayer(**layer) for _ in range(num_layers)
        )
        self.pc_range = tuple(pc_range)
        self.num_heights = num_heights

    def project(
        self,
        bev_shape: tuple[int, int],
        lidar2img: Tensor,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """``project_pillars`` for this encoder's region."""
        return project_pillars(
            cell_centres(*bev_shape, lidar2img.device),
            lidar2img,
            image_size,
            self.pc_range,
            self.num_heights,
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        features: ImageFeatures,
        bev_shape: tuple[int, int],
        projection: tuple[Tensor, Tensor],
        shift: Tensor,
        prev_bev: Tensor | None = None,
    ) -> Tensor:
        """Returns the BEV features ``[B, HW, C]``.

        Args:
            query: ``[B, HW, C]``.
            query_pos: ``[B, HW, C]``.
            features: What the cameras see.
            bev_shape: (H, W).
            projection: Result of :meth:`project`.
            shift: ``[B, 2]``, motion since the last frame as fractions of
                the region. Added for the previous and for this BEV, as the
                released weights were trained.
            prev_bev: ``[B, HW, C]``, already rotated.
        """
        visible = self.visible_cells(*projection)
        centres = cell_centres(*bev_shape, query.device)
        reference = centres + shift.unsqueeze(1)
        history = None
        if prev_bev is not None:
            history = torch.stack((prev_bev.to(query.dtype), query), 1)
        for layer in self.layers:
            query = layer(
                query,
                query_pos,
                history,
                reference,
                bev_shape,
                visible,
                features,
            )
        return query
