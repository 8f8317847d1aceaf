"""What a picture of a keyframe shows: ground truth or a model's output."""

from typing import NamedTuple

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

from projects.VAD.data.keyframe_dataset import MAP_CLASSES

COMMANDS = ('turn right', 'turn left', 'go straight')
TRUTH_COLOUR, PREDICTION_COLOUR = '#10b53a', '#ff7a00'


class Layer(NamedTuple):
    """What one source (ground truth or a model) holds of a keyframe."""

    name: str
    colour: str
    corners: np.ndarray  # [n, 8, 3] metres
    labels: np.ndarray  # [n]
    paths: list[np.ndarray]  # n of [k, 2] metres, from the box's centre on
    lines: list[tuple[str, np.ndarray]]  # map class, [k, 2] metres
    plans: dict[str, np.ndarray]  # command -> [k, 2] metres
    command: str | None = None
    dashed: bool = False


def box_corners(boxes: LiDARInstance3DBoxes) -> np.ndarray:
    """Returns the corners of boxes in metres, ``[n, 8, 3]``.

    Order: front left, front right, rear right, rear left; at the bottom,
    then at the top. Front is where the heading points.
    """
    tensor = boxes.tensor.detach().cpu().double().numpy()
    centre, size, yaw = tensor[:, :3], tensor[:, 3:6], tensor[:, 6]
    unit = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = unit[None] * size[:, None, :2]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x = centre[:, :1] + local[..., 0] * cos - local[..., 1] * sin
    y = centre[:, 1:2] + local[..., 0] * sin + local[..., 1] * cos
    z = np.broadcast_to(centre[:, 2:3], x.shape)
    bottom = np.stack([x, y, z], -1)
    top = bottom + np.array([0.0, 0.0, 1.0]) * size[:, None, 2:]
    return np.concatenate([bottom, top], axis=1)


def truth_layer(results: dict) -> Layer:
    """Returns the ground truth of a keyframe, as far as it is known.

    Args:
        results: What ``NuScenesKeyframeDataset.get_data_info`` gives.
    """
    boxes = results['all_gt_bboxes_3d']
    paths = [np.zeros((0, 2))] * len(boxes)
    if 'all_attr_labels' in results:
        centres = boxes.tensor[:, :2].numpy()
        attributes = np.asarray(results['all_attr_labels'])
        paths = [
            _future(*pair) for pair in zip(centres, attributes, strict=True)
        ]
    plans, command, lines = {}, None, []
    if 'gt_ego' in results:
        ego = results['gt_ego']
        command = COMMANDS[int(np.argmax(ego['fut_cmd']))]
        steps = np.asarray(ego['fut_trajs'])[np.asarray(ego['fut_masks']) > 0]
        plans = {command: np.r_[np.zeros((1, 2)), steps.cumsum(0)]}
    if 'gt_map' in results:
        gt_map = results['gt_map']
        lines = _named_lines(gt_map['labels'], gt_map['pts'])
    labels = np.asarray(results['all_gt_labels_3d'])
    return Layer(
        'ground truth',
        TRUTH_COLOUR,
        box_corners(boxes),
        labels,
        paths,
        lines,
        plans,
        command,
        dashed=True,
    )


def prediction_layer(sample: Det3DDataSample, score_thr: float) -> Layer:
    """Returns what a model predicts for a keyframe.

    Args:
        sample: A data sample that VAD's ``predict`` has filled. Parts that
            it does not hold are left out.
        score_thr: Smallest score of a box or map line to be drawn.
    """
    corners, labels = np.zeros((0, 8, 3)), np.zeros(0, dtype=int)
    paths, lines, plans, command = [], [], {}, None
    if 'pred_instances_3d' in sample:
        objects = sample.pred_instances_3d
        objects = objects[objects.scores_3d >= score_thr]
        corners = box_corners(objects.bboxes_3d)
        labels = _array(objects.labels_3d)
        paths = [np.zeros((0, 2))] * len(labels)
        if 'trajs' in objects and len(labels):
            best = _array(objects.traj_scores).argmax(1)
            trajs = _array(objects.trajs)[np.arange(len(best)), best]
            centres = corners[:, :4, :2].mean(1, keepdims=True)
            paths = list(np.concatenate([centres, trajs], axis=1))
    if 'pred_map' in sample:
        pred_map = sample.pred_map[sample.pred_map.scores >= score_thr]
        lines = _named_lines(_array(pred_map.labels), _array(pred_map.pts))
    if 'pred_ego' in sample:
        ego = sample.pred_ego
        start = np.zeros((1, 2))
        positions = _array(ego.plans)
        plans = {
            name: np.r_[start, path]
            for name, path in zip(COMMANDS, positions, strict=True)
        }
        chosen = ego.get('command')
        command = None if chosen is None else COMMANDS[int(chosen)]
    return Layer(
        'prediction',
        PREDICTION_COLOUR,
        corners,
        labels,
        paths,
        lines,
        plans,
        command,
    )


def _future(centre: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Positions of an agent from now on, ``[1 + valid steps, 2]``."""
    steps = attributes[:12].reshape(6, 2)[attributes[12:18] > 0]
    return centre + np.r_[np.zeros((1, 2)), steps.cumsum(0)]


def _named_lines(
    labels: np.ndarray, points: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    pairs = zip(np.asarray(labels), np.asarray(points), strict=True)
    return [(MAP_CLASSES[int(label)], line) for label, line in pairs]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
