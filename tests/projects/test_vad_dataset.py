"""NuScenesVADDataset: what a sample holds, and what is refused."""

import json
import math
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from test_keyframe_dataset import Bomb
from tiny_nuscenes import write_nuscenes

from projects.VAD.data import map_ground_truth, record_reading
from projects.VAD.data.frame_queue import earlier_frames
from projects.VAD.data.info_file import load_info_file
from projects.VAD.data.temporal_info import choose_folder
from projects.VAD.data.vad_dataset import NuScenesVADDataset
from projects.VAD.mini_world.keyframe import write_keyframe
from tools import create_data

CONFIGS = Path(__file__).resolve().parents[2] / 'projects/configs'
TRAIN = 'vad_nuscenes_infos_temporal_train.pkl'


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    """A converted nuScenes folder."""
    root = write_nuscenes(tmp_path_factory.mktemp('nuscenes'))
    create_data.main(['nuscenes', '--root-path', str(root)])
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of the folder that a test may change."""
    return Path(shutil.copytree(made, tmp_path / 'moved'))


@pytest.fixture(scope='module')
def pipelines() -> dict[str, list[dict]]:
    """The shipped pipelines; 160x90 pictures become 80x45, then 96x64."""
    init_default_scope('mmdet3d')
    config = Config.fromfile(CONFIGS / '_base_/vad_nuscenes.py')
    out = {}
    for name in ('train', 'test'):
        steps = config[f'{name}_pipeline']
        steps[-3].scales = [0.5]
        out[name] = steps
    return out


def train_set(root: Path, pipeline=(), **kwargs) -> NuScenesVADDataset:
    options = dict(use_valid_flag=True, queue_length=3) | kwargs
    name = options.pop('name', TRAIN)
    return NuScenesVADDataset(name, str(root), pipeline=pipeline, **options)


def val_set(root: Path, pipeline=(), **kwargs) -> NuScenesVADDataset:
    name = kwargs.pop('name', TRAIN)
    return NuScenesVADDataset(
        name, str(root), pipeline=pipeline, test_mode=True, **kwargs
    )


def rewrite(root: Path, change, name: str = TRAIN) -> None:
    """Changes the content of an info file."""
    content = load_info_file(root / name, temporal=True)
    change(content)
    (root / name).write_bytes(pickle.dumps(content))


def make_official(content: dict) -> None:
    """Gives the infos the form that the original converter left them in."""
    for info in content['infos']:
        info.pop('gt_map_lines')
        info['frame_idx'] = np.int64(info['frame_idx'])
        info['fut_valid_flag'] = np.bool_(info['fut_valid_flag'])
        info['lidar_path'] = './data/nuscenes/' + info['lidar_path']
        for camera in info['cams'].values():
            path = f'./data/nuscenes/{camera["data_path"]}'
            camera['data_path'] = path
        for key in info:
            if key.startswith('gt_') and info[key].dtype.kind == 'f':
                info[key] = info[key].astype(np.float64)
        info['gt_ego_fut_trajs'] = info['gt_ego_fut_trajs'].reshape(6, 2)
    content['metadata'] = dict(version='v1.0-trainval')


# ---- test mode


def test_a_test_sample_holds_everything_that_is_evaluated(made, pipelines):
    dataset = val_set(made, pipelines['test'])
    assert len(dataset) == 4
    sample = dataset[1]
    data = sample['data_samples']
    assert sample['inputs']['img'].shape == (6, 3, 64, 96)
    assert data.token == 'scene-0061 1'
    assert data.scene_token == 'scene-0061'
    assert data.sample_idx == 1
    assert data.can_bus[:3].tolist() == [104, 50, 0]
    assert data.can_bus[7] == 26.0
    # The pedestrian has no LiDAR point, debris is no class.
    assert data.gt_instances_3d.labels_3d.tolist() == [0]
    assert data.gt_instances_3d.attr_labels.shape == (1, 34)
    ego = data.gt_ego
    assert ego.fut_trajs[:2].tolist() == [[0, 4], [0, 4]]
    assert ego.fut_cmd.tolist() == [0, 0, 1]
    assert not ego.fut_valid_flag
    assert ego.lcf_feat.shape == (9,)
    assert ego.his_trajs.shape == (2, 2)
    assert len(data.gt_map.lines) == len(data.gt_map.pts) == 4


def test_boxes_are_those_of_mmdet3d_1(made):
    """The car: bottom centre, length before width, heading along y."""
    box = val_set(made)[0]['gt_bboxes_3d'].tensor[0].tolist()
    expected = [2, 9.1, -1.6, 4.0, 2.0, 1.6, math.pi / 2, 0, 2]
    assert box == pytest.approx(expected, abs=1e-6)


def test_attributes_come_in_the_order_of_the_losses(made):
    results = val_set(made)[0]
    car = results['attr_labels'][0]
    assert car[:12].tolist() == [0, 1, 0, 1] + [0] * 8
    assert car[12:18].tolist() == [1, 1, 0, 0, 0, 0]
    assert car[18] == 6
    assert car[27] == 3
    assert not car[28:].any()


def test_lidar2img_projects_the_car_into_the_front_camera(made):
    """8.1 m ahead of the camera, 2 m to the right, half a metre below."""
    results = val_set(made)[0]
    pixel = results['lidar2img'][0] @ [2, 9.1, -0.8, 1]
    expected = [80 + 100 * 2 / 8.1, 45 + 100 * 0.5 / 8.1]
    assert (pixel[:2] / pixel[2]).tolist() == pytest.approx(expected)


def test_map_targets_are_twenty_points_per_line(made):
    gt_map = val_set(made)[0]['gt_map']
    assert gt_map['labels'].tolist() == [0, 1, 2, 2]
    assert gt_map['pts'].shape == (4, 20, 2)
    assert gt_map['pts'][0, :, 1] == pytest.approx(np.linspace(-30, 30, 20))
    assert gt_map['shift_pts'].shape == (4, 19, 20, 2)


def test_the_sign_of_the_quaternion_is_kept(root):
    """q and -q are one rotation, but can_bus[3:7] is the real part."""

    def negate(content):
        info = content['infos'][0]
        info['ego2global_rotation'] = [-1.0, 0.0, 0.0, 0.0]

    rewrite(root, negate)
    assert val_set(root)[0]['can_bus'][3:7].tolist() == [-1] * 4


# ---- training


def test_a_training_sample_is_a_sequence(made, pipelines):
    np.random.seed(0)
    sample = train_set(made, pipelines['train'])[3]
    data = sample['data_samples']
    assert sample['inputs']['img'].shape == (3, 6, 3, 64, 96)
    assert len(data.history) == 2
    assert data.gt_instances_3d.labels_3d.tolist() == [8]
    assert 'lines' not in data.gt_map
    # Relative to the frame before, which is one or two keyframes away.
    first, second = (frame['can_bus'][:3] for frame in data.history)
    assert first.tolist() == [0, 0, 0]
    steps = second[0] + data.can_bus[0]
    assert steps in (8, 12)
    assert data.can_bus[17] == 0


def test_each_of_the_earlier_frames_is_dropped_equally_often(made):
    np.random.seed(0)
    windows = [tuple(earlier_frames(10, 3)) for _ in range(3000)]
    counts = {window: windows.count(window) for window in set(windows)}
    assert set(counts) == {(9, 8), (9, 7), (8, 7)}
    assert min(counts.values()) > 900
    assert earlier_frames(1, 1) == []


def test_frames_before_the_scene_are_copies_of_the_first(made):
    results = train_set(made)[0]
    assert [f['token'] for f in results['history']] == ['scene-0061 0'] * 2
    for frame in (*results['history'], results):
        assert frame['can_bus'][:3].tolist() == [0, 0, 0]


def test_frames_of_another_scene_are_copies(root):
    """The second keyframe of a scene has one frame before it at most."""
    val = 'vad_nuscenes_infos_temporal_val.pkl'
    second = load_info_file(root / val, temporal=True)['infos']
    rewrite(root, lambda content: content['infos'].extend(second))
    dataset = train_set(root)
    seen = set()
    for _ in range(20):
        history = dataset[5]['history']
        seen.add(tuple(frame['token'] for frame in history))
    copies = ('scene-0103 1', 'scene-0103 1')
    assert seen == {('scene-0103 0', 'scene-0103 0'), copies}


def test_can_bus_of_the_history_is_the_difference(made):
    np.random.seed(1)
    results = train_set(made, queue_length=4)[3]
    frames = [*results['history'], results]
    place = [100 + 4 * int(frame['token'][-1]) for frame in frames]
    moved = [frame['can_bus'][0] for frame in frames]
    assert moved == [0, *np.diff(place)]
    assert frames[1]['can_bus'][3:7].tolist() == [1] * 4


def test_the_same_seed_gives_the_same_sequence(made, pipelines):
    dataset = train_set(made, pipelines['train'])
    pictures = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        pictures.append(dataset[3]['inputs']['img'])
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_one_frame_has_no_history(made, pipelines):
    sample = train_set(made, pipelines['train'], queue_length=1)[2]
    assert sample['inputs']['img'].shape == (6, 3, 64, 96)
    assert sample['data_samples'].can_bus[:3].tolist() == [0, 0, 0]


def test_a_keyframe_without_box_or_line_is_replaced(root, pipelines):
    def empty(content):
        infos = content['infos']
        infos[0]['valid_flag'][:] = False
        infos[1]['gt_map_lines'] = dict.fromkeys(infos[1]['gt_map_lines'], [])
        # Far away: inside of the file, outside of the region.
        infos[2]['gt_boxes'][:, 1] = 80.0

    rewrite(root, empty)
    dataset = train_set(root, pipelines['train'])
    found = {dataset[i]['data_samples'].token for i in range(4)}
    assert found == {'scene-0061 3'}
    every = train_set(root, pipelines['train'], filter_empty_gt=False)
    found = [every[i]['data_samples'].token[-1] for i in range(4)]
    assert found == ['0', '1', '2', '3']
    assert len(val_set(root, pipelines['test'])[1]['data_samples'].gt_map) == 0


@pytest.mark.parametrize(
    ('boxes', 'lines', 'windows'),
    [
        (True, True, {'01', '02', '12'}),
        (True, False, {'01', '02', '12'}),
        (False, True, {'01', '02', '12'}),
        (False, False, {'01'}),
    ],
)
def test_an_earlier_frame_without_boxes_and_lines_drops_the_sample(
    root, boxes, lines, windows
):
    """Frames 0 to 2 are before it, two of them are taken, 2 has nothing."""

    def empty(content):
        info = content['infos'][2]
        if not boxes:
            info['valid_flag'][:] = False
        if not lines:
            info['gt_map_lines'] = dict.fromkeys(info['gt_map_lines'], [])

    rewrite(root, empty)
    dataset = train_set(root)
    samples = [dataset.prepare_data(3) for _ in range(30)]
    found = {
        ''.join(frame['token'][-1] for frame in sample['history'])
        for sample in samples
        if sample is not None
    }
    assert found == windows
    assert any(sample is None for sample in samples) == (len(windows) < 3)
    dataset = train_set(root, filter_empty_gt=False)
    assert all(dataset.prepare_data(3) for _ in range(10))


def test_attributes_are_filtered_with_their_boxes(root, pipelines):
    def move(content):
        content['infos'][0]['gt_boxes'][0, 1] = 80.0

    rewrite(root, move)
    sample = train_set(root, pipelines['train'])[0]['data_samples']
    assert sample.gt_instances_3d.labels_3d.tolist() == [8]
    assert sample.gt_instances_3d.attr_labels[:, 27].tolist() == [1]


# ---- files as they are


def test_an_official_file_is_read_as_it_is(root, pipelines):
    before = val_set(root)[2], train_set(root, pipelines['train'])
    rewrite(root, make_official)
    after = val_set(root)[2], train_set(root, pipelines['train'])
    for key in ('can_bus', 'attr_labels', 'gt_labels_3d', 'lidar2img'):
        assert np.allclose(before[0][key], after[0][key]), key
    boxes = [results[0]['gt_bboxes_3d'].tensor for results in (before, after)]
    assert torch.equal(*boxes)
    assert after[0]['img_path'] == before[0]['img_path']
    # Its map lines come from the maps in the folder.
    assert np.array_equal(
        before[0]['gt_map']['pts'], after[0]['gt_map']['pts']
    )
    samples = []
    for dataset in (before[1], after[1]):
        np.random.seed(0)
        samples.append(dataset[3])
    images = [sample['inputs']['img'] for sample in samples]
    assert torch.equal(*images)


def test_pickles_of_other_numpy_versions_are_read(root):
    """Protocol 2, as mmcv wrote it, and the module names of numpy 2."""
    content = load_info_file(root / TRAIN, temporal=True)
    make_official(content)
    raw = pickle.dumps(content, protocol=2)
    assert b'numpy.core' in raw
    for variant in (raw, raw.replace(b'numpy.core', b'numpy._core')):
        (root / TRAIN).write_bytes(variant)
        assert len(val_set(root)) == 4


def test_a_moved_folder_is_read(root, tmp_path):
    before = val_set(root)[0]['img_path'][0]
    other = tmp_path / 'elsewhere' / 'nuscenes'
    shutil.move(root, other)
    assert before == str(root / 'samples/CAM_FRONT/scene-0061_0.jpg')
    for dataset in (val_set(other), val_set('', name=str(other / TRAIN))):
        path = dataset[0]['img_path'][0]
        assert path == str(other / 'samples/CAM_FRONT/scene-0061_0.jpg')


def test_original_paths_are_found_below_data_root(root, tmp_path):
    rewrite(root, make_official)
    infos = tmp_path / 'infos'
    infos.mkdir()
    shutil.move(root / TRAIN, infos / TRAIN)
    path = val_set(root, name=str(infos / TRAIN))[0]['img_path'][0]
    assert path == str(root / 'samples/CAM_FRONT/scene-0061_0.jpg')


def test_absolute_paths_serve_where_nothing_else_does(root, tmp_path):
    def absolute(content):
        for info in content['infos']:
            for camera in info['cams'].values():
                camera['data_path'] = str(root / camera['data_path'])

    rewrite(root, absolute)
    infos = tmp_path / 'infos'
    infos.mkdir()
    shutil.move(root / TRAIN, infos / TRAIN)
    path = val_set(infos)[0]['img_path'][0]
    assert path == str(root / 'samples/CAM_FRONT/scene-0061_0.jpg')


def test_a_file_without_any_picture_is_refused(root):
    shutil.rmtree(root / 'samples')
    with pytest.raises(FileNotFoundError, match='set data_root to the folder'):
        val_set(root)


def test_scenes_stay_together_when_their_times_overlap(root):
    val = 'vad_nuscenes_infos_temporal_val.pkl'
    others = load_info_file(root / val, temporal=True)['infos']

    def mix(content):
        for info in others:
            info['timestamp'] -= 3_600_100_000
        content['infos'] = [*others[::-1], *content['infos'][::-1]]

    rewrite(root, mix)
    dataset = val_set(root)
    tokens = [dataset.get_data_info(i)['token'] for i in range(6)]
    first = [f'scene-0061 {i}' for i in range(4)]
    assert tokens == ['scene-0103 0', 'scene-0103 1', *first]


@pytest.mark.parametrize('count', [1, 5, 9])
def test_the_first_keyframes_are_those_of_the_whole(root, count):
    val = 'vad_nuscenes_infos_temporal_val.pkl'
    others = load_info_file(root / val, temporal=True)['infos']
    rewrite(root, lambda c: c['infos'].extend(others[::-1]))
    rewrite(root, lambda c: c['infos'].reverse())
    whole, first = val_set(root), val_set(root, indices=count)
    assert len(first) == min(count, 6)
    for i in range(len(first)):
        assert whole.get_data_info(i)['token'] == first[i]['token']


@pytest.mark.parametrize('count', [1, 3, 9])
def test_the_head_is_what_comes_first_in_the_file(root, count):
    """In the order of time, whatever that of the file is."""
    rewrite(root, lambda content: content['infos'].reverse())
    dataset = val_set(root, head=count)
    tokens = [dataset[i]['token'] for i in range(len(dataset))]
    assert tokens == [f'scene-0061 {i}' for i in range(4)][-count:]
    with pytest.raises(ValueError, match='at least 1 keyframe, found 0'):
        val_set(root, head=0)


@pytest.mark.parametrize('how', ['head', 'indices'])
def test_a_broken_record_does_not_count_among_the_first(root, how):
    def damage(content):
        content['infos'][0]['cams'] = None

    rewrite(root, damage)
    with pytest.warns(UserWarning, match='keyframe 0 of'):
        dataset = val_set(root, corrupt='skip', **{how: 2})
    tokens = [dataset[i]['token'] for i in range(len(dataset))]
    assert tokens == ['scene-0061 1', 'scene-0061 2']


def test_a_keyframe_of_mmdet3d_1_is_read(tmp_path, pipelines):
    path = write_keyframe(tmp_path)
    sample = val_set('', pipelines['test'], name=str(path))[0]
    data = sample['data_samples']
    assert data.gt_map.pts.shape == (11, 20, 2)
    assert data.gt_instances_3d.attr_labels.shape[1] == 34
    train = train_set('', pipelines['train'], name=str(path))[0]
    assert train['inputs']['img'].shape[:2] == (3, 6)


def test_the_test_split_has_no_ground_truth(root):
    def forget(content):
        for info in content['infos']:
            for key in [k for k in info if k.startswith('gt_')]:
                del info[key]
            del info['fut_valid_flag'], info['valid_flag']
            del info['num_lidar_pts'], info['num_radar_pts']

    rewrite(root, forget)
    shutil.rmtree(root / 'maps')
    results = val_set(root)[0]
    assert len(results['gt_bboxes_3d']) == 0
    assert not {'gt_map', 'gt_ego'} & results.keys()
    with pytest.raises(ValueError, match='no gt_agent_fut_trajs.*create_data'):
        train_set(root)


def test_a_pickle_with_code_is_refused(root):
    marker = root / 'it_ran'
    bomb = Bomb(os.mkdir, str(marker))
    content = dict(infos=[bomb], metadata={})
    (root / TRAIN).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match='mkdir, and only plain containers'):
        val_set(root)
    assert not marker.exists()


# ---- map lines


def test_map_lines_of_the_cache_file_serve_in_evaluation(root):
    rewrite(root, make_official)
    shutil.rmtree(root / 'maps')
    vectors = [
        dict(
            pts=[[0.0, -5.0], [0.0, 5.0], [1.0, 9.0]],
            pts_num=3,
            cls_name='divider',
            type=0,
        )
    ]
    cached = [
        dict(sample_token=f'scene-0061 {i}', vectors=vectors) for i in range(4)
    ]
    path = root / 'nuscenes_map_anns_val.json'
    path.write_text(json.dumps(dict(GTs=cached)))
    dataset = val_set(root, map_ann_file=path.name)
    gt_map = dataset[0]['gt_map']
    assert gt_map['labels'].tolist() == [0]
    assert gt_map['lines'][0].tolist() == vectors[0]['pts']
    path.write_text(json.dumps(dict(GTs=cached[1:])))
    with pytest.raises(ValueError, match='no map lines for keyframe scene'):
        val_set(root, map_ann_file=path.name)
    path.write_text('[]')
    with pytest.raises(ValueError, match='has another layout than VAD'):
        val_set(root, map_ann_file=path.name)


def test_training_without_map_is_refused(root):
    rewrite(root, make_official)
    shutil.rmtree(root / 'maps')
    assert 'gt_map' not in val_set(root)[0]
    with pytest.raises(ValueError, match='4 keyframes .* have no map lines'):
        train_set(root)


def test_lines_of_another_region_are_not_used(root):
    """A region twice as long: the divider is twice as long."""
    region = (-15.0, -60.0, -2.0, 15.0, 60.0, 2.0)
    pts = val_set(root, pc_range=region)[0]['gt_map']['pts']
    assert pts[0, [0, -1], 1].tolist() == [-60, 60]
    shutil.rmtree(root / 'maps')
    with pytest.raises(ValueError, match='region of 30 x 120 m'):
        train_set(root, pc_range=region)


def test_points_per_line_are_as_asked(made):
    gt_map = val_set(made, map_fixed_ptsnum_per_line=5)[0]['gt_map']
    assert gt_map['pts'].shape == (4, 5, 2)
    assert gt_map['shift_pts'].shape == (4, 4, 5, 2)


# ---- what is corrupt


def spoil(root: Path, name: str = 'CAM_BACK/scene-0061_2.jpg') -> Path:
    path = root / 'samples' / name
    path.write_bytes(path.read_bytes()[:-50])
    return path


@pytest.mark.parametrize('damage', ['short', 'garbage', 'empty', 'absent'])
def test_a_bad_picture_is_named(root, pipelines, damage):
    path = spoil(root)
    if damage == 'garbage':
        path.write_bytes(b'\xff\xd8' + bytes(200) + b'\xff\xd9')
    if damage == 'empty':
        path.write_bytes(b'')
    if damage == 'absent':
        path.unlink()
    message = f'picture {path} '
    with pytest.raises(ValueError, match=message):
        train_set(root, pipelines['train'])[2]
    for corrupt in ('fatal', 'skip'):
        dataset = val_set(root, pipelines['test'], corrupt=corrupt)
        with pytest.raises(ValueError, match=message):
            dataset[2]


def test_training_skips_a_bad_picture_and_says_so_once(root, pipelines):
    path = spoil(root)
    dataset = train_set(root, pipelines['train'], corrupt='skip')
    with pytest.warns(UserWarning, match=f'{path} is cut short') as caught:
        found = {dataset[2]['data_samples'].token for _ in range(5)}
    assert 'scene-0061 2' not in found
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset[2]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda info: info.pop('cams'), 'KeyError: cams'),
        (
            lambda info: info.update(gt_boxes=np.zeros((1, 7))),
            r'gt_boxes has the shape \(1, 7\) for 2 boxes',
        ),
        (
            lambda info: info['gt_boxes'].fill(np.nan),
            'a number that is not finite',
        ),
        (
            lambda info: info.update(can_bus=np.zeros(3)),
            '18 numbers, found shape',
        ),
        (
            lambda info: info['cams']['CAM_BACK'].update(
                sensor2lidar_rotation=np.zeros((3, 3))
            ),
            'Singular matrix',
        ),
    ],
)
def test_a_bad_record_is_named_or_left_out(root, change, message):
    rewrite(root, lambda content: change(content['infos'][1]))
    with pytest.raises(ValueError, match=f'keyframe 1 of .*{message}'):
        val_set(root)
    for make in (val_set, train_set):
        with pytest.warns(UserWarning, match=message):
            dataset = make(root, corrupt='skip')
        tokens = [dataset.get_data_info(i)['token'] for i in range(3)]
        assert tokens == [f'scene-0061 {i}' for i in (0, 2, 3)]


def test_a_file_of_bad_records_only_is_refused(root):
    def spoil_all(content):
        for info in content['infos']:
            del info['ego2global_rotation']

    rewrite(root, spoil_all)
    message = 'no keyframe that can be used, of 4; .* keyframe 0 of .*KeyError'
    with pytest.raises(ValueError, match=message):
        val_set(root, corrupt='skip')


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(queue_length=0), 'at least 1 frame, found 0'),
        (dict(corrupt='ignore'), "'fatal' or 'skip', found 'ignore'"),
        (dict(map_classes=['curb']), 'names curb; VAD knows divider'),
        (dict(pc_range=(0, -30, -2, 30, 30, 2)), 'must be symmetric'),
        (
            dict(pipeline=[dict(type='PadMultiViewImage', size_divisor=32)]),
            'ends with PackVADInputs.*found PadMultiViewImage',
        ),
    ],
)
def test_options_that_cannot_serve_are_refused(made, options, message):
    init_default_scope('mmdet3d')
    with pytest.raises(ValueError, match=message):
        train_set(made, **options)


# ---- with the Runner


@pytest.mark.parametrize('workers', [0, 2])
def test_a_dataloader_serves_the_published_config(made, monkeypatch, workers):
    monkeypatch.setenv('MMPRUNE_NUSCENES', str(made))
    monkeypatch.delenv('MMPRUNE_INFOS', raising=False)
    config = Config.fromfile(CONFIGS / 'VAD/VAD_tiny_stage_1.py')
    init_default_scope('mmdet3d')
    for name, count in (('train', 4), ('val', 2), ('test', 2)):
        loader = config[f'{name}_dataloader']
        loader.num_workers = workers
        loader.persistent_workers = workers > 0
        built = Runner.build_dataloader(loader, seed=0)
        assert len(built) == count
        batch = next(iter(built))
        frames = (3,) if name == 'train' else ()
        shape = (*frames, 6, 3, 64, 64)
        assert batch['inputs']['img'][0].shape == shape
        assert len(batch['data_samples']) == 1


def test_samples_stay_packed_until_they_are_asked_for(made):
    """Workers share one block of bytes, not thousands of objects."""
    dataset = val_set(made)
    assert dataset.data_list == []
    assert dataset.data_bytes.dtype == np.uint8


def test_a_process_reads_a_file_once_for_all_of_its_datasets(
    root, monkeypatch
):
    read, stream = [], record_reading.stream_info_file

    def spy(path, take):
        read.append(path)
        return stream(path, take)

    monkeypatch.setattr(record_reading, 'stream_info_file', spy)
    first, second = train_set(root), train_set(root, queue_length=2)
    assert len(read) == 1
    assert first.data_bytes is second.data_bytes
    assert len(first[3]['history']) == 2 and len(second[3]['history']) == 1
    rewrite(root, lambda content: content['infos'].pop())
    assert len(train_set(root)) == 3


def test_what_was_left_out_is_said_by_every_dataset(root):
    rewrite(root, lambda content: content['infos'][1].pop('cams'))
    for _ in range(2):
        with pytest.warns(UserWarning, match='keyframe 1 of'):
            assert len(val_set(root, corrupt='skip')) == 3
    with pytest.raises(ValueError, match='keyframe 1 of .*KeyError: cams'):
        val_set(root)


def test_maps_are_there_before_worker_processes_are(root, monkeypatch):
    """Each of them would read all maps, and again in every epoch."""
    rewrite(root, make_official)
    opened, open_map = [], map_ground_truth._open_map

    def spy(data_root, location):
        opened.append(location)
        return open_map(data_root, location)

    monkeypatch.setattr(map_ground_truth, '_open_map', spy)
    dataset = val_set(root)
    assert opened == ['singapore-onenorth']
    assert len(dataset[0]['gt_map']['labels']) == 4
    train_set(root)
    assert opened == ['singapore-onenorth']


def test_losses_read_a_training_sample(made, monkeypatch):
    monkeypatch.setenv('MMPRUNE_MINI_WORLD', str(made))
    config = Config.fromfile(CONFIGS / 'VAD/VAD_nano_mini_world.py')
    init_default_scope('mmdet3d')
    model = MODELS.build(config.model).train()
    np.random.seed(0)
    dataset = DATASETS.build(config.train_dataloader.dataset)
    data = model.data_preprocessor(pseudo_collate([dataset[2]]), True)
    losses = model(**data, mode='loss')
    total = sum(losses.values())
    assert torch.isfinite(total)
    assert losses['loss_plan_reg'] > 0
    assert losses['loss_map_pts'] > 0
    assert losses['loss_bbox'] > 0


def test_an_info_file_without_keyframes_or_samples_is_refused(tmp_path):
    paths = [f'samples/{i}.jpg' for i in range(3)]
    (tmp_path / 'samples').mkdir()
    with pytest.raises(ValueError, match='a.pkl has no keyframes with pict'):
        choose_folder([], str(tmp_path), 'a.pkl')
    with pytest.raises(FileNotFoundError, match='samples/0.jpg of a.pkl is'):
        choose_folder(paths, str(tmp_path), 'a.pkl')
    (tmp_path / paths[0]).touch()
    message = '2 of the first 3 keyframes of a.pkl have no pictures, first .*1'
    with pytest.raises(FileNotFoundError, match=message):
        choose_folder(paths, str(tmp_path), 'a.pkl')
    (tmp_path / paths[1]).touch()
    assert choose_folder(paths, str(tmp_path), 'a.pkl')(paths[0]) == str(
        tmp_path / paths[0]
    )
