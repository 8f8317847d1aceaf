"""The nuScenes detection score against nuscenes-devkit and by hand.

One module: every test scores boxes of the same two scenes written here.
"""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from nuscenes import NuScenes
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from pyquaternion import Quaternion

from projects.VAD.metrics import VADMetric
from projects.VAD.metrics.submission import submission_boxes, with_scores
from projects.VAD.metrics.vad_metric import CLASSES

# Name, category, attribute, size (w, l, h), start and velocity in the frame
# of the first ego pose, x forward.
OBJECTS = [
    ('vehicle.car', 'vehicle.moving', (1.9, 4.5, 1.6), (12, 3), (4, 0)),
    ('vehicle.car', 'vehicle.parked', (1.8, 4.2, 1.5), (-8, 6), (0, 0)),
    ('vehicle.car', 'vehicle.parked', (1.8, 4.2, 1.5), (20, 21), (0, 0)),
    ('vehicle.car', 'vehicle.moving', (1.9, 4.6, 1.6), (58, 0), (-9, 0)),
    ('vehicle.truck', 'vehicle.moving', (2.5, 9.0, 3.2), (25, -9), (6, 0)),
    ('human.pedestrian.adult', 'pedestrian.moving', (0.7, 0.7, 1.8), (9, -4)),
    ('human.pedestrian.adult', 'pedestrian.standing', (0.7, 0.7, 1.7), (4, 7)),
    ('vehicle.bicycle', 'cycle.with_rider', (0.6, 1.7, 1.3), (15, -7), (3, 0)),
    ('movable_object.trafficcone', None, (0.4, 0.4, 1.0), (7, 5)),
    ('movable_object.barrier', None, (2.5, 0.5, 1.0), (-14, -6)),
    ('animal', None, (0.3, 0.6, 0.4), (5, 5)),
]
NAMES = dict(
    zip(
        [o[0] for o in OBJECTS],
        [*['car'] * 4, 'truck', *['pedestrian'] * 2]
        + ['bicycle', 'traffic_cone', 'barrier', None],
        strict=True,
    )
)
STEPS = 3
LIDAR = dict(
    translation=[0.94, 0.0, 1.84],
    rotation=Quaternion(axis=[0, 0, 1], degrees=-90).elements.tolist(),
)


def matrix(record):
    """The pose of a record as ``[4, 4]``."""
    pose = Quaternion(record['rotation']).transformation_matrix
    pose[:3, 3] = record['translation']
    return pose


def pose_at(scene, step):
    """Driving at 3 m/s and turning, somewhere on a map, slightly tilted."""
    turn = Quaternion(axis=[0, 0, 1], degrees=35 + 100 * scene + 8 * step)
    tilt = Quaternion(axis=[0, 1, 0], degrees=1.5)
    start = np.array([650.0 + 300 * scene, 1600.0, 0.0])
    return dict(
        translation=(
            start + turn.rotate(np.array([1.5 * step, 0, 0]))
        ).tolist(),
        rotation=(turn * tilt).elements.tolist(),
    )


def annotations(scene):
    """The chains of the objects of one scene."""
    first = pose_at(scene, 0)
    origin, turn = first['translation'], Quaternion(first['rotation'])
    for number, (_, attribute, size, start, *velocity) in enumerate(OBJECTS):
        speed = np.array(velocity[0] if velocity else (0.0, 0.0))
        for step in range(STEPS):
            here = [*(np.array(start) + 0.5 * step * speed), size[2] / 2]
            yield dict(
                token=f'a{scene}_{number}_{step}',
                sample_token=f's{scene}_{step}',
                instance_token=f'i{scene}_{number}',
                visibility_token='4',
                attribute_tokens=[attribute] if attribute else [],
                translation=(turn.rotate(np.array(here)) + origin).tolist(),
                size=list(size),
                rotation=(
                    turn * Quaternion(axis=[0, 0, 1], degrees=40 * number)
                ).elements.tolist(),
                prev=f'a{scene}_{number}_{step - 1}' if step else '',
                next=f'a{scene}_{number}_{step + 1}' if step < 2 else '',
                # one that no sensor saw: it does not count
                num_lidar_pts=0 if (number, step) == (1, 2) else 7,
                num_radar_pts=0,
            )


