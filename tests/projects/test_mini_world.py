"""The drawn world: a valid nuScenes dataset whose parts agree."""

import hashlib
import importlib.util
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion
from shapely import LineString, Point, Polygon
from shapely.ops import unary_union

from projects.VAD.data.map_ground_truth import MapExpansion
from projects.VAD.mini_world import world as world_module
from projects.VAD.mini_world.ground import Ground
from projects.VAD.mini_world.lidar import sweep
from projects.VAD.mini_world.names import scene_names
from projects.VAD.mini_world.paths import Path as Way
from projects.VAD.mini_world.paths import connect
from projects.VAD.mini_world.pictures import Body, draw
from projects.VAD.mini_world.routes import Route, plan_route
from projects.VAD.mini_world.scene_files import LOCATION
from projects.VAD.mini_world.solids import PAINTS, solid
from projects.VAD.mini_world.tables import CATEGORIES, visibility_token
from projects.VAD.mini_world.town import Town, build_town
from projects.VAD.mini_world.tracks import Track
from projects.VAD.mini_world.traffic import (
    Traffic,
    Vehicle,
    Walker,
    conflicting_ways,
)
from projects.VAD.mini_world.world import write_world

ROOT = Path(__file__).resolve().parents[2]
SIZE = (240, 136)
# Length and width of the car and how far its middle is before the pose.
EGO = (4.084, 1.85, 1.4)


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return write_world(
        tmp_path_factory.mktemp('world') / 'mini', seed=0, scenes=2, size=SIZE
    )


@pytest.fixture(scope='module')
def nusc(root) -> NuScenes:
    return NuScenes('v1.0-mini', str(root), verbose=False)


@pytest.fixture(scope='module')
def nusc_map(root) -> NuScenesMap:
    return NuScenesMap(str(root), LOCATION)


@pytest.fixture(scope='module')
def town() -> Town:
    return build_town(np.random.default_rng([0, 0]))


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


def rectangle(x, y, yaw, length, width) -> Polygon:
    turn = np.array(
        [[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]]
    )
    unit = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    return Polygon(unit * (length, width) @ turn + (x, y))


def ego_box(pose: np.ndarray) -> Polygon:
    x, y, yaw = pose[:3]
    ahead = EGO[2] * np.array([math.cos(yaw), math.sin(yaw)])
    return rectangle(x + ahead[0], y + ahead[1], yaw, *EGO[:2])


# The tables.


def test_chains_of_samples_and_annotations_are_whole(nusc):
    assert [s['nbr_samples'] for s in nusc.scene] == [40, 40]
    for scene in nusc.scene:
        times = ego_poses(nusc, scene)[:, 3]
        np.testing.assert_allclose(np.diff(times), 0.5, atol=1e-6)
        assert len(times) == 40
    for instance in nusc.instance:
        token, count = instance['first_annotation_token'], 0
        before = ''
        while token:
            row = nusc.get('sample_annotation', token)
            assert row['instance_token'] == instance['token']
            assert row['prev'] == before
            before, token, count = token, row['next'], count + 1
        assert before == instance['last_annotation_token']
        assert count == instance['nbr_annotations']


def test_each_channel_is_one_chain_with_its_own_poses(nusc):
    sample = nusc.sample[3]
    rows = [nusc.get('sample_data', t) for t in sample['data'].values()]
    assert len(rows) == 7
    assert len({row['timestamp'] for row in rows}) == 7
    for row in rows:
        pose = nusc.get('ego_pose', row['ego_pose_token'])
        assert pose['timestamp'] == row['timestamp']
        following = nusc.get('sample_data', row['next'])
        assert following['channel'] == row['channel']
        assert following['sample_token'] == sample['next']


def test_pictures_have_the_size_of_the_table(nusc):
    for token in nusc.sample[0]['data'].values():
        row = nusc.get('sample_data', token)
        path = Path(nusc.dataroot) / row['filename']
        if row['channel'].startswith('CAM'):
            assert cv2.imread(str(path)).shape == (*SIZE[::-1], 3)
            assert (row['width'], row['height']) == SIZE


def test_categories_are_at_the_rows_that_vad_counts():
    assert len(CATEGORIES) == 32
    vehicles = {n for n in CATEGORIES if n.startswith('vehicle.')}
    # SPEC of VAD's planning metric: 14..23 vehicles, 2..8 people.
    assert set(CATEGORIES[14:24]) == vehicles - {'vehicle.ego'}
    assert all(n.startswith('human.') for n in CATEGORIES[2:9])
    assert CATEGORIES.index('vehicle.car') == 17


