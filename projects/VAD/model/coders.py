"""From network outputs to boxes and polylines in metres."""

from collections.abc import Sequence

import torch
from mmdet3d.registry import TASK_UTILS
from torch import Tensor

from .box_code import decode_boxes


def _top_scores(logits: Tensor, max_num: int) -> tuple[Tensor, ...]:
    """Best (query, class) pairs of ``[queries, classes]`` logits.

    Returns:
        Scores in descending order, classes and queries, each ``[n]``.
    """
    scores = logits.float().sigmoid().flatten()
    scores, index = scores.topk(min(max_num, len(scores)))
    num_classes = logits.shape[1]
    query = index.div(num_classes, rounding_mode='floor')
    return scores, index % num_classes, query


@TASK_UTILS.register_module()
class VADBoxCoder:
    """Chooses and decodes detections.

    Args:
        post_center_range: Minima then maxima of the centre that a detection
            may have, metres.
        max_num: Largest number of detections; the same query can be among
            them with several classes.
    """

    def __init__(
        self, post_center_range: Sequence[float], max_num: int = 100
    ) -> None:
        self.post_center_range = tuple(post_center_range)
        self.max_num = max_num

    def decode(self, logits: Tensor, code: Tensor) -> dict[str, Tensor]:
        """Returns the detections of one sample.

        Args:
            logits: ``[queries, classes]``.
            code: ``[queries, 10]``.

        Returns:
            ``boxes`` ``[n, 9]`` with z at the bottom, in the convention of
            mmdet3d 0.17, ``scores``, ``labels`` and ``queries`` (the index of
            the query), each ``[n]``.
        """
        scores, labels, queries = _top_scores(logits, self.max_num)
        boxes = decode_boxes(code[queries].float())
        bounds = boxes.new_tensor(self.post_center_range)
        centre = boxes[:, :3]
        keep = ((centre >= bounds[:3]) & (centre <= bounds[3:])).all(1)
        boxes[:, 2] -= 0.5 * boxes[:, 5]
        found = dict(
            boxes=boxes, scores=scores, labels=labels, queries=queries
        )
        return {name: value[keep] for name, value in found.items()}


@TASK_UTILS.register_module()
class VADMapCoder:
    """Chooses and decodes map polylines.

    Args:
        pc_range: Region x, y, z minima, then maxima, metres.
        post_center_range: Minima of both corners (x1, y1, x2, y2), then
            maxima, metres.
        max_num: Largest number of polylines.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        post_center_range: Sequence[float],
        max_num: int = 50,
    ) -> None:
        self.pc_range = tuple(pc_range)
        self.post_center_range = tuple(post_center_range)
        self.max_num = max_num

    def decode(
        self, logits: Tensor, points: Tensor, boxes: Tensor
    ) -> dict[str, Tensor]:
        """Returns the polylines of one sample.

        Args:
            logits: ``[vectors, classes]``.
            points: ``[vectors, points, 2]``, fractions of the region.
            boxes: ``[vectors, 4]``, (cx, cy, w, h) as fractions.

        Returns:
            ``pts`` ``[n, points, 2]`` and ``bboxes`` ``[n, 4]`` (x1, y1, x2,
            y2) in metres, ``scores`` and ``labels``, each ``[n]``.
        """
        scores, labels, vectors = _top_scores(logits, self.max_num)
        low = points.new_tensor(self.pc_range[:2])
        high = points.new_tensor(self.pc_range[3:5])
        pts = points[vectors] * (high - low) + low
        centre, size = boxes[vectors].split(2, dim=-1)
        corners = (centre - size / 2, centre + size / 2)
        bboxes = torch.cat([c * (high - low) + low for c in corners], -1)
        bounds = bboxes.new_tensor(self.post_center_range)
        keep = ((bboxes >= bounds[:4]) & (bboxes <= bounds[4:])).all(1)
        found = dict(pts=pts, bboxes=bboxes, scores=scores, labels=labels)
        return {name: value[keep] for name, value in found.items()}