def frame_tables(scene):
    """Sample, sample data and ego pose of each step of one scene."""
    tables = dict(sample=[], sample_data=[], ego_pose=[])
    for step in range(STEPS):
        token, time = f's{scene}_{step}', 10**15 + 500_000 * step
        tables['sample'].append(
            dict(
                token=token,
                timestamp=time,
                scene_token=f'scene{scene}',
                prev=f's{scene}_{step - 1}' if step else '',
                next=f's{scene}_{step + 1}' if step < 2 else '',
            )
        )
        tables['sample_data'].append(
            dict(
                token=f'd{token}',
                sample_token=token,
                ego_pose_token=f'e{token}',
                calibrated_sensor_token='lidar',
                timestamp=time,
                is_key_frame=True,
                filename='',
                prev='',
                next='',
            )
        )
        pose = dict(token=f'e{token}', timestamp=time, **pose_at(scene, step))
        tables['ego_pose'].append(pose)
    return tables


def fixed_tables(scenes):
    categories = list(dict.fromkeys(o[0] for o in OBJECTS))
    attributes = {o[1] for o in OBJECTS if o[1]}
    return dict(
        category=[dict(token=name, name=name) for name in categories],
        attribute=[dict(token=name, name=name) for name in sorted(attributes)],
        visibility=[dict(token='4', level='v80-100')],
        instance=[
            dict(token=f'i{scene}_{n}', category_token=o[0])
            for scene in range(len(scenes))
            for n, o in enumerate(OBJECTS)
        ],
        sensor=[dict(token='top', channel='LIDAR_TOP', modality='lidar')],
        calibrated_sensor=[dict(token='lidar', sensor_token='top', **LIDAR)],
        log=[dict(token='log', location='boston-seaport')],
        map=[dict(token='map', log_tokens=['log'], filename='map.png')],
        scene=[
            dict(token=f'scene{i}', name=name, log_token='log')
            for i, name in enumerate(scenes)
        ],
    )


@pytest.fixture(scope='module')
def tables(tmp_path_factory):
    """Tables of the two scenes that are `mini_val`, in the real layout."""
    root = tmp_path_factory.mktemp('nuscenes')
    scenes = ['scene-0103', 'scene-0916']
    content = fixed_tables(scenes)
    content['sample_annotation'] = []
    for scene in range(len(scenes)):
        content['sample_annotation'] += annotations(scene)
        for name, rows in frame_tables(scene).items():
            content.setdefault(name, []).extend(rows)
    cv2.imwrite(str(root / 'map.png'), np.zeros((4, 4), np.uint8))
    (root / 'v1.0-mini').mkdir()
    for name, rows in content.items():
        (root / 'v1.0-mini' / f'{name}.json').write_text(json.dumps(rows))
    return NuScenes('v1.0-mini', str(root), verbose=False)


def lidar_boxes(tables, token):
    """Boxes, labels and attributes of a sample in the LiDAR frame."""
    data = tables.get('sample', token)['data']['LIDAR_TOP']
    pose = tables.get('sample_data', data)['ego_pose_token']
    rows, labels, attributes = [], [], []
    for ann in tables.get('sample', token)['anns']:
        record = tables.get('sample_annotation', ann)
        name = NAMES[record['category_name']]
        if name is None or not record['num_lidar_pts']:
            continue
        box = tables.get_box(record['token'])
        box.velocity = tables.box_velocity(record['token'])
        for frame in (tables.get('ego_pose', pose), LIDAR):
            box.translate(-np.array(frame['translation']))
            box.rotate(Quaternion(frame['rotation']).inverse)
        w, length, h = box.wlh
        forward = box.orientation.rotation_matrix[:, 0]
        yaw = np.arctan2(forward[1], forward[0])
        center = [*box.center[:2], box.center[2] - h / 2]
        rows.append([*center, length, w, h, yaw, *box.velocity[:2]])
        labels.append(CLASSES.index(name))
        attributes.append((record['attribute_tokens'] or [''])[0])
    return torch.tensor(rows), torch.tensor(labels), attributes


def noisy(boxes, labels):
    """Shifted, resized, turned; some twice, some not, some elsewhere."""
    found = boxes.double().repeat(2, 1)
    found[:, :2] += 0.5 * torch.randn(len(found), 2)
    found[:, 3:6] *= 1 + 0.1 * torch.rand(len(found), 3)
    found[:, 6] += 0.4 * torch.randn(len(found))
    found[:, 7:9] += 0.5 * torch.randn(len(found), 2)
    kept = torch.rand(len(found)) < 0.7
    ghosts = found[:3] + torch.tensor([9.0, 7, 0, 0, 0, 0, 1, 0, 0])
    labels = torch.cat((labels.repeat(2)[kept], labels[:3]))
    found = torch.cat((found[kept], ghosts))
    return found, labels, torch.rand(len(found))


