"""One frame of the mini world: quick, whole, and true to its pictures."""

import itertools
import math
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely.geometry import Polygon

from projects.VAD.data.info_file import load_info_file
from projects.VAD.data.keyframe_dataset import (
    CAMERAS,
    CLASSES,
    NuScenesKeyframeDataset,
)
from projects.VAD.drawing.layers import box_corners
from projects.VAD.mini_world import keyframe as keyframe_module
from projects.VAD.mini_world import scene_files
from projects.VAD.mini_world.keyframe import write_keyframe
from projects.VAD.mini_world.pictures import draw
from projects.VAD.mini_world.rig import DELAYS

SMALL = (400, 225)
# The frame after the two of its past.
TIME = 1.0


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> tuple[Path, tuple]:
    """A keyframe's info file, and what its pictures were drawn from."""
    seen = []
    write_scene = keyframe_module.write_scene

    def spy(world, scene, *args):
        write_scene(world, scene, *args)
        seen.append((world, scene))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyframe_module, 'write_scene', spy)
        folder = tmp_path_factory.mktemp('keyframe')
        return write_keyframe(folder, 1, SMALL), seen[0]


def entry_of(path: Path) -> dict:
    (entry,) = load_info_file(path)['data_list']
    return entry


def test_it_is_quick_and_repeats(made, tmp_path):
    path, _ = made
    start = time.process_time()
    again = write_keyframe(tmp_path, 1, SMALL)
    assert time.process_time() - start < 10
    names = {entry.name for entry in path.parent.iterdir()}
    assert len(names) == 6 + 1 + 1
    assert {entry.name for entry in tmp_path.iterdir()} == names
    for name in names:
        same = (path.parent / name).read_bytes()
        assert (tmp_path / name).read_bytes() == same
    other = write_keyframe(tmp_path, 2, SMALL)
    assert other.name == 'synthetic_0002.pkl'
    assert other.read_bytes() != again.read_bytes()


def test_it_is_whole(made):
    path, _ = made
    dataset = NuScenesKeyframeDataset(str(path), test_mode=True)
    results = dataset.get_data_info(0)
    for picture in results['img_path']:
        assert cv2.imread(picture).shape == (225, 400, 3)
    points = np.fromfile(results['lidar_path'], np.float32).reshape(-1, 5)
    assert len(points) > 3000
    ego = results['gt_ego']
    assert ego['fut_masks'].tolist() == [1] * 6
    assert ego['fut_valid_flag']
    # It has a past and has been moving.
    assert (np.linalg.norm(ego['his_trajs'], axis=1) > 0.5).all()
    assert results['can_bus'][:3].tolist() != [0, 0, 0]
    labels = results['gt_map']['labels'].tolist()
    assert {0, 2} <= set(labels)
    futures = results['all_attr_labels'][:, 12:18]
    assert (futures.sum(1) > 0).all()


def test_the_size_is_that_of_the_pictures(tmp_path):
    entry = entry_of(write_keyframe(tmp_path, 1, (64, 36)))
    camera = entry['images']['CAM_FRONT']
    assert cv2.imread(str(tmp_path / camera['img_path'])).shape[:2] == (36, 64)
    # 1260 pixels of 1600 pixels' width.
    assert camera['cam2img'][0][0] == pytest.approx(1260 * 64 / 1600)
    with pytest.raises(ValueError, match='to be 8x9 pixels'):
        write_keyframe(tmp_path / 'none', 1, (8, 9))
    assert not (tmp_path / 'none').exists()


def test_objects_and_ego_do_not_overlap(made, tmp_path):
    paths = [made[0]]
    paths += [write_keyframe(tmp_path, seed, (64, 36)) for seed in (0, 3)]
    for path in paths:
        shapes = []
        for instance in entry_of(path)['instances']:
            x, y, _, length, width, _, yaw = instance['bbox_3d']
            unit = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
            cos, sin = math.cos(yaw), math.sin(yaw)
            turned = unit * [length, width] @ [[cos, sin], [-sin, cos]]
            shapes.append(Polygon(turned + [x, y]))
        assert len(shapes) > 8
        # 4.084 x 1.85 m, its middle 0.46 m ahead of the LiDAR.
        left, rear = -0.925, 0.46 - 2.042
        ends = [(left, rear), (-left, rear), (-left, rear + 4.084)]
        shapes.append(Polygon([*ends, (left, rear + 4.084)]))
        for first, second in itertools.combinations(shapes, 2):
            assert first.intersection(second).area < 1e-6


def in_front(corners: np.ndarray, near: float) -> np.ndarray:
    """Corners of the part of a box before a plane, and some points within."""
    ahead = corners[corners[:, 2] > near]
    behind = corners[corners[:, 2] <= near]
    if not len(behind) or not len(ahead):
        return ahead
    share = (near - behind[:, None, 2]) / (ahead[:, 2] - behind[:, None, 2])
    cut = behind[:, None] + share[..., None] * (ahead - behind[:, None])
    return np.concatenate([ahead, cut.reshape(-1, 3)])


@pytest.mark.parametrize('name', CAMERAS)
def test_boxes_cover_what_is_drawn_of_the_objects(made, name):
    """Objects change the picture inside of their projected boxes only."""
    path, (world, scene) = made
    bodies = scene_files._bodies(world.town, scene, TIME)
    objects, houses = np.split(np.array(bodies), [len(scene.tracks)])
    at = scene.motion.at(TIME)[:2]
    near = [
        body
        for body in objects
        if np.linalg.norm(body.pose[:2] - at) < scene_files.ANNOTATED_METRES
    ]
    xy = scene.motion.at(TIME)[:2]
    ground = scene_files.draw_ground(
        world.town, xy - 95, xy + 95, np.random.default_rng(0)
    )

    def picture(bodies):
        # The camera's own moment, and the objects at that of the boxes.
        ego = scene.motion.at(TIME + DELAYS[name])
        return draw(name, ego, ground, bodies, SMALL).picture

    dataset = NuScenesKeyframeDataset(str(path), test_mode=True)
    results = dataset.get_data_info(0)
    assert len(near) >= len(results['all_gt_labels_3d'])
    matrix = results['lidar2img'][CAMERAS.index(name)]
    corners = box_corners(results['all_gt_bboxes_3d'])
    corners = np.concatenate([corners, np.ones((len(corners), 8, 1))], -1)
    covered = np.zeros(SMALL[::-1], dtype=np.uint8)
    for corner in corners @ matrix.T:
        corner = in_front(corner[:, :3], 0.3)
        if len(corner):
            pixels = corner[:, :2] / corner[:, 2:3]
            pixels = np.clip(np.round(pixels), -9000, 9000)
            hull = cv2.convexHull(pixels.astype(np.int32))
            cv2.fillConvexPoly(covered, hull, 1)
    tight = covered > 0
    covered = cv2.dilate(covered, np.ones((5, 5), np.uint8)) > 0
    houses = list(houses)
    changed = (picture([*near, *houses]) != picture(houses)).any(-1)
    # What shows as the soft edge of the last column alone is not annotated.
    assert not (changed & ~covered)[:, 1:-1].any()
    if tight.sum() > 200:
        # Boxes are no larger than needed.
        assert (changed & tight).sum() > 0.4 * tight.sum()


def test_every_class_of_the_file_is_one_of_vad(made):
    content = load_info_file(made[0])
    assert list(content['metainfo']['categories']) == list(CLASSES)
    labels = {
        instance['bbox_label_3d']
        for instance in content['data_list'][0]['instances']
    }
    assert labels <= set(range(10))
