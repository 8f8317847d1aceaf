"""Paths, and who waits for whom in the drawn world's traffic."""

import math

import numpy as np
import pytest

from projects.VAD.mini_world.paths import Path as Way
from projects.VAD.mini_world.paths import connect
from projects.VAD.mini_world.routes import Route, plan_route
from projects.VAD.mini_world.town import Town
from projects.VAD.mini_world.tracks import Track
from projects.VAD.mini_world.traffic import (
    Traffic,
    Vehicle,
    Walker,
    conflicting_ways,
)


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