def data_sample(tables, token, attributes=True, perturb=noisy):
    boxes, labels, names = lidar_boxes(tables, token)
    found, found_labels, scores = perturb(boxes, labels)
    out = Det3DDataSample(
        metainfo=dict(
            token=token,
            lidar2ego=matrix(LIDAR),
            ego2global=matrix(tables.get('ego_pose', f'e{token}')),
        )
    )
    out.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes.double(), box_dim=9),
        labels_3d=labels,
    )
    if attributes:
        out.gt_instances_3d.attribute_names = names
    out.pred_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(found, box_dim=9),
        labels_3d=found_labels,
        scores_3d=scores,
    )
    return out


def unchanged(boxes, labels):
    return boxes.double(), labels, torch.linspace(0.9, 0.5, len(labels))


def data_samples(tables, **options):
    return [data_sample(tables, s['token'], **options) for s in tables.sample]


def evaluated(samples, **options):
    evaluator = Evaluator(VADMetric(parts=['nds'], **options))
    for one in samples:
        evaluator.process([one])
    metrics = evaluator.evaluate(len(samples))
    return {key.removeprefix('VAD/'): value for key, value in metrics.items()}


@pytest.fixture(scope='module')
def official(tables, tmp_path_factory):
    """The devkit's own evaluation of noisy boxes, and the samples."""
    torch.manual_seed(3)
    samples = data_samples(tables)
    folder = tmp_path_factory.mktemp('results')
    ours = evaluated(
        samples,
        region='nuscenes',
        min_score=0.0,
        jsonfile_prefix=str(folder),
    )
    metrics, _ = DetectionEval(
        tables,
        config_factory('detection_cvpr_2019'),
        str(folder / 'results_nusc.json'),
        'mini_val',
        str(folder / 'devkit'),
        verbose=False,
    ).evaluate()
    expected = dict(
        NDS=metrics.nd_score,
        mAP=metrics.mean_ap,
        mATE=metrics.tp_errors['trans_err'],
        mASE=metrics.tp_errors['scale_err'],
        mAOE=metrics.tp_errors['orient_err'],
        mAVE=metrics.tp_errors['vel_err'],
        mAAE=metrics.tp_errors['attr_err'],
        **{f'AP_{k}': float(v) for k, v in metrics.mean_dist_aps.items()},
    )
    return expected, samples, ours, folder


def test_truth_of_the_samples_scores_as_the_devkit(official):
    expected, _, ours, _ = official
    assert 0.2 < expected['NDS'] < 0.8 and 0.05 < expected['mAP'] < 0.8
    assert 0 < expected['mAAE'] < 1 and 0 < expected['mAVE'] < 1
    # the boxes of the samples are float32
    assert ours == pytest.approx(expected, abs=1e-5)


def test_truth_of_the_tables_scores_as_the_devkit(official, tables):
    expected, samples, _, _ = official
    options = dict(data_root=tables.dataroot, version='v1.0-mini')
    ours = evaluated(samples, region='nuscenes', min_score=0.0, **options)
    assert ours == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('region', ['ego', 'vad_official'])
@pytest.mark.parametrize('tokens', [6, 2])
def test_both_truths_agree_in_a_rectangle(official, tables, tokens, region):
    samples = official[1][:tokens]
    from_samples = evaluated(samples, region=region)
    options = dict(data_root=tables.dataroot, version='v1.0-mini')
    from_tables = evaluated(samples, region=region, **options)
    assert from_samples == pytest.approx(from_tables, abs=1e-5)
    assert from_samples['mAP'] != official[0]['mAP']


def test_the_command_of_the_devkit_reads_the_submission(official, tables):
    expected, _, _, folder = official
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'nuscenes.eval.detection.evaluate'),
            *(str(folder / 'results_nusc.json'), '--eval_set', 'mini_val'),
            *('--version', 'v1.0-mini', '--dataroot', tables.dataroot),
            *('--output_dir', str(folder / 'command'), '--verbose', '0'),
            *('--plot_examples', '0', '--render_curves', '0'),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f'NDS: {expected["NDS"]:.4f}' in done.stdout
    assert not list(folder.glob('*.tmp'))


