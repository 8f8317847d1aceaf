"""What an info file holds about the ego vehicle: path, command, status.

Everything is in the LiDAR frame of the current keyframe; keyframes are 0.5 s
apart.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HISTORY_STEPS, FUTURE_STEPS = 2, 6
STEP_SECONDS = 0.5
EGO_LENGTH, EGO_WIDTH = 4.084, 1.85
WHEELBASE = 2.588
# Sideways distance from which the last position is a turn, metres.
TURN_METRES = 2.0


def ego_path(lidar2global: np.ndarray, index: int) -> dict:
    """Returns history, future and command of one keyframe of a scene.

    Before the first keyframe the vehicle is taken to move as in the step
    that follows, after the last one to stand.

    Args:
        lidar2global: ``[n, 4, 4]`` poses of the scene's keyframes, in order.
        index: The keyframe.

    Returns:
        ``gt_ego_his_trajs [2, 2]`` and ``gt_ego_fut_trajs [6, 2]`` offsets
        per step in metres, ``gt_ego_fut_masks [6]``, ``gt_ego_fut_cmd [3]``
        (right, left, straight) and ``fut_valid_flag``: whether the scene
        has all six keyframes to come.
    """
    poses = np.asarray(lidar2global, dtype=np.float64)
    spots = poses[:, :3, 3]
    last = len(spots) - 1
    past = []
    for i in range(index - HISTORY_STEPS, index + 1):
        first_step = spots[min(1, last)] - spots[0]
        past.append(spots[max(i, 0)] + min(i, 0) * first_step)
    steps = np.arange(index, index + FUTURE_STEPS + 1)
    to_lidar = np.linalg.inv(poses[index])
    past = _moved(past, to_lidar)
    future = _moved(spots[np.minimum(steps, last)], to_lidar)
    return dict(
        gt_ego_his_trajs=np.diff(past, axis=0).astype(np.float32),
        gt_ego_fut_trajs=np.diff(future, axis=0).astype(np.float32),
        gt_ego_fut_masks=(steps[1:] <= last).astype(np.float32),
        gt_ego_fut_cmd=_command(future[-1, 0]),
        fut_valid_flag=bool(steps[-1] <= last),
    )


def ego_status(
    ego2global: np.ndarray,
    quaternions: Sequence[Sequence[float]],
    index: int,
    can_bus: np.ndarray,
    speed: float,
    steering: float,
) -> np.ndarray:
    """Returns ``gt_ego_lcf_feat``: the local features of the ego.

    vx, vy, ax, ay, yaw rate, length, width, speed and curvature, SI units.
    The original reads its quaternions in the wrong order, so that the
    heading of a level vehicle is about 0 and (vx, vy) about (0, speed); the
    files in use were made that way, and so are these.

    Args:
        ego2global: ``[n, 4, 4]`` poses of the scene's keyframes.
        quaternions: Their rotations, wxyz.
        index: The keyframe.
        can_bus: ``[18]`` of the keyframe; 7:9 is the acceleration.
        speed: From the CAN bus, else that of ``path_speed``, m/s.
        steering: Angle of the steering, rad, positive to the left.
    """
    spots = np.asarray(ego2global)[:, :2, 3]
    # The step that ends here; at the start of the scene the one that begins.
    end = min(max(index, 1), len(spots) - 1)
    start = max(end - 1, 0)
    measured = math.dist(spots[start], spots[end]) / STEP_SECONDS
    headings = [_misread_heading(q) for q in quaternions]
    turn = (headings[end] - headings[start]) / STEP_SECONDS
    ahead = headings[index] + math.pi / 2
    return np.array(
        [
            measured * math.cos(ahead),
            measured * math.sin(ahead),
            *can_bus[7:9],
            turn,
            EGO_LENGTH,
            EGO_WIDTH,
            speed,
            2 * steering / WHEELBASE,
        ],
        dtype=np.float32,
    )


def path_speed(path: dict) -> float:
    """Returns the mean speed from half a second before to half after, m/s.

    The original takes it where there is no CAN bus. At the end of a scene,
    where no step follows, it is half of what it was.

    Args:
        path: Of ``ego_path``.
    """
    before, after = path['gt_ego_his_trajs'][-1], path['gt_ego_fut_trajs'][0]
    return float(np.hypot(*(before + after))) / (2 * STEP_SECONDS)


class CanBus:
    """CAN-bus messages of a nuScenes folder, one scene at a time.

    Args:
        folder: Folder that holds ``can_bus``; None for no data at all.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._api = None
        if folder is not None:
            from nuscenes.can_bus.can_bus_api import NuScenesCanBus

            self._api = NuScenesCanBus(str(folder))
        self._scene, self._messages = None, {}

    def messages(self, scene: str, kind: str) -> list[dict]:
        """Returns the messages of a kind, none where the scene has none.

        Raises:
            ValueError: If the file is there and is no JSON.
        """
        if scene != self._scene:
            self._scene, self._messages = scene, {}
        if kind not in self._messages:
            self._messages[kind] = self._read(scene, kind)
        return self._messages[kind]

    def _read(self, scene: str, kind: str) -> list[dict]:
        if self._api is None or not re.fullmatch(r'scene-\d{4}', scene):
            return []
        if int(scene[-4:]) in self._api.can_blacklist:
            return []
        try:
            return self._api.get_messages(scene, kind, print_warnings=False)
        except FileNotFoundError:
            return []
        except json.JSONDecodeError as error:
            raise ValueError(
                f'CAN bus: {kind} of {scene} is no JSON ({error}); unpack '
                'the CAN bus expansion again.'
            ) from error

    def numbers(self, scene: str, timestamp: int) -> np.ndarray:
        """Returns ``can_bus [18]`` of a moment, zeros where unknown.

        Position and rotation are those of the last message up to the
        moment; acceleration, rotation rate and velocity those of the first
        one after it. Headings (16, 17) are left to the reader.

        Args:
            scene: Name of the scene.
            timestamp: Microseconds.
        """
        poses = self.messages(scene, 'pose')
        if not poses:
            return np.zeros(18)
        times = [message['utime'] for message in poses]
        after = int(np.searchsorted(times, timestamp, side='right'))
        before = poses[max(after - 1, 0)]
        after = poses[min(after, len(poses) - 1)]
        rates = (after[k] for k in ('accel', 'rotation_rate', 'vel'))
        return np.concatenate(
            [before['pos'], before['orientation'], *rates, (0.0, 0.0)]
        )

    def motion(
        self, scene: str, timestamp: int, left_hand_traffic: bool
    ) -> tuple[float | None, float]:
        """Returns speed (m/s) and steering angle (rad) of a moment.

        Taken from the messages next to it; None and 0 where there are none.
        """
        poses = self.messages(scene, 'pose')
        angles = self.messages(scene, 'steeranglefeedback')
        if not poses or not angles:
            return None, 0.0
        steering = _nearest(angles, timestamp)['value']
        sign = -1 if left_hand_traffic else 1
        return _nearest(poses, timestamp)['vel'][0], sign * steering


def _moved(points: Sequence, transform: np.ndarray) -> np.ndarray:
    """``[k, 3]`` points through a 4x4 matrix, x and y of the result."""
    points = np.asarray(points) @ transform[:3, :3].T + transform[:3, 3]
    return points[:, :2]


def _command(sideways: float) -> np.ndarray:
    if sideways >= TURN_METRES:
        return np.array([1, 0, 0])
    if sideways <= -TURN_METRES:
        return np.array([0, 1, 0])
    return np.array([0, 0, 1])


def _misread_heading(quaternion: Sequence[float]) -> float:
    x, y, z, w = quaternion
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def _nearest(messages: list[dict], timestamp: int) -> dict:
    times = np.array([message['utime'] for message in messages])
    return messages[int(np.abs(times - timestamp).argmin())]
