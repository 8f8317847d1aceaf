"""The converter: a nuScenes folder in, info files with known answers out."""

import math
from pathlib import Path

import numpy as np
import pytest
from shapely import LineString, Polygon
from shapely.geometry import box
from tiny_infos import NAMES, read_infos
from tiny_nuscenes import START, STEP, write_nuscenes

from projects.VAD.data import nuscenes_infos
from projects.VAD.data.ego_info import CanBus, ego_path, ego_status, path_speed
from projects.VAD.data.keyframe_dataset import CAMERAS
from projects.VAD.data.map_ground_truth import LocationMap, MapExpansion
from tools import create_data


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return write_nuscenes(tmp_path_factory.mktemp('nuscenes'))


@pytest.fixture(scope='module')
def infos(root) -> dict[str, list[dict]]:
    create_data.main(
        ['nuscenes', '--root-path', str(root), '--version', 'v1.0-mini']
    )
    return {name: read_infos(root, name)['infos'] for name in NAMES}


@pytest.fixture(scope='module')
def source(root) -> nuscenes_infos.Source:
    return nuscenes_infos.open_source(root, 'v1.0-mini', root)


def poses_along(points, yaws=None) -> np.ndarray:
    """Poses whose y axis points along ``yaw`` (0: global x)."""
    poses = np.tile(np.eye(4), (len(points), 1, 1))
    for i, (x, y) in enumerate(points):
        yaw = (yaws[i] if yaws is not None else 0.0) - math.pi / 2
        cos, sin = math.cos(yaw), math.sin(yaw)
        poses[i, :2, :2] = [[cos, -sin], [sin, cos]]
        poses[i, :2, 3] = x, y
    return poses


# ---- bookkeeping and sensors


def test_every_keyframe_of_a_scene_is_listed_in_order(infos):
    train = infos['train']
    assert [info['frame_idx'] for info in train] == [0, 1, 2, 3]
    assert {info['scene_token'] for info in train} == {'scene-0061'}
    assert {info['scene_token'] for info in infos['val']} == {'scene-0103'}
    assert infos['val'][0]['scene_name'] == 'scene-0103'
    assert train[1]['prev'] == train[0]['token']
    assert train[3]['next'] == ''
    assert train[2]['timestamp'] == START + 2 * STEP
    assert train[0]['map_location'] == 'singapore-onenorth'


def test_paths_are_relative_to_the_folder(infos):
    info = infos['train'][0]
    assert info['lidar_path'] == 'samples/LIDAR_TOP/scene-0061_0.pcd.bin'
    camera = info['cams']['CAM_BACK']
    assert camera['data_path'] == 'samples/CAM_BACK/scene-0061_0.jpg'
    assert list(info['cams']) == list(CAMERAS)


def test_sensor2lidar_includes_what_the_ego_drove_in_between(infos):
    """The camera is 0.6 m ahead of the LiDAR and fires 0.4 m later."""
    camera = infos['train'][0]['cams']['CAM_FRONT']
    assert camera['sensor2lidar_translation'] == pytest.approx([0, 1.0, -0.3])
    # The camera looks along its z; in the LiDAR frame that is y.
    forward = camera['sensor2lidar_rotation'] @ [0, 0, 1]
    assert forward == pytest.approx([0, 1, 0])


def test_sweeps_are_the_scans_before(infos):
    sweeps = infos['train'][2]['sweeps']
    assert [s['timestamp'] for s in sweeps] == [START + STEP, START]
    assert sweeps[0]['sensor2lidar_translation'] == pytest.approx([0, -4, 0])
    assert infos['train'][0]['sweeps'] == []


# ---- agents


