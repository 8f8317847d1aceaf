"""Boxes in the format of a nuScenes detection submission."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mmdet3d.structures import LiDARInstance3DBoxes
from scipy.spatial.transform import Rotation

from mmprune.atomic_file import write_whole

MAX_BOXES = 500
MOVING_SPEED = 0.2
ATTRIBUTES = {
    'car': ('vehicle.parked', 'vehicle.moving'),
    'truck': ('vehicle.parked', 'vehicle.moving'),
    'construction_vehicle': ('vehicle.parked', 'vehicle.moving'),
    'bus': ('vehicle.stopped', 'vehicle.moving'),
    'trailer': ('vehicle.parked', 'vehicle.moving'),
    'motorcycle': ('cycle.without_rider', 'cycle.with_rider'),
    'bicycle': ('cycle.without_rider', 'cycle.with_rider'),
    'pedestrian': ('pedestrian.standing', 'pedestrian.moving'),
    'barrier': ('', ''),
    'traffic_cone': ('', ''),
}
MODALITY = dict(
    use_camera=True,
    use_lidar=False,
    use_radar=False,
    use_map=False,
    use_external=True,  # the CAN bus
)


def submission_boxes(
    token: str,
    boxes: LiDARInstance3DBoxes,
    names: Sequence[str],
    lidar2ego: np.ndarray,
    ego2global: np.ndarray,
) -> list[dict]:
    """Returns boxes of the LiDAR frame as a submission has them.

    Args:
        token: Of the sample.
        boxes: n boxes; with nine columns the last two are the velocity in
            m/s, else it is not known (NaN).
        names: Detection class of each box.
        lidar2ego: ``[4, 4]``.
        ego2global: ``[4, 4]``.

    Returns:
        n dicts: ``sample_token``, ``translation`` (centre, global, metres),
        ``size`` (width, length, height), ``rotation`` (quaternion, w first),
        ``velocity`` (global, m/s), ``detection_name``.
    """
    if not len(boxes):
        return []
    pose = np.asarray(ego2global, np.float64) @ np.asarray(lidar2ego)
    turn, origin = pose[:3, :3], pose[:3, 3]
    centers = boxes.gravity_center.detach().cpu().double().numpy()
    numbers = boxes.tensor.detach().cpu().double().numpy()
    velocity = np.full((len(numbers), 3), np.nan)
    if numbers.shape[1] >= 9:
        velocity = np.pad(numbers[:, 7:9], ((0, 0), (0, 1)))
    yaw = np.pad(numbers[:, 6:7], ((0, 0), (2, 0)))
    facing = Rotation.from_matrix(turn) * Rotation.from_rotvec(yaw)
    columns = zip(
        (centers @ turn.T + origin).tolist(),
        numbers[:, [4, 3, 5]].tolist(),
        facing.as_quat()[:, [3, 0, 1, 2]].tolist(),
        (velocity @ turn.T)[:, :2].tolist(),
        names,
        strict=True,
    )
    return [
        dict(
            sample_token=token,
            translation=translation,
            size=size,
            rotation=rotation,
            velocity=speed,
            detection_name=str(name),
        )
        for translation, size, rotation, speed, name in columns
    ]


def with_scores(boxes: Iterable[dict], scores: Sequence[float]) -> list[dict]:
    """Returns the up to 500 surest boxes with score and attribute.

    The attribute follows from class and speed as in mmdet3d: above 0.2 m/s
    vehicles and pedestrians move and cycles have a rider. What has no
    velocity stands.

    Args:
        boxes: Of ``submission_boxes``.
        scores: One per box.
    """
    scored = []
    for box, score in zip(boxes, scores, strict=True):
        velocity = np.nan_to_num(box['velocity']).tolist()
        moving = bool(np.hypot(*velocity) > MOVING_SPEED)
        attribute = ATTRIBUTES[box['detection_name']][moving]
        scored.append(
            box
            | dict(
                velocity=velocity,
                detection_score=float(score),
                attribute_name=attribute,
            )
        )
    scored.sort(key=lambda box: -box['detection_score'])
    return scored[:MAX_BOXES]


def write_submission(frames: dict[str, list[dict]], folder: str) -> Path:
    """Writes ``results_nusc.json``, whole or not at all.

    Args:
        frames: Token of each sample -> its boxes of ``with_scores``.
        folder: Made where it is not there.

    Returns:
        The file; ``python -m nuscenes.eval.detection.evaluate`` reads it.
    """
    path = Path(folder) / 'results_nusc.json'
    text = json.dumps(dict(meta=MODALITY, results=frames))
    write_whole(path, text.encode())
    return path
