"""The ego's drive through the drawn world, and what its CAN bus says."""

import math

import numpy as np
import pytest
from drawn_scenes import ego_poses
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.utils.splits import create_splits_scenes
from shapely import Polygon
from shapely.ops import unary_union

# Length and width of the car and how far its middle is before the pose.
EGO = (4.084, 1.85, 1.4)


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


# The CAN bus.


def test_can_bus_speed_and_yaw_rate_are_those_of_the_poses(nusc, drawn_world):
    bus = NuScenesCanBus(str(drawn_world))
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


def test_the_odometer_counts_the_driven_metres(nusc, drawn_world):
    bus = NuScenesCanBus(str(drawn_world))
    for scene in nusc.scene:
        messages = bus.get_messages(scene['name'], 'zoe_veh_info')
        metres = np.array([m['odom'] for m in messages])
        speed = np.array([m['odom_speed'] for m in messages]) / 3.6
        times = np.array([m['utime'] for m in messages]) / 1e6
        assert (np.diff(metres) >= 0).all()
        driven = np.trapz(speed, times)
        assert metres[-1] == pytest.approx(driven, rel=0.01)


def test_steering_is_positive_to_the_right(nusc, drawn_world):
    bus = NuScenesCanBus(str(drawn_world))
    name = nusc.scene[0]['name']
    steering = bus.get_messages(name, 'steeranglefeedback')
    imu = bus.get_messages(name, 'ms_imu')
    wheel = np.array([m['value'] for m in steering])
    turning = np.array([m['rotation_rate'][2] for m in imu])
    clear = np.abs(turning) > 0.1
    assert clear.any()
    assert (np.sign(wheel[clear]) == -np.sign(turning[clear])).all()


def test_every_can_message_can_be_read_and_the_route_is_driven(
    nusc, drawn_world
):
    bus = NuScenesCanBus(str(drawn_world))
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


def test_acceleration_changes_smoothly(drawn_world, nusc):
    bus = NuScenesCanBus(str(drawn_world))
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
