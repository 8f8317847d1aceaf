"""What an info file holds about the agents of a nuScenes keyframe."""

import math
from typing import Any

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from pyquaternion import Quaternion

FUTURE_STEPS = 6
# An agent that moves less than this along both axes has no direction, m.
STATIC_METRES = 1.0
STATIC_GOAL = 9


def agent_info(nusc: Any, sample: dict, lidar2global: np.ndarray) -> dict:
    """Returns boxes, velocities and futures of a keyframe's annotations.

    Everything is in the LiDAR frame of the keyframe. Boxes are those of
    mmdet3d 0.17 (x, y, z of the gravity centre, w, l, h, yaw).

    Args:
        nusc: nuscenes-devkit's ``NuScenes``.
        sample: The keyframe's record.
        lidar2global: ``[4, 4]``.

    Returns:
        ``gt_boxes [n, 7]``, ``gt_names [n]``, ``gt_velocity [n, 2]`` (NaN
        where unknown), ``num_lidar_pts``, ``num_radar_pts``, ``valid_flag``
        ``[n]``, ``gt_agent_fut_trajs [n, 12]`` offsets per step,
        ``gt_agent_fut_masks [n, 6]``, ``gt_agent_fut_goal [n]``,
        ``gt_agent_lcf_feat [n, 9]`` (x, y, yaw, vx, vy, w, l, h, row in the
        category table) and ``gt_agent_fut_yaw [n, 6]``.
    """
    annotations = [
        nusc.get('sample_annotation', token) for token in sample['anns']
    ]
    global2lidar = np.linalg.inv(lidar2global)
    count = len(annotations)
    boxes = np.zeros((count, 7))
    features = np.zeros((count, 9), np.float32)
    velocity = np.full((count, 2), np.nan)
    trajs = np.zeros((count, FUTURE_STEPS, 2), np.float32)
    masks = np.zeros((count, FUTURE_STEPS), np.float32)
    turns = np.zeros((count, FUTURE_STEPS), np.float32)
    for i, annotation in enumerate(annotations):
        centre, yaw = _placed(annotation, global2lidar)
        speed = global2lidar[:3, :3] @ nusc.box_velocity(annotation['token'])
        velocity[i] = speed[:2]
        size = annotation['size']
        boxes[i] = (*centre, *size, -yaw - math.pi / 2)
        row = nusc.getind('category', _category_token(nusc, annotation))
        features[i] = (*centre[:2], yaw, *speed[:2], *size, row)
        trajs[i], masks[i], turns[i] = agent_future(
            nusc, annotation, global2lidar
        )
    lidar_points = [a['num_lidar_pts'] for a in annotations]
    radar_points = [a['num_radar_pts'] for a in annotations]
    lidar_points = np.array(lidar_points, dtype=np.int64)
    radar_points = np.array(radar_points, dtype=np.int64)
    return dict(
        gt_boxes=boxes,
        gt_names=np.array(
            [_class(a['category_name']) for a in annotations], dtype=str
        ),
        gt_velocity=velocity,
        num_lidar_pts=lidar_points,
        num_radar_pts=radar_points,
        valid_flag=lidar_points + radar_points > 0,
        gt_agent_fut_trajs=trajs.reshape(count, 2 * FUTURE_STEPS),
        gt_agent_fut_masks=masks,
        gt_agent_fut_goal=np.array([_goal(t) for t in trajs], np.float32),
        gt_agent_lcf_feat=features,
        gt_agent_fut_yaw=turns,
    )


def agent_future(
    nusc: Any, annotation: dict, global2lidar: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follows an instance from one annotation on.

    Returns:
        Offsets per step ``[6, 2]`` in metres, mask ``[6]`` and turns per
        step ``[6]`` in [-pi, pi), all zero once the annotations end.
    """
    offsets = np.zeros((FUTURE_STEPS, 2))
    mask, turns = np.zeros(FUTURE_STEPS), np.zeros(FUTURE_STEPS)
    centre, yaw = _placed(annotation, global2lidar)
    for step in range(FUTURE_STEPS):
        if not annotation['next']:
            break
        annotation = nusc.get('sample_annotation', annotation['next'])
        next_centre, next_yaw = _placed(annotation, global2lidar)
        offsets[step] = (next_centre - centre)[:2]
        turn = next_yaw - yaw
        turns[step] = (turn + math.pi) % (2 * math.pi) - math.pi
        mask[step] = 1
        centre, yaw = next_centre, next_yaw
    return offsets, mask, turns


def _placed(
    annotation: dict, global2lidar: np.ndarray
) -> tuple[np.ndarray, float]:
    """Centre ``[3]`` and heading of an annotation in the LiDAR frame."""
    rotation = global2lidar[:3, :3]
    centre = rotation @ annotation['translation'] + global2lidar[:3, 3]
    turned = rotation @ Quaternion(annotation['rotation']).rotation_matrix
    return centre, math.atan2(turned[1, 0], turned[0, 0])


def _category_token(nusc: Any, annotation: dict) -> str:
    instance = nusc.get('instance', annotation['instance_token'])
    return instance['category_token']


def _class(category: str) -> str:
    """Detection class of a category; the category where it has none."""
    return category_to_detection_name(category) or category


def _goal(offsets: np.ndarray) -> int:
    """Direction from the first to the last step, in eighths of a turn."""
    x, y = offsets[1:].sum(axis=0)
    if max(x, y) < STATIC_METRES:
        return STATIC_GOAL
    return int((math.atan2(y, x) + math.pi) // (math.pi / 4))
