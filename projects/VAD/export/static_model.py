"""VAD without anything whose shape depends on values.

The modules of the model compute; where one lists what it found (lanes, cells
that a camera sees), a mask over all, or a list of fixed length, takes the
place of the list.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from projects.VAD.model.bev_encoder import cell_centres
from projects.VAD.model.deformable_attention import (
    DeformableAttention,
    SpatialCrossAttention,
)
from projects.VAD.model.deformable_sampling import Shapes
from projects.VAD.model.head_layers import Lanes
from projects.VAD.model.vad import VAD
from projects.VAD.model.vad_head import VADHead

from .sampling import FORMS


class Seen(NamedTuple):
    """What each camera is asked about: all cells, or the K first it sees.

    Attributes:
        reference: ``[cameras, K, heights, 2]``, the pillar in the image.
        cells: ``[cameras, K]``, which cell each is; None for all in order.
        place: ``[cameras, HW]``, where a cell is in that list.
        weight: ``[cameras, HW]``, one over the number of cameras that see
            the cell, 0 where this one does not.
    """

    reference: Tensor
    cells: Tensor | None
    place: Tensor | None
    weight: Tensor


def seen_cells(points: Tensor, seen: Tensor, most: int | None) -> Seen:
    """Returns what the cameras are asked about.

    Args:
        points: ``[cameras, 1, HW, heights, 2]``.
        seen: ``[cameras, 1, HW, heights]``.
        most: Cells per camera, None for all.
    """
    points, seen = points.squeeze(1), seen.squeeze(1).any(-1)
    if most is None:
        return Seen(points, None, None, _share(seen))
    cameras, size = seen.shape
    place = seen.float().cumsum(1).long() - 1
    fits = seen & (place < most)
    # Everything else is written to one slot more, which is cut off.
    place = torch.where(fits, place, most)
    numbers = torch.arange(size).expand(cameras, -1)
    empty = torch.zeros(cameras, most + 1, dtype=torch.long)
    cells = empty.scatter(1, place, numbers)[:, :most]
    reference = torch.stack(
        [points[i].index_select(0, cells[i]) for i in range(cameras)]
    )
    return Seen(reference, cells, place.clamp(max=most - 1), _share(fits))


def _share(seen: Tensor) -> Tensor:
    return seen.float() / seen.float().sum(0).clamp(min=1)


class StaticCrossAttention(nn.Module):
    """:class:`SpatialCrossAttention` of one sample over :class:`Seen`."""

    def __init__(self, module: SpatialCrossAttention) -> None:
        super().__init__()
        self.deformable_attention = module.deformable_attention
        self.output_proj = module.output_proj

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference: Tensor,
        cells: Tensor | None,
        place: Tensor | None,
        weight: Tensor,
        shapes: Shapes,
    ) -> Tensor:
        """Returns the query plus the mean over the cameras that see it.

        Where a query looks is asked once, and not for each camera.

        Args:
            query: ``[1, HW, C]``.
            value: ``[cameras, sum(h * w), C]``.
            reference: As of :class:`Seen`, and so the next three.
            cells: Which cells these are.
            place: Where a cell is among them.
            weight: Of each camera for a cell.
            shapes: ``(h, w)`` of each level.
        """
        attention, cameras = self.deformable_attention, len(value)
        offsets, weights = attention.look(query[0], shapes)
        offsets, weights = offsets.squeeze(2), weights.squeeze(2)
        if cells is not None:
            offsets = offsets.index_select(0, cells.flatten())
            weights = weights.index_select(0, cells.flatten())
        else:
            weights = weights.expand(cameras, *weights.shape).flatten(0, 1)
        offsets = offsets.unflatten(0, (-1, reference.shape[1]))
        # [cameras, K, heads, levels, points / heights, heights, 2]
        places = offsets.unflatten(4, (-1, reference.shape[2]))
        places = places + reference[:, :, None, None, None]
        read = attention.sample(
            attention.split_heads(value),
            shapes,
            places.flatten(4, 5).flatten(0, 1),
            weights,
            None,
        ).unflatten(0, (cameras, -1))
        if place is not None:
            read = torch.stack(
                [read[i].index_select(0, place[i]) for i in range(cameras)]
            )
        # Of a cell that is not seen nothing counts, whatever was read.
        mean = (read * weight.unsqueeze(-1)).sum(0, keepdim=True)
        return query + self.output_proj(mean)


class StaticHead(VADHead):
    """A head whose motion reads all lanes under a mask, or K of them.

    Attributes:
        most_lanes: K, None for all.
    """

    most_lanes: int | None = None

    def choose_lanes(self, lanes: Lanes) -> Lanes:
        """Returns all lanes, or the K most probable."""
        if self.most_lanes is None:
            return lanes
        return lanes.taken(lanes.score.topk(self.most_lanes, dim=1).indices)


class ImagePart(nn.Module):
    """Pictures to features: backbone and neck.

    Args:
        model: What they are taken from.
        dtype: Of the features.
    """

    def __init__(self, model: VAD, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = model.img_backbone, model.img_neck
        self.dtype = dtype

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Returns per level ``[1, cameras, C, h, w]``.

        Args:
            img: ``[1, cameras, 3, H, W]``.
        """
        levels = self.img_neck(self.img_backbone(img.flatten(0, 1)))
        return tuple(
            x.unflatten(0, img.shape[:2]).to(self.dtype) for x in levels
        )