def test_attributes_follow_the_speed(nusc):
    seen = set()
    for row in nusc.sample_annotation:
        names = [
            nusc.get('attribute', t)['name'] for t in row['attribute_tokens']
        ]
        kind = category_to_detection_name(row['category_name'])
        if kind in ('barrier', 'traffic_cone'):
            assert names == []
            continue
        assert len(names) == 1
        seen.add(names[0])
        speed = np.linalg.norm(nusc.box_velocity(row['token'])[:2])
        if names[0] == 'vehicle.parked':
            # Of one sighting alone the velocity is not known.
            assert not speed > 1e-3
        if names[0] in ('vehicle.moving', 'pedestrian.moving'):
            assert not speed < 0.05
    assert {'vehicle.moving', 'vehicle.parked', 'pedestrian.moving'} <= seen


def test_a_frame_has_six_to_thirty_objects(nusc):
    counts = [len(sample['anns']) for sample in nusc.sample]
    assert min(counts) >= 4
    assert 6 <= np.mean(counts) <= 25
    assert max(counts) <= 40


@pytest.mark.parametrize('count', [1, 2, 5, 10, 12, 100])
def test_the_devkit_knows_every_scene_name(count):
    version, names = scene_names(count)
    splits = create_splits_scenes()
    mini = version == 'v1.0-mini'
    assert mini == (count <= 10)
    train = splits['mini_train' if mini else 'train']
    val = splits['mini_val' if mini else 'val']
    assert len({name for name, _ in names}) == count
    assert all(name in (val if held else train) for name, held in names)
    held_out = sum(held for _, held in names)
    assert held_out == (max(1, round(count / 5)) if count > 1 else 0)


def test_ten_scenes_are_those_of_the_devkits_mini_splits():
    splits = create_splits_scenes()
    names = [name for name, _ in scene_names(10)[1]]
    assert names == splits['mini_train'] + splits['mini_val']


def test_detection_evaluation_finds_the_truth_right(nusc, tmp_path):
    results = {}
    for scene in nusc.scene:
        if scene['name'] not in create_splits_scenes()['mini_val']:
            continue
        token = scene['first_sample_token']
        while token:
            sample = nusc.get('sample', token)
            rows = [nusc.get('sample_annotation', t) for t in sample['anns']]
            # The devkit leaves boxes without a point out of the truth.
            results[token] = [
                _as_result(nusc, row) for row in rows if row['num_lidar_pts']
            ]
            token = sample['next']
    path = tmp_path / 'results.json'
    meta = dict.fromkeys(
        [f'use_{n}' for n in ('camera', 'lidar', 'radar', 'map', 'external')],
        False,
    )
    path.write_text(json.dumps(dict(meta=meta, results=results)))
    config = config_factory('detection_cvpr_2019')
    out = str(tmp_path / 'out')
    evaluation = DetectionEval(
        nusc, config, str(path), 'mini_val', out, verbose=False
    )
    metrics, _ = evaluation.evaluate()
    assert metrics.mean_dist_aps['car'] > 0.99
    assert metrics.mean_dist_aps['pedestrian'] > 0.99


def _as_result(nusc: NuScenes, row: dict) -> dict:
    names = [nusc.get('attribute', t)['name'] for t in row['attribute_tokens']]
    velocity = np.nan_to_num(nusc.box_velocity(row['token'])[:2]).tolist()
    return dict(
        sample_token=row['sample_token'],
        translation=row['translation'],
        size=row['size'],
        rotation=row['rotation'],
        velocity=velocity,
        detection_name=category_to_detection_name(row['category_name']),
        detection_score=0.9,
        attribute_name=names[0] if names else '',
    )


# The map and the CAN bus.


def test_the_map_api_answers_around_the_ego(nusc, nusc_map):
    layers = ['road_segment', 'lane', 'road_divider', 'lane_divider']
    layers.append('ped_crossing')
    found = dict.fromkeys(layers, 0)
    for x, y, yaw, _ in ego_poses(nusc, nusc.scene[0])[::4]:
        patch = (x, y, 60.0, 30.0)
        geometry = nusc_map.get_map_geom(patch, math.degrees(yaw), layers)
        for name, shapes in geometry:
            found[name] += sum(not shape.is_empty for shape in shapes)
        assert nusc_map.layers_on_point(x, y)['road_segment']
    assert all(found.values()), found


