"""Of the drawn world: how large its pictures are, where the ego drives."""

import numpy as np
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

SIZE = (240, 136)


def ego_poses(nusc: NuScenes, scene: dict) -> np.ndarray:
    """x, y, yaw and seconds at the key frames, ``[n, 4]``."""
    rows = []
    token = scene['first_sample_token']
    while token:
        sample = nusc.get('sample', token)
        data = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
        pose = nusc.get('ego_pose', data['ego_pose_token'])
        yaw = Quaternion(pose['rotation']).yaw_pitch_roll[0]
        rows.append((*pose['translation'][:2], yaw, data['timestamp'] / 1e6))
        token = sample['next']
    return np.array(rows)