def test_a_perfect_frame_by_hand(tables):
    """Six of ten classes, the others count as not found at all."""
    metrics = evaluated(
        [data_sample(tables, 's0_0', perturb=unchanged)], region='nuscenes'
    )
    assert metrics['AP_car'] == pytest.approx(1)
    assert metrics['AP_bus'] == 0
    assert metrics['mAP'] == pytest.approx(0.6)
    assert metrics['mATE'] == pytest.approx(0.4)
    assert metrics['mASE'] == pytest.approx(0.4)
    # cones have no direction, cones and barriers neither speed nor attribute
    assert metrics['mAOE'] == pytest.approx(4 / 9, abs=1e-6)
    assert metrics['mAVE'] == pytest.approx(4 / 8, abs=1e-6)
    # the attribute follows from the speed; the one pedestrian that moves is
    # annotated without it
    assert metrics['mAAE'] > 4 / 8
    errors = [metrics[key] for key in ('mATE', 'mASE', 'mAOE', 'mAVE', 'mAAE')]
    by_hand = (5 * 0.6 + sum(1 - error for error in errors)) / 10
    assert metrics['NDS'] == pytest.approx(by_hand)


def test_without_attributes_nothing_is_called_nds(tables):
    metrics = evaluated(
        [data_sample(tables, 's0_0', attributes=False, perturb=unchanged)],
        region='nuscenes',
    )
    assert 'NDS' not in metrics and 'mAAE' not in metrics
    by_hand = (5 * 0.6 + 0.6 + 0.6 + 5 / 9 + 4 / 8) / 9
    assert metrics['NDS_without_attributes'] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ('forward', 'left', 'counts'),
    [(29.9, 14.9, 1), (-29.9, -14.9, 1), (30.1, 0, 0), (0, 15.1, 0)],
)
def test_the_default_region_turns_with_the_ego(tables, forward, left, counts):
    one = with_buses(tables, forward, left)
    one.pred_instances_3d = one.pred_instances_3d[:1]
    # one of two is found: above recall 0.5 nothing is
    assert evaluated([one])['AP_bus'] == pytest.approx(counts * 40 / 90)


def with_buses(tables, forward, left):
    """A sample with two buses, one somewhere and one 5.94 m ahead.

    The LiDAR sits 0.94 m ahead of the ego's origin, x to the right.
    """
    one = data_sample(tables, 's0_1', perturb=unchanged)
    place = [-left, forward - 0.94, -1.0, 4.0, 2.0, 1.5, 0.3, 0.0, 0.0]
    near = [0.0, 5.0, *place[2:]]
    for instances in (one.gt_instances_3d, one.pred_instances_3d):
        instances.bboxes_3d.tensor[:2] = torch.tensor([place, near]).double()
        instances.labels_3d[:2] = CLASSES.index('bus')
    return one


BOTH, TRUTH_ALONE, NEITHER = (40 / 90, 40 / 90), (0, 40 / 90), (0, 1)


@pytest.mark.parametrize(
    ('degrees', 'forward', 'left', 'expected'),
    [
        # the ego looks along x of the map: its own axes, but for the cut
        (0, 29.9, 14.9, BOTH),
        (0, 30.1, 0, NEITHER),
        # along y of the map: 15 m ahead are the end, 30 m to the sides of
        # the truth, and predictions also end 15 m to the sides
        (90, 14.9, 14.9, BOTH),
        (90, 15.1, 0, NEITHER),
        (90, 29.9, 0, NEITHER),
        (90, 0, 15.1, TRUTH_ALONE),
        (90, -14.9, -29.9, TRUTH_ALONE),
        (90, 0, 30.1, NEITHER),
    ],
)
def test_the_region_of_vads_logs_has_the_axes_of_the_map(
    tables, degrees, forward, left, expected
):
    """AP with that bus found, and with the near one found.

    One found of two is 40 / 90, the only true one 1.
    """
    one = with_buses(tables, forward, left)
    pose = np.eye(4)
    turn = Quaternion(axis=[0, 0, 1], degrees=degrees)
    pose[:3, :3] = turn.rotation_matrix
    pose[:3, 3] = 650, 1600, 0
    one.set_metainfo(dict(ego2global=pose))
    found = []
    for i in (0, 1):
        sample = one.clone()
        sample.pred_instances_3d = one.pred_instances_3d[i : i + 1]
        metrics = evaluated([sample], region='vad_official')
        found.append(metrics['AP_bus'])
    assert found == pytest.approx(expected)


def test_the_earlier_name_of_the_default_region_still_works():
    assert VADMetric(region='vad').region == VADMetric().region == 'ego'


