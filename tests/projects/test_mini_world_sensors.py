"""What the drawn world's cameras and LiDAR see of a few bodies."""

import math

import numpy as np
import pytest

from projects.VAD.mini_world.ground import Ground
from projects.VAD.mini_world.lidar import sweep
from projects.VAD.mini_world.pictures import Body, draw
from projects.VAD.mini_world.solids import PAINTS, solid
from projects.VAD.mini_world.tables import visibility_token

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
