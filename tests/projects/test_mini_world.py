"""The drawn world: a valid nuScenes dataset whose parts agree."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_scenes import SIZE, ego_poses
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from nuscenes.utils.splits import create_splits_scenes

from projects.VAD.mini_world.names import scene_names
from projects.VAD.mini_world.tables import CATEGORIES

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
