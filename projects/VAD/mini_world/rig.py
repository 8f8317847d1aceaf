"""The sensors of the car, in nuScenes' layout.

Frames: ego x forward, y left, z up, on the ground under the rear axle;
LiDAR x right, y forward, z up; camera x right, y down, z forward.
"""

import math

import numpy as np
from pyquaternion import Quaternion

# Height of the LiDAR above the ground, metres.
LIDAR_HEIGHT = 1.84
# Camera: x, y, z in the LiDAR's frame in metres, degrees clockwise from
# forward, focal length in pixels.
RIG = {
    'CAM_FRONT': (0.0, 0.75, -0.30, 0.0, 1260.0),
    'CAM_FRONT_RIGHT': (0.45, 0.60, -0.31, 55.0, 1260.0),
    'CAM_FRONT_LEFT': (-0.45, 0.60, -0.31, -55.0, 1260.0),
    'CAM_BACK': (0.0, -0.95, -0.27, 180.0, 810.0),
    'CAM_BACK_LEFT': (-0.48, 0.10, -0.26, -110.0, 1260.0),
    'CAM_BACK_RIGHT': (0.48, 0.10, -0.26, 110.0, 1260.0),
}
CAMERA_NAMES = tuple(RIG)
CHANNELS = (*CAMERA_NAMES, 'LIDAR_TOP')
# The rig's numbers are those of pictures of this width.
FULL_WIDTH = 1600
# When a camera takes its picture, seconds after the LiDAR's time stamp.
DELAYS = {
    'CAM_FRONT_LEFT': -0.042,
    'CAM_FRONT': -0.034,
    'CAM_FRONT_RIGHT': -0.026,
    'CAM_BACK_RIGHT': -0.018,
    'CAM_BACK': -0.010,
    'CAM_BACK_LEFT': -0.002,
    'LIDAR_TOP': 0.0,
}


def lidar_to_ego() -> np.ndarray:
    """Pose ``[4, 4]`` of the LiDAR on the car."""
    out = np.eye(4)
    out[:2, :2] = [[0, 1], [-1, 0]]
    out[:3, 3] = (0.94, 0.0, LIDAR_HEIGHT)
    return out


def camera_to_ego(name: str) -> np.ndarray:
    """Pose ``[4, 4]`` of a camera on the car."""
    x, y, z, degrees, _ = RIG[name]
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    out = np.eye(4)
    # Columns: the camera's right, down and viewing directions.
    out[:3, :3] = np.array([[cos, 0, sin], [-sin, 0, cos], [0, -1, 0]])
    out[:3, 3] = (x, y, z)
    return lidar_to_ego() @ out


def intrinsics(name: str, width: int, height: int) -> np.ndarray:
    """Camera matrix ``[3, 3]`` for pictures of this size."""
    focal = RIG[name][4] * width / FULL_WIDTH
    return np.array(
        [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]
    )


def pose_matrix(pose: np.ndarray) -> np.ndarray:
    """``[4, 4]`` of an x, y, yaw on the ground."""
    out = np.eye(4)
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    out[:2, :2] = [[cos, -sin], [sin, cos]]
    out[:2, 3] = pose[:2]
    return out


def quaternion(matrix: np.ndarray) -> list[float]:
    """w, x, y, z of a rotation ``[3, 3]`` or a pose ``[4, 4]``."""
    rotation = Quaternion(matrix=matrix[:3, :3], atol=1e-6, rtol=1e-6)
    return rotation.elements.tolist()


def yaw_quaternion(yaw: float) -> list[float]:
    """w, x, y, z of a turn about the vertical."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]