def test_roads_and_lanes_join_without_slits(nusc_map):
    shapes = [
        nusc_map.extract_polygon(record['polygon_token'])
        for layer in ('road_segment', 'lane')
        for record in getattr(nusc_map, layer)
    ]
    assert all(shape.is_valid for shape in shapes)
    union = unary_union(shapes)
    tokens = nusc_map.drivable_area[0]['polygon_tokens']
    area = unary_union([nusc_map.extract_polygon(t) for t in tokens])
    assert union.geom_type == 'Polygon'
    assert len(union.interiors) == len(area.interiors)
    assert union.symmetric_difference(area).area < 0.5


def test_boundaries_that_vad_learns_are_kerbs(nusc, root, town):
    lines = MapExpansion(root)[LOCATION]
    kerbs = town.drivable.boundary
    count = 0
    for scene in nusc.scene:
        for x, y, yaw, _ in ego_poses(nusc, scene)[::2]:
            heading = yaw - math.pi / 2
            cos, sin = math.cos(heading), math.sin(heading)
            pose = np.eye(4)
            pose[:2, :2] = [[cos, -sin], [sin, cos]]
            pose[:2, 3] = x, y
            for line in lines.lines(pose)['boundary']:
                points = line @ pose[:2, :2].T + (x, y)
                assert LineString(points).distance(Point(x, y)) > 1.0
                assert kerbs.buffer(0.01).contains(LineString(points))
                count += 1
    assert count > 80


def test_lanes_lead_into_each_other(nusc_map):
    for way in nusc_map.lane_connector[:40]:
        token = way['token']
        path = nusc_map.discretize_lanes([token], 0.5)[token]
        for lane in nusc_map.get_outgoing_lane_ids(token):
            following = nusc_map.discretize_lanes([lane], 0.5)[lane]
            assert token in nusc_map.get_incoming_lane_ids(lane)
            gap = np.subtract(following[0][:2], path[-1][:2])
            assert np.linalg.norm(gap) < 1e-3
            turn = math.remainder(following[0][2] - path[-1][2], 2 * math.pi)
            assert abs(turn) < 1e-3


def test_the_mask_covers_the_ego_and_not_the_grass(nusc):
    mask = nusc.map[0]['mask']
    for scene in nusc.scene:
        poses = ego_poses(nusc, scene)
        assert mask.is_on_mask(poses[:, 0], poses[:, 1]).all()
    assert not mask.is_on_mask([5.0], [5.0]).any()


def test_can_bus_speed_and_yaw_rate_are_those_of_the_poses(nusc, root):
    bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        poses = ego_poses(nusc, scene)
        messages = bus.get_messages(scene['name'], 'pose')
        times = np.array([m['utime'] for m in messages]) / 1e6
        assert np.allclose(np.diff(times), 0.02, atol=1e-5)
        speed = np.array([m['vel'][0] for m in messages])
        turning = np.array([m['rotation_rate'][2] for m in messages])
        for before, after in zip(poses, poses[1:], strict=False):
            inside = (times >= before[3] - 1e-4) & (times <= after[3] + 1e-4)
            metres = np.linalg.norm(after[:2] - before[:2])
            driven = np.trapz(speed[inside], times[inside])
            assert driven == pytest.approx(metres, abs=0.08)
            turned = math.remainder(after[2] - before[2], 2 * math.pi)
            summed = np.trapz(turning[inside], times[inside])
            assert summed == pytest.approx(turned, abs=0.01)


def test_the_odometer_counts_the_driven_metres(nusc, root):
    bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        messages = bus.get_messages(scene['name'], 'zoe_veh_info')
        metres = np.array([m['odom'] for m in messages])
        speed = np.array([m['odom_speed'] for m in messages]) / 3.6
        times = np.array([m['utime'] for m in messages]) / 1e6
        assert (np.diff(metres) >= 0).all()
        driven = np.trapz(speed, times)
        assert metres[-1] == pytest.approx(driven, rel=0.01)


def test_steering_is_positive_to_the_right(nusc, root):
    bus = NuScenesCanBus(str(root))
    name = nusc.scene[0]['name']
    steering = bus.get_messages(name, 'steeranglefeedback')
    imu = bus.get_messages(name, 'ms_imu')
    wheel = np.array([m['value'] for m in steering])
    turning = np.array([m['rotation_rate'][2] for m in imu])
    clear = np.abs(turning) > 0.1
    assert clear.any()
    assert (np.sign(wheel[clear]) == -np.sign(turning[clear])).all()


