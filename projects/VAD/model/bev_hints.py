"""A second task for the BEV while it is trained: what is on each cell.

A decoder that matches a few queries with a few objects tells the BEV little
per frame. To say for each cell what is on it is a lesson from all of them:
the camera features learn what a car is wherever it stands, instead of where
cars stood in the scenes of the training.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from .bev_encoder import cell_centres
from .vad import VAD

# Points put between two neighbours of a map line, so that it leaves no
# cell out.
BETWEEN = 8
# The share of the focal loss that cells with something on them have.
ALPHA, GAMMA = 0.75, 2.0
# Of an object: metres to its centre in x and y, sine and cosine of its yaw.
POSE_SIZE = 4
METRES = 2.0
# Metres around a line in which cells are told the way to it.
REACH = 3.0
# What is on a cell at the start, as a logit: next to nothing.
START = -3.0


class CellTargets(NamedTuple):
    """What is on each of the HW cells of a BEV, and how far away lines are.

    Attributes:
        kinds: ``[HW, classes + map classes]``, 1 for what is on the cell.
        poses: ``[HW, 4]``, of the object there.
        known: ``[HW]``, 1 where there is an object.
        ways: ``[HW, map classes, 2]``, metres from the centre of the cell to
            the nearest point of a line of each class.
        near: ``[HW, map classes]``, 1 where that is within ``REACH``.
    """

    kinds: Tensor
    poses: Tensor
    known: Tensor
    ways: Tensor
    near: Tensor


class BEVHints(nn.Module):
    """Reads off each BEV cell which objects and lines are on or near it.

    Args:
        embed_dims: Width of the BEV.
        bev_shape: Rows and columns of the BEV.
        num_classes: Detection classes.
        num_map_classes: Map classes.
        pc_range: Region ``(x, y, z, x, y, z)`` in metres.
        weight: Factor of all three losses.
    """

    def __init__(
        self,
        embed_dims: int,
        bev_shape: tuple[int, int],
        num_classes: int,
        num_map_classes: int,
        pc_range: Sequence[float],
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.bev_shape = bev_shape
        self.num_classes = num_classes
        self.low = torch.tensor(pc_range[:2])
        self.size = torch.tensor(pc_range[3:5]) - self.low
        self.weight = weight
        self.kinds = nn.Linear(embed_dims, num_classes + num_map_classes)
        self.poses = nn.Linear(embed_dims, POSE_SIZE)
        self.ways = nn.Linear(embed_dims, 2 * num_map_classes)
        nn.init.constant_(self.kinds.bias, START)

    def forward(
        self, bev: Tensor, data_samples: Sequence[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """Returns the losses of the kinds, the poses and the ways.

        Args:
            bev: ``[B, HW, C]``.
            data_samples: One per sample, with ``gt_instances_3d`` and
                ``gt_map``.
        """
        targets = map(self.targets, data_samples)
        kinds, poses, known, ways, near = (
            torch.stack(parts).to(bev.device)
            for parts in zip(*targets, strict=True)
        )
        logits = self.kinds(bev).float()
        count = self.num_classes
        # Lines and objects each have their own number of cells.
        seen = sum(
            _focal(logits[..., part], kinds[..., part])
            for part in (slice(count), slice(count, None))
        )
        there = _distance(self.poses(bev).float(), poses, known)
        away = _distance(self.ways(bev).float().view_as(ways), ways, near)
        return dict(
            loss_hint_kinds=4 * self.weight * seen,
            loss_hint_poses=self.weight / 2 * there,
            loss_hint_ways=self.weight * away,
        )

    def targets(self, sample: Det3DDataSample) -> CellTargets:
        """Returns what the cells are told of one sample.

        An object is on the cells whose centre is in its footprint, which
        counts as at least one cell long and wide; the pose is that of the
        object on the cell.

        Args:
            sample: Boxes in the convention of mmdet3d 1.x, lines in metres.
        """
        objects, lines = sample.gt_instances_3d, sample.gt_map
        height, width = self.bev_shape
        cells = cell_centres(height, width, torch.device('cpu'))
        cells = cells * self.size + self.low
        kinds = torch.zeros(
            len(cells), self.kinds.out_features, dtype=torch.float32
        )
        poses, known = self._objects(
            cells,
            objects.bboxes_3d.tensor.float().cpu(),
            objects.labels_3d.cpu(),
            kinds,
        )
        labels = lines.labels.cpu()
        points = _dense(lines.pts.float().cpu())
        cell, line = self._cells_of(points)
        kinds[cell, self.num_classes + labels[line]] = 1
        ways, near = self._ways(cells, points, labels)
        return CellTargets(kinds, poses, known, ways, near)

    def _objects(
        self, cells: Tensor, boxes: Tensor, labels: Tensor, kinds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Poses and where they are known; writes the kinds."""
        poses = torch.zeros(len(cells), POSE_SIZE)
        known = torch.zeros(len(cells))
        away = cells[:, None] - boxes[None, :, :2]
        cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
        along = away[..., 0] * cos + away[..., 1] * sin
        aside = away[..., 1] * cos - away[..., 0] * sin
        half = (boxes[:, 3:5] / 2).clamp(min=self._half_cell())
        on = (along.abs() <= half[:, 0]) & (aside.abs() <= half[:, 1])
        cell, which = on.nonzero(as_tuple=True)
        kinds[cell, labels[which]] = 1
        poses[cell] = torch.cat(
            (
                -away[cell, which] / METRES,
                torch.stack((sin, cos), -1)[which],
            ),
            dim=-1,
        )
        known[cell] = 1
        return poses, known

    def _ways(
        self, cells: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ways from cells ``[HW, 2]`` to points ``[M, P, 2]`` of lines."""
        num_classes = self.kinds.out_features - self.num_classes
        ways = torch.zeros(len(cells), num_classes, 2)
        near = torch.zeros(len(cells), num_classes)
        for label in labels.unique().tolist():
            there = points[labels == label].flatten(0, 1)
            distance, nearest = torch.cdist(cells, there).min(dim=1)
            ways[:, label] = there[nearest] - cells
            near[:, label] = (distance < REACH).float()
        return ways, near

    def _half_cell(self) -> float:
        height, width = self.bev_shape
        return float(max(self.size[0] / width, self.size[1] / height) / 2)

    def _cells_of(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Cells that points ``[M, P, 2]`` are in, and the line of each."""
        height, width = self.bev_shape
        place = (points - self.low) / self.size
        column, row = (place * torch.tensor([width, height])).unbind(-1)
        column, row = column.floor().long(), row.floor().long()
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        line = inside.nonzero(as_tuple=True)[0]
        return (row * width + column)[inside], line


def _dense(points: Tensor) -> Tensor:
    """Lines ``[M, P, 2]`` with points between their points."""
    step = torch.arange(BETWEEN).view(1, 1, -1, 1) / BETWEEN
    here, there = points[:, :-1, None], points[:, 1:, None]
    return (here + (there - here) * step).flatten(1, 2)


def _distance(found: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean of the summed distances of the last dimension, where known."""
    error = (found - target).abs().sum(-1) * known
    return error.sum() / known.sum().clamp(min=1)


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss over the number of cells with something on them."""
    prob = logits.sigmoid()
    miss = torch.where(target > 0, 1 - prob, prob)
    share = torch.where(target > 0, ALPHA, 1 - ALPHA)
    entropy = F.binary_cross_entropy_with_logits(
        logits, target, reduction='none'
    )
    loss = share * miss**GAMMA * entropy
    return loss.sum() / target.sum().clamp(min=1)


@MODELS.register_module()
class HintedVAD(VAD):
    """VAD that is told in training what is on each cell of its BEV.

    Predictions are VAD's; ``hints`` is three linear layers more.

    Args:
        hint_weight: Factor of the hints' losses.
        **kwargs: Of :class:`VAD`.
    """

    def __init__(self, hint_weight: float = 1.0, **kwargs) -> None:
        super().__init__(**kwargs)
        head = self.pts_bbox_head
        self.hints = BEVHints(
            head.bev_embedding.weight.shape[1],
            head.bev_shape,
            head.cls_branches[0][-1].out_features,
            head.map_cls_branches[0][-1].out_features,
            head.pc_range,
            hint_weight,
        )

    def loss(
        self, inputs: dict, data_samples: Sequence[Det3DDataSample], **kwargs
    ) -> dict[str, Tensor]:
        """Returns VAD's loss terms and those of the hints."""
        outs = self._forward(inputs, data_samples)
        losses = self.pts_bbox_head.loss(outs, data_samples)
        return losses | self.hints(
            outs['bev_embed'].transpose(0, 1), data_samples
        )
