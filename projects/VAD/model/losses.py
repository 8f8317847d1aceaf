"""All losses of VAD on one forward pass (Jiang et al., ICCV 2023)."""

import math
from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub
from torch import Tensor, nn

from .assigners import assign_boxes, assign_lines
from .box_code import encode_boxes
from .perception_losses import (
    focal_loss,
    giou_loss,
    motion_losses,
    turning_loss,
)
from .plan_losses import boundary_loss, collision_loss, direction_loss

DIVIDER, BOUNDARY = 0, 2
LAST_VEHICLE = 4


def motion_warmup() -> float:
    """Returns the weight of ``loss_traj`` in the epoch that runs.

    ``1.1 * sigmoid(100 p - 32.5)`` with p the fraction of the epochs that
    are done: 0.08 at 0.3, 1.02 at 0.35 and 1.1 from then on. Outside of a
    training by epochs it is 1.
    """
    hub = MessageHub.get_current_instance()
    epoch, most = (hub.get_info(k, None) for k in ('epoch', 'max_epochs'))
    if epoch is None or not most:
        return 1.0
    return 1.1 / (1 + math.exp(32.5 - 100 * epoch / most))


@MODELS.register_module()
class VADLoss(nn.Module):
    """Matches predictions with ground truth and weighs every loss.

    It has no parameters and no buffers. The keywords ``loss_*`` are weights;
    the defaults are those of the second training stage. The first stage uses
    2.0 for the class losses and costs, 0.25 for boxes, 1.0 for map points
    and 0 for the plan.

    Args:
        loss_cls: Focal loss of the detection classes.
        loss_bbox: L1 loss of the box code.
        loss_traj: L1 loss of the agents' best motion mode.
        loss_traj_cls: Focal loss of the motion modes.
        loss_map_cls: Focal loss of the map classes.
        loss_map_bbox: L1 loss of the bounding boxes of map vectors.
        loss_map_iou: GIoU loss of the bounding boxes of map vectors.
        loss_map_pts: L1 loss of the map points.
        loss_map_dir: Cosine loss of the directions along map vectors.
        loss_plan_reg: L1 loss of the commanded plan.
        loss_plan_bound: Constraint: stay off road boundaries.
        loss_plan_col: Constraint: stay off other agents.
        loss_plan_dir: Constraint: drive along lane dividers.
        loss_iou: Kept for old configs; VAD has no such loss, so only 0.
        cls_cost: Weight of the class in the matching of boxes.
        bbox_cost: Weight of the L1 distance in the matching of boxes.
        map_cls_cost: Weight of the class in the matching of map vectors.
        map_pts_cost: Weight of the L1 distance in that matching.
        pc_range: Region ``(x, y, z, x, y, z)`` in metres.
        map_thresh: Class probability from which a map vector constrains the
            plan.
        agent_thresh: The same for an agent.
        use_traj_lr_warmup: Whether ``loss_traj`` is switched on after the
            first third of a training (see ``motion_warmup``). The published
            configs do without.

    Raises:
        ValueError: If ``loss_iou`` is not 0, or a weight is negative.
    """

    def __init__(
        self,
        loss_cls: float = 0.8,
        loss_bbox: float = 0.1,
        loss_traj: float = 0.2,
        loss_traj_cls: float = 0.2,
        loss_map_cls: float = 0.8,
        loss_map_bbox: float = 0.0,
        loss_map_iou: float = 0.0,
        loss_map_pts: float = 0.4,
        loss_map_dir: float = 0.005,
        loss_plan_reg: float = 1.0,
        loss_plan_bound: float = 1.0,
        loss_plan_col: float = 1.0,
        loss_plan_dir: float = 0.5,
        loss_iou: float = 0.0,
        cls_cost: float = 0.8,
        bbox_cost: float = 0.1,
        map_cls_cost: float = 0.8,
        map_pts_cost: float = 0.4,
        pc_range: Sequence[float] = (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0),
        map_thresh: float = 0.5,
        agent_thresh: float = 0.5,
        use_traj_lr_warmup: bool = False,
    ) -> None:
        super().__init__()
        self.use_traj_lr_warmup = use_traj_lr_warmup
        self.weights = dict(
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            loss_traj=loss_traj,
            loss_traj_cls=loss_traj_cls,
            loss_map_cls=loss_map_cls,
            loss_map_bbox=loss_map_bbox,
            loss_map_iou=loss_map_iou,
            loss_map_pts=loss_map_pts,
            loss_map_dir=loss_map_dir,
            loss_plan_reg=loss_plan_reg,
            loss_plan_bound=loss_plan_bound,
            loss_plan_col=loss_plan_col,
            loss_plan_dir=loss_plan_dir,
        )
        _check_weights(self.weights, loss_iou)
        self.cls_cost = cls_cost
        self.bbox_cost = bbox_cost
        self.map_cls_cost = map_cls_cost
        self.map_pts_cost = map_pts_cost
        self.pc_range = tuple(pc_range)
        self.map_thresh = map_thresh
        self.agent_thresh = agent_thresh

    def forward(
        self,
        outs: dict[str, Tensor],
        gts: list[dict[str, Tensor]],
        code_weights: Tensor,
        map_code_weights: Tensor,
    ) -> dict[str, Tensor]:
        """Returns the weighted losses; their sum is the total.

        Args:
            outs: Raw outputs of the head, L layers of objects and L of lines,
                which may be of other numbers: ``all_cls_scores
                [L, B, A, 10]``, ``all_bbox_preds [L, B, A, 10]``,
                ``all_traj_preds [L, B, A, 6, 12]``, ``all_traj_cls_scores
                [L, B, A, 6]``, ``map_all_cls_scores [L, B, V, 3]``,
                ``map_all_bbox_preds [L, B, V, 4]``, ``map_all_pts_preds
                [L, B, V, 20, 2]``, ``ego_fut_preds [B, 3, 6, 2]``.
            gts: Per sample ``gt_boxes [n, 9]`` (gravity centre, convention
                of ``box_code``), ``gt_labels [n]``, ``gt_attr [n, 34]``,
                ``map_labels [M]``, ``map_bboxes [M, 4]`` m, ``map_pts``,
                ``shift_pts [M, 19, 20, 2]`` m, ``ego_fut_trajs [6, 2]``,
                ``ego_fut_masks [6]``, ``ego_fut_cmd [3]``.
            code_weights: ``[10]`` weights of the numbers of the box code.
            map_code_weights: ``[4]`` weights of the numbers of map boxes.

        Returns:
            Losses of the last layer by name, those of the others with the
            prefix ``d0.``, ``d1.``, ...
        """
        outs = {k: v.float() for k, v in outs.items() if isinstance(v, Tensor)}
        boxes = [
            self._boxes(outs, gts, i, code_weights)
            for i in range(len(outs['all_cls_scores']))
        ]
        lines = [
            self._lines(outs, gts, i, map_code_weights)
            for i in range(len(outs['map_all_cls_scores']))
        ]
        losses = boxes[-1] | lines[-1] | self._plan(outs, gts)
        for part in (boxes, lines):
            for i, layer in enumerate(part[:-1]):
                for name in layer:
                    if not name.startswith('loss_traj'):
                        losses[f'd{i}.{name}'] = layer[name]
        return {
            name: (self.weights[name.split('.')[-1]] * loss).nan_to_num()
            for name, loss in losses.items()
        }

    def match_boxes(
        self, cls_scores: Tensor, codes: Tensor, gt: dict[str, Tensor]
    ) -> Tensor:
        """Returns the ground truth of each query, -1 for background.

        Args:
            cls_scores: ``[A, 10]`` logits of one layer and sample.
            codes: ``[A, 10]``.
            gt: The sample's ground truth.
        """
        return assign_boxes(
            cls_scores,
            codes,
            encode_boxes(gt['gt_boxes'].float()),
            gt['gt_labels'],
            self.cls_cost,
            self.bbox_cost,
        )

    def match_lines(
        self, cls_scores: Tensor, points: Tensor, gt: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns line and point order of each vector, -1 for background.

        Args:
            cls_scores: ``[V, 3]`` logits of one layer and sample.
            points: ``[V, 20, 2]`` normalised.
            gt: The sample's ground truth.
        """
        return assign_lines(
            cls_scores,
            points,
            self._normalized(gt['shift_pts'].float()),
            gt['map_labels'],
            self.map_cls_cost,
            self.map_pts_cost,
        )

    def _region(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = like.new_tensor(self.pc_range[:2])
        return low, like.new_tensor(self.pc_range[3:5]) - low

    def _normalized(self, points: Tensor) -> Tensor:
        low, size = self._region(points)
        return (points - low) / size

    def _metres(self, points: Tensor) -> Tensor:
        low, size = self._region(points)
        return points * size + low

    def _boxes(
        self,
        outs: dict[str, Tensor],
        gts: list[dict[str, Tensor]],
        layer: int,
        code_weights: Tensor,
    ) -> dict[str, Tensor]:
        scores = outs['all_cls_scores'][layer]
        codes = outs['all_bbox_preds'][layer]
        assigned = [
            self.match_boxes(scores[b], codes[b], gt)
            for b, gt in enumerate(gts)
        ]
        batch, query = _matched(assigned)
        labels = _picked(gts, assigned, 'gt_labels')
        targets = encode_boxes(_picked(gts, assigned, 'gt_boxes').float())
        count = _average_count(len(query), scores)
        error = (codes[batch, query] - targets).abs() * code_weights
        losses = dict(
            loss_cls=focal_loss(scores, batch, query, labels) / count,
            loss_bbox=error[targets.isfinite().all(dim=1)].sum() / count,
        )
        if layer == len(outs['all_cls_scores']) - 1:
            error, naming = motion_losses(
                outs['all_traj_preds'][-1],
                outs['all_traj_cls_scores'][-1],
                _picked(gts, assigned, 'gt_attr').float(),
                batch,
                query,
            )
            growth = motion_warmup() if self.use_traj_lr_warmup else 1.0
            losses['loss_traj'] = growth * error / count
            losses['loss_traj_cls'] = naming / count
        return losses

    def _lines(
        self,
        outs: dict[str, Tensor],
        gts: list[dict[str, Tensor]],
        layer: int,
        map_code_weights: Tensor,
    ) -> dict[str, Tensor]:
        scores = outs['map_all_cls_scores'][layer]
        points = outs['map_all_pts_preds'][layer]
        pairs = [
            self.match_lines(scores[b], points[b], gt)
            for b, gt in enumerate(gts)
        ]
        assigned = [line for line, _ in pairs]
        batch, query = _matched(assigned)
        labels = _picked(gts, assigned, 'map_labels')
        targets = torch.cat(
            [
                gt['shift_pts'].float()[line[line >= 0], order[line >= 0]]
                for gt, (line, order) in zip(gts, pairs, strict=True)
            ]
        )
        count = _average_count(len(query), scores)
        predicted = points[batch, query]
        error = (predicted - self._normalized(targets)).abs()
        boxes = outs['map_all_bbox_preds'][layer][batch, query]
        gt_boxes = _picked(gts, assigned, 'map_bboxes').float()
        return dict(
            loss_map_cls=focal_loss(scores, batch, query, labels) / count,
            **self._line_boxes(boxes, gt_boxes, map_code_weights, count),
            loss_map_pts=error.sum() / count,
            loss_map_dir=turning_loss(self._metres(predicted), targets)
            / count,
        )

    def _line_boxes(
        self, boxes: Tensor, gt_boxes: Tensor, weights: Tensor, count: Tensor
    ) -> dict[str, Tensor]:
        """L1 on normalised (cx, cy, w, h), GIoU on corners in metres."""
        corners = self._normalized(gt_boxes.view(-1, 2, 2))
        low, high = corners.unbind(dim=1)
        targets = torch.cat(((low + high) / 2, high - low), dim=1)
        center, size = boxes[:, :2], boxes[:, 2:]
        predicted = torch.cat(
            (
                self._metres(center - size / 2),
                self._metres(center + size / 2),
            ),
            dim=1,
        )
        error = (boxes - targets).abs() * weights
        return dict(
            loss_map_bbox=error.sum() / count,
            loss_map_iou=giou_loss(predicted, gt_boxes).sum() / count,
        )

    def _plan(
        self, outs: dict[str, Tensor], gts: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        plans = outs['ego_fut_preds']
        target = torch.stack([gt['ego_fut_trajs'] for gt in gts]).to(plans)
        mask = torch.stack([gt['ego_fut_masks'] for gt in gts]).to(plans)
        command = torch.stack([gt['ego_fut_cmd'] for gt in gts]).to(plans)
        chosen = command.argmax(dim=1)
        ego = plans[torch.arange(len(plans), device=plans.device), chosen]
        error = (plans - target[:, None]).abs()
        weight = command[:, :, None, None] * mask[:, None, :, None]

        lines = self._metres(outs['map_all_pts_preds'][-1])
        kinds = outs['map_all_cls_scores'][-1].sigmoid() >= self.map_thresh
        bound = boundary_loss(ego, lines, kinds[..., BOUNDARY])
        turn = direction_loss(ego, lines, kinds[..., DIVIDER])
        hit = self._collision(outs, ego)
        return dict(
            loss_plan_reg=(error * weight).mean(),
            loss_plan_bound=(bound * mask).mean(),
            loss_plan_col=(hit * mask[..., None]).mean(),
            loss_plan_dir=(turn * mask).mean(),
        )

    def _collision(self, outs: dict[str, Tensor], ego: Tensor) -> Tensor:
        prob, label = outs['all_cls_scores'][-1].sigmoid().max(dim=-1)
        return collision_loss(
            ego,
            outs['all_bbox_preds'][-1][..., :2],
            outs['all_traj_preds'][-1].unflatten(-1, (-1, 2)),
            outs['all_traj_cls_scores'][-1].sigmoid(),
            (prob >= self.agent_thresh) & (label <= LAST_VEHICLE),
        )


def _check_weights(weights: dict[str, float], loss_iou: float) -> None:
    if loss_iou:
        raise ValueError(
            f'loss_iou={loss_iou} was set, but VAD has no 3-D IoU loss; '
            'set it to 0'
        )
    negative = {name: w for name, w in weights.items() if w < 0}
    if negative:
        raise ValueError(
            f'loss weights must not be negative, found {negative}; use 0 to '
            'switch a loss off'
        )


def _average_count(count: int, like: Tensor) -> Tensor:
    """Number of matched pairs, averaged over processes, at least 1."""
    total = like.new_tensor(float(count))
    all_reduce(total, op='mean')
    return total.clamp(min=1)


def _matched(assigned: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sample and query of each matched pair, in order of the queries."""
    return torch.stack(assigned).ge(0).nonzero(as_tuple=True)


def _picked(
    gts: list[dict[str, Tensor]], assigned: list[Tensor], key: str
) -> Tensor:
    """``gt[key]`` of each matched pair, in the same order."""
    return torch.cat(
        [
            gt[key][index[index >= 0]]
            for gt, index in zip(gts, assigned, strict=True)
        ]
    )