class HeadPart(nn.Module):
    """Features to raw outputs, of the first or of a further frame.

    Args:
        head: A copy of the head, which is changed.
        form: A name of ``FORMS``.
        image_size: (height, width) of the padded pictures.
        names: Of the inputs, in the order in which they come.
        lanes: Lanes that motion reads, None for all.
        cells: Cells that a camera is asked about, None for all.
    """

    def __init__(
        self,
        head: VADHead,
        form: str,
        image_size: tuple[int, int],
        names: Sequence[str],
        lanes: int | None = None,
        cells: int | None = None,
    ) -> None:
        super().__init__()
        self.head = _static(head, form, lanes, cells)
        self.image_size, self.names = image_size, tuple(names)
        self.lanes, self.cells = lanes, cells
        centres = cell_centres(*head.bev_shape, torch.device('cpu'))
        self.register_buffer('centres', centres)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of :class:`VADHead` and what was found.

        These are the lanes, the cells of each camera and, where a number of
        them was given, how many more there were.
        """
        given = dict(zip(self.names, tensors, strict=True))
        head, encoder = self.head, self.head.transformer.encoder
        points, seen = encoder.project(
            head.bev_shape, given['lidar2img'], self.image_size
        )
        bev = self._encode(given, (points, seen))
        outs = head.read(bev, given.get('ego_status'))
        cells = seen.squeeze(1).any(-1).float().sum(1)
        score = outs['map_all_cls_scores'][-1].sigmoid().amax(-1)
        lanes = (score > head.map_threshold).float().sum(1)
        found = [lanes, cells]
        if self.lanes is not None or self.cells is not None:
            over = [
                torch.zeros(1) if k is None else (n.amax(0, True) - k).relu()
                for n, k in ((lanes, self.lanes), (cells, self.cells))
            ]
            found.append(torch.cat(over))
        return (*outs.values(), *found)

    def _encode(
        self, given: dict[str, Tensor], projection: tuple[Tensor, Tensor]
    ) -> Tensor:
        head, transformer = self.head, self.head.transformer
        motion = transformer.can_bus_mlp(given['can_bus'])
        query = head.bev_embedding.weight + motion.unsqueeze(1)
        prev_bev = None
        if 'prev_bev' in given:
            turned = given['prev_bev'].index_select(0, given['turn_index'])
            turned = turned * given['turn_inside'][:, None, None]
            prev_bev = turned.transpose(0, 1)
        levels = [
            v.float() for n, v in given.items() if n.startswith('features_')
        ]
        return transformer.encoder(
            query,
            head.positional_encoding().expand_as(query),
            transformer.flatten_features(levels),
            head.bev_shape,
            projection,
            given['shift'],
            prev_bev,
        )


def _static(
    head: VADHead, form: str, lanes: int | None, cells: int | None
) -> StaticHead:
    head = copy.deepcopy(head)
    head.__class__ = StaticHead
    head.most_lanes = lanes
    for module in head.modules():
        if isinstance(module, DeformableAttention):
            module.sample = FORMS[form]
    encoder = head.transformer.encoder
    encoder.visible_cells = lambda points, seen: seen_cells(
        points, seen, cells
    )
    for layer in encoder.layers:
        layer.attentions[1] = StaticCrossAttention(layer.attentions[1])
    return head.eval()