def test_every_can_message_can_be_read_and_the_route_is_driven(nusc, root):
    bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        for name in bus.all_messages:
            assert bus.get_messages(scene['name'], name)
    assert bus.list_misaligned_routes(max_misalignment=1.5) == []


# The drive.


def test_the_ego_turns_brakes_and_drives_on(nusc):
    for scene in nusc.scene:
        poses = ego_poses(nusc, scene)
        speed = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1) * 2
        turned = np.abs(np.diff(np.unwrap(poses[:, 2]))).sum()
        slowest = int(speed.argmin())
        assert turned > 1.0
        assert speed[: slowest + 1].max() > speed.min() + 2.5
        assert speed[slowest:].max() > speed.min() + 2
        assert speed.max() < 9.5


def test_constant_velocity_fails_by_more_than_a_metre(nusc):
    for scene in nusc.scene:
        places = ego_poses(nusc, scene)[:, :2]
        now, before = places[1:-6], places[:-7]
        errors = [
            np.linalg.norm(
                places[1 + k : len(places) - 6 + k] - now - k * (now - before),
                axis=1,
            )
            for k in range(1, 7)
        ]
        assert np.mean(errors[-1]) > 2.0
        assert np.mean(errors) > 1.0


def test_acceleration_changes_smoothly(root, nusc):
    bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        messages = bus.get_messages(scene['name'], 'pose')
        acceleration = np.array([m['accel'][0] for m in messages])
        turning = np.array([m['rotation_rate'][2] for m in messages])
        assert np.abs(np.diff(acceleration) / 0.02).max() < 8.0
        assert np.abs(np.diff(turning) / 0.02).max() < 1.5
        assert acceleration.min() > -5.0


def test_the_ego_never_leaves_the_road_nor_touches_anything(nusc, nusc_map):
    tokens = nusc_map.drivable_area[0]['polygon_tokens']
    road = unary_union([nusc_map.extract_polygon(t) for t in tokens])
    for scene in nusc.scene:
        token = scene['first_sample_token']
        for pose in ego_poses(nusc, scene):
            own = ego_box(pose)
            assert road.contains(own)
            sample = nusc.get('sample', token)
            for box in (nusc.get_box(t) for t in sample['anns']):
                yaw = box.orientation.yaw_pitch_roll[0]
                width, length, _ = box.wlh
                other = rectangle(*box.center[:2], yaw, length, width)
                assert not own.intersects(other)
            token = sample['next']


def test_the_ego_stays_near_the_middle_of_a_lane(nusc, nusc_map):
    for pose in ego_poses(nusc, nusc.scene[0])[::6]:
        lane = nusc_map.get_closest_lane(*pose[:2], radius=3)
        points = np.array(nusc_map.discretize_lanes([lane], 0.2)[lane])
        away = np.linalg.norm(points[:, :2] - pose[:2], axis=1)
        assert away.min() < 0.4


def test_validation_scenes_drive_where_no_training_scene_does(nusc, town):
    for scene in nusc.scene:
        held_out = scene['name'] in create_splits_scenes()['mini_val']
        allowed = [town.is_held_out(n) for n in range(len(town.nodes))]
        for pose in ego_poses(nusc, scene):
            away = np.linalg.norm(town.nodes - pose[:2], axis=1)
            assert allowed[int(away.argmin())] == held_out


# What the sensors see.


def test_lidar_points_inside_each_box_are_counted(nusc):
    hit = 0
    for sample in nusc.sample[::5]:
        data = sample['data']['LIDAR_TOP']
        path, boxes, _ = nusc.get_sample_data(data)
        points = LidarPointCloud.from_file(path).points[:3]
        assert points.shape[1] > 3000
        for box in boxes:
            row = nusc.get('sample_annotation', box.token)
            count = int(points_in_box(box, points).sum())
            assert count == row['num_lidar_pts']
            hit += count > 0
    assert hit > 50


def test_boxes_stand_on_the_ground(nusc):
    for row in nusc.sample_annotation:
        assert row['translation'][2] == pytest.approx(
            row['size'][2] / 2, abs=1e-4
        )


