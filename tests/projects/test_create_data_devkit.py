"""The converter over the drawn world, against nuscenes-devkit itself."""

import math
from pathlib import Path

import numpy as np
import pytest
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion
from shapely import LineString, Polygon
from shapely.geometry import box
from shapely.ops import unary_union
from tiny_infos import NAMES, read_infos

from projects.VAD.mini_world.world import write_world
from tools import create_data


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('world') / 'mini'
    root = write_world(out, seed=0, scenes=2, size=(80, 45))
    create_data.main(['nuscenes', '--root-path', str(root)])
    return root


@pytest.fixture(scope='module')
def world_infos(world) -> list[dict]:
    return [
        info for name in NAMES for info in read_infos(world, name)['infos']
    ]


@pytest.fixture(scope='module')
def nusc(world) -> NuScenes:
    return NuScenes('v1.0-mini', str(world), verbose=False)


def test_the_drawn_world_is_converted_whole(world, nusc):
    for split, name in (('train', 'scene-0061'), ('val', 'scene-0103')):
        [scene] = [s for s in nusc.scene if s['name'] == name]
        infos = read_infos(world, split)['infos']
        assert len(infos) == scene['nbr_samples']
        assert {info['scene_token'] for info in infos} == {scene['token']}
        for kind in ('divider', 'ped_crossing', 'boundary'):
            assert any(info['gt_map_lines'][kind] for info in infos)


def test_boxes_are_where_the_devkit_has_them(nusc, world_infos):
    compared = 0
    for info in world_infos[::7]:
        token = nusc.get('sample', info['token'])['data']['LIDAR_TOP']
        boxes = nusc.get_sample_data(token)[1]
        assert len(boxes) == len(info['gt_boxes'])
        for box_of_devkit, box_of_info in zip(
            boxes, info['gt_boxes'], strict=True
        ):
            yaw = box_of_devkit.orientation.yaw_pitch_roll[0]
            expected = [*box_of_devkit.center, *box_of_devkit.wlh]
            assert box_of_info[:6] == pytest.approx(expected, abs=1e-6)
            turn = box_of_info[6] + yaw + math.pi / 2
            assert math.sin(turn / 2) == pytest.approx(0, abs=1e-6)
            compared += 1
    assert compared > 50


def test_futures_lead_to_the_later_boxes_of_the_devkit(nusc, world_infos):
    """Positions after 3 s, by way of the devkit's global boxes."""
    compared = moved = 0
    for info in world_infos[:30:6]:
        sample = nusc.get('sample', info['token'])
        pose = np.eye(4)
        for name in ('lidar2ego', 'ego2global'):
            step = Quaternion(info[f'{name}_rotation']).transformation_matrix
            step[:3, 3] = info[f'{name}_translation']
            pose = step @ pose
        for i, token in enumerate(sample['anns']):
            if not info['gt_agent_fut_masks'][i].all():
                continue
            later = nusc.get('sample_annotation', token)
            for _ in range(6):
                later = nusc.get('sample_annotation', later['next'])
            steps = info['gt_agent_fut_trajs'][i].reshape(6, 2).sum(0)
            x, y = info['gt_boxes'][i, :2] + steps
            z = info['gt_boxes'][i, 2]
            place = (pose @ [x, y, z, 1])[:2]
            assert place == pytest.approx(later['translation'][:2], abs=0.01)
            compared += 1
            moved += np.linalg.norm(steps) > 3
    assert compared > 10
    assert moved > 2


def test_map_lines_are_as_long_as_the_devkits(world, world_infos):
    api = NuScenesMap(str(world), world_infos[0]['map_location'])
    half = box(-14.8, -29.8, 14.8, 29.8)
    for info in world_infos[::9]:
        rotation = Quaternion(info['ego2global_rotation'])
        mount = rotation.rotate(np.array(info['lidar2ego_translation']))
        x, y = (info['ego2global_translation'] + mount)[:2]
        turned = rotation * Quaternion(info['lidar2ego_rotation'])
        forward = turned.rotation_matrix[:, 0]
        angle = math.degrees(math.atan2(forward[1], forward[0]))
        layers = ['road_divider', 'lane_divider', 'road_segment', 'lane']
        found = dict(api.get_map_geom((x, y, 60, 30), angle, layers))
        dividers = found['road_divider'] + found['lane_divider']
        area = unary_union(found['road_segment'] + found['lane'])
        # The devkit turns the shapes before they are joined, which leaves
        # gaps of no width between neighbours.
        area = unary_union(
            [
                Polygon(part.exterior, list(filter(is_wide, part.interiors)))
                for part in getattr(area, 'geoms', [area])
            ]
        )
        expected = dict(
            divider=sum(line.length for line in dividers),
            boundary=area.boundary.intersection(half).length,
        )
        for name, length in expected.items():
            lines = map(LineString, info['gt_map_lines'][name])
            total = sum(line.length for line in lines)
            assert total == pytest.approx(length, abs=0.05), name


def is_wide(ring) -> bool:
    return Polygon(ring).area > 1e-6


def test_speed_of_the_status_is_that_of_the_path(world_infos):
    for info in world_infos[1:-1]:
        speed = np.linalg.norm(info['gt_ego_his_trajs'][1]) / 0.5
        status = info['gt_ego_lcf_feat']
        assert status[1] == pytest.approx(speed, abs=0.05)
        # The CAN bus has the speed now, the path that of the last 0.5 s.
        assert abs(status[7] - speed) < 1.5
    speeds = [info['gt_ego_lcf_feat'][7] for info in world_infos]
    assert max(speeds) - min(speeds) > 3