def test_boxes_are_in_the_lidar_frame_and_the_old_convention(infos):
    """The car stands at (110, 48, 1), the LiDAR at (100.9, 50, 1.8)."""
    info = infos['train'][0]
    names = ['car', 'pedestrian', 'movable_object.debris']
    assert info['gt_names'].tolist() == names
    expected = [2, 9.1, -0.8, 2.0, 4.0, 1.6, -math.pi]
    assert info['gt_boxes'][0] == pytest.approx(expected)
    assert info['gt_velocity'][0] == pytest.approx([0, 2], abs=1e-9)
    assert np.isnan(info['gt_velocity'][2]).all()
    assert info['num_lidar_pts'].tolist() == [7, 0, 3]
    assert info['valid_flag'].tolist() == [True, True, True]


def test_an_agents_future_ends_with_its_annotations(infos):
    trajs = infos['train'][0]['gt_agent_fut_trajs'][0].reshape(6, 2)
    assert trajs.tolist() == [[0, 1], [0, 1]] + [[0, 0]] * 4
    masks = infos['train'][0]['gt_agent_fut_masks']
    assert masks[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert masks[1].tolist() == [1, 1, 1, 0, 0, 0]
    assert infos['train'][2]['gt_agent_fut_masks'][0].tolist() == [0] * 6
    # North in the LiDAR frame is direction 6; who stands has direction 9.
    assert infos['train'][0]['gt_agent_fut_goal'].tolist() == [6, 9, 9]


def test_an_agents_features_name_its_row_in_the_category_table(infos):
    car, person = infos['train'][0]['gt_agent_lcf_feat'][:2]
    half = math.pi / 2
    expected = [2, 9.1, half, 0, 2, 2.0, 4.0, 1.6, 3]
    assert car == pytest.approx(expected, abs=1e-6)
    assert person[8] == 1
    assert abs(person[2]) == pytest.approx(math.pi)


def test_turns_of_an_agent_are_wrapped(source):
    """A car that turns from 170 to 190 degrees turns by 20, not -340."""
    nusc = source.nusc
    chain = []
    token = 'scene-0061 car 0'
    while token:
        chain.append(nusc.get('sample_annotation', token))
        token = chain[-1]['next']
    before = [record['rotation'] for record in chain]
    for record, degrees in zip(chain, (170, 190, 200), strict=True):
        half = math.radians(degrees) / 2
        record['rotation'] = [math.cos(half), 0, 0, math.sin(half)]
    sample = nusc.get('sample', 'scene-0061 0')
    info = nuscenes_infos.agent_info(nusc, sample, np.eye(4))
    for record, rotation in zip(chain, before, strict=True):
        record['rotation'] = rotation
    turns = np.degrees(info['gt_agent_fut_yaw'][0])
    assert turns == pytest.approx([20, 10, 0, 0, 0, 0], abs=1e-4)


def test_a_keyframe_without_annotations_has_empty_arrays(source):
    sample = dict(source.nusc.get('sample', 'scene-0061 0'), anns=[])
    info = nuscenes_infos.agent_info(source.nusc, sample, np.eye(4))
    assert info['gt_boxes'].shape == (0, 7)
    assert info['gt_agent_fut_trajs'].shape == (0, 12)


# ---- ego


def test_the_ego_future_ends_with_the_scene(infos):
    first, last = infos['train'][0], infos['train'][3]
    assert first['gt_ego_fut_trajs'] == pytest.approx(
        np.array([[0, 4]] * 3 + [[0, 0]] * 3), abs=1e-5
    )
    assert first['gt_ego_fut_masks'].tolist() == [1, 1, 1, 0, 0, 0]
    assert not first['fut_valid_flag']
    assert last['gt_ego_fut_masks'].tolist() == [0] * 6
    # Before the scene the ego is taken to move as in its first step.
    assert first['gt_ego_his_trajs'] == pytest.approx(
        np.array([[0, 4], [0, 4]]), abs=1e-5
    )


def test_history_is_what_was_driven_and_extended_at_the_start():
    poses = poses_along([(0, 0), (1, 0), (3, 0), (6, 0)])
    steps = [ego_path(poses, i)['gt_ego_his_trajs'][:, 1] for i in range(4)]
    assert np.array(steps).tolist() == [[1, 1], [1, 1], [1, 2], [2, 3]]


def test_a_future_is_seen_from_where_the_vehicle_stands():
    """From heading north, going east is going right."""
    poses = poses_along([(0, 0), (2, 0)], yaws=[math.pi / 2, 0])
    path = ego_path(poses, 0)
    assert path['gt_ego_fut_trajs'][0] == pytest.approx([2, 0], abs=1e-6)


@pytest.mark.parametrize(
    'sideways, command',
    [
        (2.01, [1, 0, 0]),
        (1.99, [0, 0, 1]),
        (-1.99, [0, 0, 1]),
        (-2.01, [0, 1, 0]),
    ],
)
def test_the_command_is_where_the_last_position_lies(sideways, command):
    # Right of a vehicle that heads along x is -y.
    points = [(4.0 * i, -sideways * i / 6) for i in range(7)]
    path = ego_path(poses_along(points), 0)
    assert path['gt_ego_fut_cmd'].tolist() == command
    assert path['fut_valid_flag']


def test_a_scene_of_one_keyframe_stands_still():
    path = ego_path(poses_along([(5, 5)]), 0)
    assert not path['gt_ego_his_trajs'].any()
    assert not path['gt_ego_fut_trajs'].any()


def test_can_bus_takes_the_pose_before_and_the_rates_after(infos):
    """Messages come 19 ms before the keyframe and 1 ms after it."""
    can_bus = infos['train'][0]['can_bus']
    assert can_bus[:3] == pytest.approx([100, 50, 0])
    assert can_bus[3:7].tolist() == [1, 0, 0, 0]
    assert can_bus[7:10] == pytest.approx([1.0, 0.1, 9.8])
    assert can_bus[10:13] == pytest.approx([0, 0, 0.25])
    assert can_bus[13:16] == pytest.approx([9, 0, 0])
    assert can_bus[16:].tolist() == [0, 0]


def test_a_message_of_the_very_moment_is_not_after_it(root):
    can_bus = CanBus(root).numbers('scene-0061', START + 1000)
    assert can_bus[0] == pytest.approx(100.16)
    assert can_bus[7] == 2.0


def test_the_status_of_the_ego_is_that_of_the_files_in_use(infos):
    """vx 0, vy 4 m in 0.5 s; speed of the nearest message; Singapore."""
    status = infos['train'][0]['gt_ego_lcf_feat']
    steer = -2 * 0.5 / 2.588
    expected = [0, 8, 1.0, 0.1, 0, 4.084, 1.85, 9.0, steer]
    assert status == pytest.approx(expected, abs=1e-6)
    later = infos['train'][1]['gt_ego_lcf_feat']
    assert later[7] == pytest.approx(8 + 26)


def test_steering_is_flipped_where_traffic_keeps_left(root):
    can_bus = CanBus(root)
    assert can_bus.motion('scene-0061', START, True)[1] == -0.5
    assert can_bus.motion('scene-0061', START, False)[1] == 0.5


def test_without_can_bus_speed_comes_from_the_path():
    """1 and 3 m in two steps of 0.5 s; before them 1 m, after them none."""
    poses = poses_along([(0, 0), (1, 0), (4, 0)])
    speeds = [path_speed(ego_path(poses, i)) for i in range(3)]
    assert speeds == pytest.approx([1 + 1, 1 + 3, 3 + 0])
    assert not CanBus(None).numbers('scene-0061', START).any()
    assert CanBus(None).motion('scene-0061', START, True) == (None, 0.0)


def test_the_velocity_is_that_of_the_step_that_ends():
    ego2global = np.tile(np.eye(4), (3, 1, 1))
    ego2global[:, :2, 3] = [(0, 0), (1, 0), (4, 0)]
    level = [[1.0, 0, 0, 0]] * 3
    found = [
        ego_status(ego2global, level, i, np.zeros(18), 9.0, 0.0)[[1, 7]]
        for i in range(3)
    ]
    assert np.array(found).tolist() == [[2, 9], [2, 9], [6, 9]]


# ---- map


def test_map_lines_lie_where_the_map_has_them(infos):
    """The LiDAR at x = 100.9 looks along the middle of the road."""
    lines = infos['train'][0]['gt_map_lines']
    [divider] = lines['divider']
    assert divider.tolist() == [[0, -30], [0, 30]]
    sides = sorted(line[:, 0].mean() for line in lines['boundary'])
    assert sides == pytest.approx([-7, 7])
    for line in lines['boundary']:
        assert abs(line[:, 1]) == pytest.approx(29.8)
    [crossing] = lines['ped_crossing']
    assert np.array_equal(crossing[0], crossing[-1])
    assert crossing.min(0) == pytest.approx([-7, 5.1], abs=1e-5)
    assert crossing.max(0) == pytest.approx([7, 8.1], abs=1e-5)
    # One keyframe later everything has come 4 m closer.
    [crossing] = infos['train'][1]['gt_map_lines']['ped_crossing']
    assert crossing.min(0)[1] == pytest.approx(1.1, abs=1e-5)


def test_the_map_turns_with_the_vehicle():
    """Heading north-east, the border x = 7 is to the right and slanted."""
    empty = dict.fromkeys(('ped_crossing', 'road_segment', 'lane'), [])
    line = LineString([(0, 5), (0, 9)])
    wall = LocationMap(dict(empty, road_divider=[line], lane_divider=[]))
    pose = poses_along([(0, 0)], yaws=[math.radians(45)])[0]
    [found] = wall.lines(pose)['divider']
    half = math.sqrt(0.5)
    expected = [[-5 * half, 5 * half], [-9 * half, 9 * half]]
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_a_divider_that_leaves_and_returns_is_two_lines():
    empty = dict.fromkeys(('ped_crossing', 'road_segment', 'lane'), [])
    arch = LineString([(-10, 0), (-10, 40), (10, 40), (10, 0)])
    around = LocationMap(dict(empty, road_divider=[], lane_divider=[arch]))
    pose = poses_along([(0, 0)], yaws=[math.pi / 2])[0]
    found = around.lines(pose)['divider']
    assert sorted(line[:, 0].mean() for line in found) == [-10, 10]


def test_a_gap_of_no_width_between_areas_is_no_border():
    """Two blocks that touch, but for a triangle 1e-9 m wide."""
    layers = dict.fromkeys(
        ('ped_crossing', 'lane', 'road_divider', 'lane_divider'), []
    )
    edge = [(0, -5), (0, -2), (-1e-9, 0), (0, 2), (0, 5)]
    left = Polygon([(-5, -5), *edge, (-5, 5)])
    pose = poses_along([(0, 0)])[0]
    for right, count in ((box(0, -5, 5, 5), 1), (box(1, -5, 5, 5), 2)):
        shapes = dict(layers, road_segment=[left, right])
        found = LocationMap(shapes).lines(pose)['boundary']
        assert len(found) == count


def test_an_area_that_is_invalid_is_no_border():
    layers = dict.fromkeys(
        ('ped_crossing', 'lane', 'road_divider', 'lane_divider'), []
    )
    bow = Polygon([(-5, -5), (5, 5), (5, -5), (-5, 5)])
    square = box(-3, -3, 3, 3)
    pose = poses_along([(0, 0)])[0]
    found = [
        LocationMap(dict(layers, road_segment=[shape])).lines(pose)
        for shape in (bow, square)
    ]
    assert [len(lines['boundary']) for lines in found] == [0, 1]


def test_a_map_without_a_layer_is_refused():
    with pytest.raises(ValueError, match='found no lane_divider, ped_cross'):
        LocationMap(dict(road_divider=[], road_segment=[], lane=[]))


def test_a_damaged_map_is_named(root, tmp_path):
    folder = tmp_path / 'maps' / 'expansion'
    folder.mkdir(parents=True)
    (folder / 'singapore-onenorth.json').write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match='cannot read the map of singapore'):
        MapExpansion(tmp_path)['singapore-onenorth']
    with pytest.raises(FileNotFoundError, match='boston-seaport.json does'):
        MapExpansion(tmp_path)['boston-seaport']
