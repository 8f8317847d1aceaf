"""The map of the drawn world: roads that join, lanes that lead on, kerbs."""

import math

import numpy as np
from drawn_scenes import ego_poses
from shapely import LineString, Point
from shapely.ops import unary_union

from projects.VAD.data.map_ground_truth import MapExpansion
from projects.VAD.mini_world.scene_files import LOCATION


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


def test_boundaries_that_vad_learns_are_kerbs(nusc, drawn_world, town):
    lines = MapExpansion(drawn_world)[LOCATION]
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