def test_pedestrians_are_drawn_where_their_boxes_are(nusc):
    hits = []
    for sample in nusc.sample:
        for name, token in sample['data'].items():
            if not name.startswith('CAM'):
                continue
            path, boxes, matrix = nusc.get_sample_data(token)
            picture = None
            for box in boxes:
                row = nusc.get('sample_annotation', box.token)
                depth = box.center[2]
                clear = row['visibility_token'] == '4' and 3 < depth < 18
                if not (clear and 'pedestrian' in box.name):
                    continue
                # The chest: camera y points down.
                chest = box.center + (0, -0.17 * box.wlh[2], 0)
                u, v, _ = matrix @ chest / depth
                if not (8 < u < SIZE[0] - 8 and 0 < v < SIZE[1]):
                    continue
                picture = cv2.imread(path) if picture is None else picture
                hits.append(_is_magenta(picture[int(v), int(u)]))
    assert len(hits) > 20
    assert np.mean(hits) > 0.93


def _is_magenta(pixel: np.ndarray) -> bool:
    blue, green, red = (int(c) for c in pixel)
    return min(blue, red) > green + 25


FLAT = Ground(np.full((400, 400, 3), 90, np.uint8), (-20.0, 20.0))
EGO_AT_ORIGIN = np.array([0.0, 0.0, 0.0])


def body(kind: str, x: float, y: float, size, yaw: float = 0.0) -> Body:
    pose = np.array([x, y, yaw])
    return Body(pose, np.array(size, dtype=float), solid(kind, 0))


def test_a_wall_hides_what_stands_behind_it():
    cone = body('traffic_cone', 14.0, 0.0, (0.5, 0.5, 1.0))
    wall = body('house', 9.0, 0.0, (1.0, 6.0, 3.0))
    half = body('house', 9.0, 3.0, (1.0, 6.0, 3.0))
    for order in ((0, 1), (1, 0)):
        bodies = [(cone, wall)[i] for i in order]
        view = draw('CAM_FRONT', EGO_AT_ORIGIN, FLAT, bodies, (400, 225))
        assert view.shown[order.index(0)] == 0
        assert view.whole[order.index(0)] > 50
    bodies = [cone, half]
    view = draw('CAM_FRONT', EGO_AT_ORIGIN, FLAT, bodies, (400, 225))
    assert 0.2 < view.shown[0] / view.whole[0] < 0.8
    view = draw('CAM_FRONT', EGO_AT_ORIGIN, FLAT, [cone], (400, 225))
    assert view.shown[0] == view.whole[0]
    blue, green, red = view.picture[125, 200].astype(int)
    assert red > 150 > blue


def test_a_long_wall_in_front_is_painted_last():
    # The wall's middle is farther away than the car behind its near end.
    wall = body('house', 37.0, 2.5, (60.0, 1.0, 4.0))
    car = body('car', 24.0, 5.5, (4.5, 1.9, 1.6))
    view = draw('CAM_FRONT', EGO_AT_ORIGIN, FLAT, [wall, car], (400, 225))
    assert view.whole[1] > 0
    assert view.shown[1] == 0


def test_a_car_shows_its_lamps_to_those_in_front_of_it():
    coming = body('car', 10.0, 0.0, (4.5, 1.9, 1.6), yaw=math.pi)
    going = body('car', 10.0, 0.0, (4.5, 1.9, 1.6))
    size = (400, 225)
    bright = []
    for car in (coming, going):
        view = draw('CAM_FRONT', EGO_AT_ORIGIN, FLAT, [car], size)
        blue, green, red = view.picture.astype(int).transpose(2, 0, 1)
        lamps = (np.minimum(blue, green) > 110) & (red > blue + 10)
        bright.append(int(lamps.sum()))
    assert bright[0] > 30 > bright[1]