def test_attributes_follow_from_class_and_speed():
    boxes = [
        dict(detection_name=name, velocity=[speed, 0.0])
        for name in ('car', 'bus', 'pedestrian', 'bicycle', 'barrier')
        for speed in (0.1, 0.3)
    ]
    boxes[2]['velocity'] = [np.nan, np.nan]
    scored = with_scores(boxes, np.linspace(1, 0, len(boxes)))
    assert [box['attribute_name'] for box in scored] == [
        *('vehicle.parked', 'vehicle.moving'),
        *('vehicle.stopped', 'vehicle.moving'),
        *('pedestrian.standing', 'pedestrian.moving'),
        *('cycle.without_rider', 'cycle.with_rider'),
        *('', ''),
    ]
    assert scored[2]['velocity'] == [0, 0]


def test_the_surest_500_boxes_are_submitted():
    boxes = [dict(detection_name='car', velocity=[0, 0])] * 600
    scored = with_scores(boxes, np.arange(600))
    assert [box['detection_score'] for box in scored[:2]] == [599, 598]
    assert len(scored) == 500 and scored[-1]['detection_score'] == 100


def test_a_box_is_moved_and_turned_into_the_global_frame():
    """Ego at (100, 50) facing +y; LiDAR unturned, 1 m ahead and 2 m up."""
    lidar2ego, ego2global = np.eye(4), np.eye(4)
    lidar2ego[:3, 3] = [1, 0, 2]
    ego2global[:2, :2] = [[0, -1], [1, 0]]
    ego2global[:2, 3] = [100, 50]
    boxes = LiDARInstance3DBoxes(
        torch.tensor([[9.0, 3, -2, 4, 2, 1.5, 0, 5, 0]]), box_dim=9
    )
    (box,) = submission_boxes('t', boxes, ['car'], lidar2ego, ego2global)
    assert box['translation'] == pytest.approx([97, 60, 0.75])
    assert box['size'] == [2, 4, 1.5]
    assert box['velocity'] == pytest.approx([0, 5])
    half = np.sqrt(0.5)
    assert box['rotation'] == pytest.approx([half, 0, 0, half])


def test_nothing_found_is_zero_and_nothing_true_is_left_out(tables):
    one = data_sample(tables, 's0_0', perturb=unchanged)
    empty = one.clone()
    empty.pred_instances_3d = one.pred_instances_3d[:0]
    metrics = evaluated([empty])
    assert metrics['NDS'] == 0 and metrics['mATE'] == 1
    options = dict(data_root=tables.dataroot, version='v1.0-mini')
    assert evaluated([empty], **options) == pytest.approx(metrics)
    one.gt_instances_3d = one.gt_instances_3d[:0]
    assert evaluated([one]) == {}


def test_frames_without_poses_or_truth_are_left_out(tables, tmp_path):
    one = data_sample(tables, 's0_0', perturb=unchanged)
    del one.gt_instances_3d
    assert evaluated([one], jsonfile_prefix=str(tmp_path)) == {}
    written = json.loads((tmp_path / 'results_nusc.json').read_text())
    assert len(written['results']['s0_0']) == len(one.pred_instances_3d)
    assert written['meta']['use_camera'] and not written['meta']['use_lidar']
    lost = data_sample(tables, 's0_0', perturb=unchanged)
    del lost.lidar2ego
    assert evaluated([lost]) == {}


def test_classes_that_nuscenes_lacks_do_not_count(tables):
    one = data_sample(tables, 's0_0', perturb=unchanged)
    names = ['tram' if name == 'truck' else name for name in CLASSES]
    metrics = evaluated([one], classes=names, region='nuscenes')
    assert metrics['mAP'] == pytest.approx(0.5)


def test_frames_of_another_dataset_are_refused(tables):
    one = data_sample(tables, 's0_0')
    one.set_metainfo(dict(token='elsewhere'))
    with pytest.raises(ValueError, match=r'first: elsewhere\) are not in v1'):
        evaluated([one], data_root=tables.dataroot, version='v1.0-mini')


def test_wrong_tables_are_refused_before_the_evaluation(tables, tmp_path):
    with pytest.raises(FileNotFoundError, match='no sample_annotation.json'):
        VADMetric(data_root=str(tmp_path), version='v1.0-mini')
    with pytest.raises(ValueError, match='give both'):
        VADMetric(data_root=str(tmp_path))
    with pytest.raises(ValueError, match=r"the region 'bev', but it knows"):
        VADMetric(region='bev')