def test_something_beside_the_car_is_seen_by_the_camera_of_that_side():
    cone = body('traffic_cone', 1.0, -6.0, (0.5, 0.5, 1.0))
    seen = {
        name: draw(name, EGO_AT_ORIGIN, FLAT, [cone], (400, 225)).shown[0] > 0
        for name in ('CAM_FRONT_LEFT', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')
    }
    assert seen == {
        'CAM_FRONT_LEFT': False,
        'CAM_BACK_LEFT': False,
        'CAM_BACK_RIGHT': True,
    }


def test_every_class_has_a_colour_of_its_own():
    first = {kind: np.array(paints[0]) for kind, paints in PAINTS.items()}
    kinds = list(first)
    for i, kind in enumerate(kinds):
        for other in kinds[i + 1 :]:
            assert np.abs(first[kind] - first[other]).max() >= 30


def test_lidar_sees_the_wall_and_not_the_box_behind_it():
    wall = [10.0, 0.0, 0.0, 1.0, 8.0, 4.0]
    box = [15.0, 0.0, 0.0, 2.0, 2.0, 1.5]
    _, hit = sweep(EGO_AT_ORIGIN, 1.84, 0.0, np.array([wall, box]))
    assert (hit == 0).sum() > 100
    assert (hit == 1).sum() == 0
    points, hit = sweep(EGO_AT_ORIGIN, 1.84, 0.0, np.array([box]))
    # y points forward: the near side is 14 m ahead.
    assert points[hit == 0][:, 1].min() == pytest.approx(14.02, abs=0.01)
    assert points[hit < 0][:, 2] == pytest.approx(-1.84, abs=1e-4)


def test_visibility_tokens_are_nuscenes_bins():
    tokens = [visibility_token(s) for s in (0.0, 0.4, 0.41, 0.7, 0.9, 1.0)]
    assert tokens == ['1', '1', '2', '3', '4', '4']


# Paths and traffic.


def test_a_quarter_turn_has_the_radius_it_has_room_for():
    way = connect((0.0, 0.0, 0.0), (12.0, -10.0, -math.pi / 2))
    assert way.pieces[1] == pytest.approx((5 * math.pi, -0.1))
    np.testing.assert_allclose(way.end, (12.0, -10.0, -math.pi / 2))


def test_an_offset_arc_keeps_its_centre():
    arc = Way((0.0, 0.0, 0.0), ((5 * math.pi, 0.1),))
    inner = arc.offset(2.0)
    assert inner.length == pytest.approx(4 * math.pi)
    np.testing.assert_allclose(inner.end[:2], (8.0, 10.0), atol=1e-9)
    back = inner.reversed()
    np.testing.assert_allclose(back.end[:2], inner.start[:2], atol=1e-9)


def test_many_poses_at_once_are_the_single_ones():
    way = Way((1.0, 2.0, 0.3), ((4.0, 0.0), (6.0, 0.1), (5.0, -0.05)))
    distances = np.array([-1.0, 0.0, 3.0, 4.0, 7.0, 10.0, 14.9, 15.0, 17.0])
    expected = [way.at(d) for d in distances]
    np.testing.assert_allclose(way.poses(distances), expected, atol=1e-9)


def straight_drive(town: Town) -> Route:
    """A route whose first junction is behind a crossing."""
    for i, lane in enumerate(town.lanes):
        for way in town.ways_from(i):
            target = town.connectors[way].target
            for following in town.ways_from(target):
                last = town.connectors[following].target
                lanes, ways = [i, target, last], [way, following]
                route = plan_route(town, lanes, ways)
                first = route.crossings[:1]
                if first and first[0][0] < lane.path.length:
                    return route
    raise LookupError('the town has no crossing before a junction')


def test_a_driver_waits_for_a_pedestrian_and_then_drives_on(town):
    route = straight_drive(town)
    begin, end, number = route.crossings[0]
    axis = town.crossings[number].axis
    way = axis[1] - axis[0]
    start = (*axis[0], math.atan2(way[1], way[0]))
    path = Way(start, ((float(np.linalg.norm(way)), 0.0),))
    size = (4.5, 1.9, 1.6)

    def drive(walkers):
        car = Vehicle('car', size, 0, route, begin - 20.0, 7.0, 5.0)
        traffic = Traffic(town, [car], walkers, set())
        return traffic.run(0.0, 15.0)

    walker = Walker((0.7, 0.7, 1.8), 0, path, 1.3, 0.1)
    walker.crossing, walker.road = number, (0.0, path.length)
    driven, walked = drive([walker])
    front = driven[:, 0] + size[0] / 2
    # While the pedestrian has not passed the lane's middle by a metre.
    middle = route.pose(np.array(begin + 1.6))[:2]
    lane = (middle - axis[0]) @ way / np.linalg.norm(way)
    before = walked[:, 0] < min(lane + 1.0, path.length - 0.2)
    assert before.sum() > 10
    assert front[before].max() < begin
    assert front[-1] > end
    free, _ = drive([])
    assert free[before.nonzero()[0][-1], 0] > driven[before, 0].max() + 1


def test_nobody_runs_into_a_slower_leader(town):
    route = straight_drive(town)
    size = (4.5, 1.9, 1.6)
    back = Vehicle('car', size, 0, route, 3.0, 9.0, 8.0)
    lead = Vehicle('car', size, 0, route, 18.0, 3.0, 2.0)
    driven, _ = Traffic(town, [back, lead], [], set()).run(0.0, 12.0)
    assert (driven[:, 1] - driven[:, 0] > size[0] + 0.8).all()
    assert driven[-1, 0] > 20


def test_crossing_ways_exclude_each_other_and_parallel_ones_do_not(town):
    pairs = conflicting_ways(town)
    points = [c.path.sample(0.5)[:, :2] for c in town.connectors]
    assert pairs
    for i, j in list(pairs)[:50]:
        apart = np.linalg.norm(points[i][:, None] - points[j], axis=-1)
        assert apart.min() < 3.0
        assert (j, i) in pairs
        assert town.connectors[i].source != town.connectors[j].source


def test_an_object_is_between_its_samples_in_between():
    poses = np.array([[0.0, 0, 0], [1.0, 0, 0.2]])
    track = Track('car', (4, 2, 1), 0, poses, np.array([10.0, 10.0]))
    np.testing.assert_allclose(track.at(-1.45), [0.5, 0, 0.1], atol=1e-9)


# The command.


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_the_seed_decides_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, 'FRAMES', 3)
    folders = [tmp_path / name for name in 'abc']
    for folder, seed in zip(folders, (0, 0, 3), strict=True):
        write_world(folder, seed, 1, (48, 27))
    first, same, other = (digests(folder) for folder in folders)
    assert len(first) == 13 + 3 * 7 + 8 + 3
    assert first == same
    changed = [
        name for name, digest in first.items() if other.get(name) != digest
    ]
    assert any(name.endswith('sample_annotation.json') for name in changed)
    assert any(name.endswith('.jpg') for name in changed)
    assert 'maps/expansion/boston-seaport.json' in changed


def test_two_processes_draw_the_same_bytes_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, 'FRAMES', 2)
    for name, workers in (('one', 1), ('two', 2)):
        write_world(tmp_path / name, 0, 3, (32, 18), workers=workers)
    assert digests(tmp_path / 'one') == digests(tmp_path / 'two')


@pytest.fixture
def command():
    spec = importlib.util.spec_from_file_location(
        'make_mini_world', ROOT / 'tools/make_mini_world.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_folder_with_files_is_kept_unless_forced(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(world_module, 'FRAMES', 2)
    out = tmp_path / 'world'
    out.mkdir()
    (out / 'mine').write_text('keep')
    argv = [str(out), '--scenes', '1', '--image-size', '32x18']
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    assert 'is not empty' in capsys.readouterr().err
    assert (out / 'mine').read_text() == 'keep'
    command.main([*argv, '--force'])
    assert not (out / 'mine').exists()
    assert (out / 'v1.0-mini' / 'sample.json').is_file()
    assert [p.name for p in tmp_path.iterdir()] == ['world']


@pytest.mark.parametrize(
    'options, text',
    [
        (['--scenes', '0'], 'a world of 0 scenes'),
        (['--scenes', '5000'], 'a world of 5000 scenes'),
        (['--image-size', '0x9'], 'pixels'),
        (['--image-size', 'big'], 'WxH'),
        (['--seed', '-1'], '--seed'),
        (['--image-size', '4001x16'], 'pixels'),
    ],
)
def test_wrong_options_are_said_in_one_line(
    command, tmp_path, capsys, options, text
):
    with pytest.raises(SystemExit) as stop:
        command.main([str(tmp_path / 'world'), *options])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_no_half_world(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(world_module, '_write_map', fail)
    monkeypatch.setattr(world_module, 'FRAMES', 1)
    with pytest.raises(OSError, match='disk full'):
        write_world(tmp_path / 'world', 0, 1, (32, 18))
    assert list(tmp_path.iterdir()) == []


def test_folders_beside_the_world_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, 'FRAMES', 1)
    (tmp_path / 'world').mkdir()
    for name in ('world.tmp', 'world.old'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'mine').write_text('keep')
    write_world(tmp_path / 'world', 0, 1, (32, 18))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['world', 'world.old', 'world.tmp']
    for name in ('world.tmp', 'world.old'):
        assert (tmp_path / name / 'mine').read_text() == 'keep'
