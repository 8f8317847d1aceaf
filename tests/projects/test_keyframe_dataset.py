"""Keyframes of info files: what is read, how, and what is refused.

One module: its tests share one drawn keyframe.
"""

import copy
import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

from projects.VAD.data.config_datasets import set_info_file
from projects.VAD.data.info_file import load_info_file
from projects.VAD.data.keyframe_dataset import (
    CAMERAS,
    CLASSES,
    NuScenesKeyframeDataset,
    complete_can_bus,
)
from projects.VAD.mini_world.keyframe import write_keyframe

CONFIGS = Path(__file__).resolve().parents[2] / 'projects/configs/_base_'


@pytest.fixture(scope='module')
def keyframe(tmp_path_factory) -> Path:
    return write_keyframe(tmp_path_factory.mktemp('keyframe'), seed=1)


@pytest.fixture
def edited(keyframe):
    """A function: changes the info file's content, returns its new path."""
    made = []

    def edit(change) -> Path:
        content = load_info_file(keyframe)
        change(content)
        path = keyframe.with_name(f'edited{len(made)}.pkl')
        path.write_bytes(pickle.dumps(content))
        made.append(path)
        return path

    yield edit
    for path in made:
        path.unlink()


@pytest.fixture(scope='module')
def real_infos(request) -> Path:
    shared = request.getfixturevalue('shared')
    found = sorted((shared / 'nuscenes').glob('*.pkl'))
    if not found:
        pytest.skip(f'no info file in {shared / "nuscenes"}')
    return found[0]


def read(path: Path, **kwargs) -> dict:
    dataset = NuScenesKeyframeDataset(str(path), test_mode=True, **kwargs)
    return dataset.get_data_info(0)


# ---- the data set


def test_the_head_of_the_file_is_read_alone(edited):
    def repeat(content):
        (info,) = content['data_list']
        tokens = [dict(copy.deepcopy(info), token=f'{i}') for i in range(9)]
        content['data_list'] = tokens

    path = edited(repeat)
    dataset = NuScenesKeyframeDataset(str(path), head=2, test_mode=True)
    assert [dataset.record(i)['token'] for i in range(2)] == ['0', '1']
    assert len(dataset) == 2
    infos = [dict(a=1, b=2)] * 9
    path.write_bytes(pickle.dumps(dict(metadata={}, infos=infos)))
    with pytest.raises(ValueError, match='the mmdet3d 0.x layout'):
        NuScenesKeyframeDataset(str(path), head=1)


def test_a_part_of_a_data_set_is_one_as_in_mmengine(edited):
    def repeat(content):
        entry = content['data_list'][0]
        content['data_list'] = [dict(entry, token=f't{i}') for i in range(4)]

    whole = NuScenesKeyframeDataset(str(edited(repeat)), test_mode=True)
    part = whole.get_subset([3, 1])
    tokens = [part.record(i)['token'] for i in range(len(part))]
    assert tokens == ['t3', 't1']
    assert part.record(-1)['sample_idx'] == 1
    assert len(whole) == 4
    whole.get_subset_(-1)
    assert [whole.get_data_info(i)['token'] for i in range(1)] == ['t3']


def test_cameras_come_in_the_order_of_vad(edited):
    def turn_around(content):
        info = content['data_list'][0]
        info['images'] = dict(reversed(info['images'].items()))

    results = read(edited(turn_around))
    order = ('FRONT', 'FRONT_RIGHT', 'FRONT_LEFT')
    order += ('BACK', 'BACK_LEFT', 'BACK_RIGHT')
    names = [f'CAM_{place}' for place in order]
    assert list(results['images']) == names
    for name, path in zip(names, results['img_path'], strict=True):
        assert path.endswith(f'__{name}.jpg')


def test_lidar2img_is_intrinsics_times_extrinsics(keyframe):
    camera = load_info_file(keyframe)['data_list'][0]['images']['CAM_BACK']
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = camera['cam2img']
    expected = intrinsics @ np.array(camera['lidar2cam'])
    assert np.allclose(read(keyframe)['lidar2img'][3], expected)


def test_classes_are_matched_by_name(keyframe, edited):
    def renumber(content):
        content['metainfo']['categories'] = {
            name: 9 - i for i, name in enumerate(CLASSES)
        }
        for instance in content['data_list'][0]['instances']:
            instance['bbox_label_3d'] = 9 - instance['bbox_label_3d']

    expected = read(keyframe)['gt_labels_3d']
    assert np.array_equal(read(edited(renumber))['gt_labels_3d'], expected)


def test_a_list_of_class_names_serves_as_well(keyframe, edited):
    def listed(content):
        content['metainfo'] = dict(classes=list(CLASSES))

    expected = read(keyframe)['gt_labels_3d']
    assert np.array_equal(read(edited(listed))['gt_labels_3d'], expected)


def test_boxes_that_do_not_count_are_kept_for_pictures(keyframe, edited):
    def change(content):
        instances = content['data_list'][0]['instances']
        instances[0]['num_lidar_pts'] = 0
        instances[1]['bbox_label_3d'] = -1
        instances[2]['bbox_3d_isvalid'] = False

    whole = read(keyframe)
    valid = len(read(keyframe, use_valid_flag=True)['gt_bboxes_3d'])
    # Those that the LiDAR hits; the edited ones are among them.
    total = len(whole['gt_bboxes_3d'])
    path = edited(change)
    results = read(path)
    assert len(results['all_gt_bboxes_3d']) == (
        len(whole['all_gt_bboxes_3d']) - 1
    )
    assert len(results['gt_bboxes_3d']) == total - 2
    assert len(results['gt_labels_3d']) == total - 2
    assert results['attr_labels'].shape == (total - 2, 34)
    in_training = read(path, use_valid_flag=True)['gt_bboxes_3d'].tensor
    kept = results['gt_bboxes_3d'].tensor
    # Instance 0 is valid without LiDAR points, instance 2 the other way.
    assert len(in_training) == valid - 2
    assert not np.array_equal(in_training[0], kept[0])


def test_an_unknown_velocity_is_zero(edited):
    def change(content):
        instances = content['data_list'][0]['instances']
        instances[0]['velocity'] = [math.nan, math.nan]
        del instances[1]['velocity']

    boxes = read(edited(change))['all_gt_bboxes_3d'].tensor
    assert (boxes[:2, 7:] == 0).all()
    assert (boxes[3, 7:] != 0).any()


def test_boxes_stand_on_their_bottom_centre(keyframe):
    instance = load_info_file(keyframe)['data_list'][0]['instances'][0]
    box = read(keyframe)['all_gt_bboxes_3d'].tensor[0].numpy()
    centre_z, height = instance['bbox_3d'][2], instance['bbox_3d'][5]
    assert box[2] == pytest.approx(centre_z - height / 2, abs=1e-6)
    assert box[3:7] == pytest.approx(instance['bbox_3d'][3:7])
    assert box[7:] == pytest.approx(instance['velocity'])


def test_a_keyframe_without_annotations_has_no_boxes(edited):
    def change(content):
        del content['data_list'][0]['instances']

    results = read(edited(change))
    assert results['gt_bboxes_3d'].tensor.shape == (0, 9)
    assert results['gt_labels_3d'].shape == (0,)


def test_keyframes_without_a_scene_share_no_memory(edited):
    def change(content):
        first = content['data_list'][0]
        first.pop('scene_token')
        content['data_list'].append(dict(first, token='another'))

    dataset = NuScenesKeyframeDataset(str(edited(change)), test_mode=True)
    tokens = [dataset.get_data_info(i)['scene_token'] for i in range(2)]
    assert tokens == ['synthetic_0001', 'another']


def test_pictures_are_found_in_the_folders_of_nuscenes(keyframe, tmp_path):
    info = tmp_path / 'infos' / 'val.pkl'
    info.parent.mkdir()
    info.write_bytes(keyframe.read_bytes())
    for name in CAMERAS:
        folder = tmp_path / 'data' / 'samples' / name
        folder.mkdir(parents=True)
        picture = f'synthetic_0001__{name}.jpg'
        (folder / picture).symlink_to(keyframe.parent / picture)
    results = read(info, data_root=str(tmp_path / 'data'))
    assert results['img_path'][0] == str(
        tmp_path / 'data/samples/CAM_FRONT/synthetic_0001__CAM_FRONT.jpg'
    )


def test_a_missing_picture_is_named(edited):
    def change(content):
        content['data_list'][0]['images']['CAM_BACK']['img_path'] = 'no.jpg'

    with pytest.raises(
        FileNotFoundError, match='keyframe 0 .* no.jpg of CAM_BACK is neither'
    ):
        read(edited(change))


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda c: c['data_list'][0].pop('images'),
            'has no CAM_FRONT, .*none at all',
        ),
        (
            lambda c: c['data_list'][0]['images'].pop('CAM_BACK'),
            'has no CAM_BACK among its cameras',
        ),
        (
            lambda c: c['data_list'][0]['images']['CAM_BACK'].pop('lidar2cam'),
            'camera CAM_BACK lacks lidar2cam',
        ),
        (
            lambda c: c['metainfo']['categories'].update(Pedestrian=10),
            r'unknown class Pedestrian \(did you mean pedestrian\?\)',
        ),
        (
            lambda c: c['metainfo'].pop('categories'),
            'does not name its classes',
        ),
        (
            lambda c: c['data_list'][0]['instances'][0].update(
                bbox_label_3d=12
            ),
            'a box has label 12, and the file names',
        ),
    ],
)
def test_an_info_file_that_cannot_serve_is_refused(edited, change, message):
    with pytest.raises(ValueError, match=message):
        read(edited(change))


def test_a_file_cut_short_is_refused(keyframe, tmp_path):
    path = tmp_path / 'infos.pkl'
    path.write_bytes(keyframe.read_bytes()[:-200])
    with pytest.raises(ValueError, match='is not a whole pickle'):
        load_info_file(path)


def test_can_bus_holds_the_pose_as_the_released_weights_expect_it():
    quarter_turn = np.array(
        [[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]
    )
    can_bus = complete_can_bus(np.arange(18.0), quarter_turn)
    assert can_bus[:3].tolist() == [5, 6, 7]
    assert can_bus[3:7] == pytest.approx([math.sqrt(0.5)] * 4)
    assert can_bus[7:16].tolist() == list(range(7, 16))
    assert can_bus[16:] == pytest.approx([math.pi / 2, 90])
    # A quarter to the right is 270 degrees, not -90.
    to_the_right = np.linalg.inv(quarter_turn)
    turned_right = complete_can_bus(None, to_the_right)
    assert turned_right[17] == pytest.approx(270)
    assert not complete_can_bus(None, None).any()


def test_can_bus_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r'18 numbers, found shape \(17,\)'):
        complete_can_bus(np.zeros(17), None)


# ---- configs


@pytest.mark.parametrize(
    'name, scale, height, width',
    [
        ('vad_nuscenes.py', 0.4, 384, 640),
        ('vad_nuscenes_base.py', 0.8, 736, 1280),
    ],
)
def test_the_config_feeds_the_official_test_input(
    keyframe, tmp_path, name, scale, height, width
):
    cfg = Config.fromfile(CONFIGS / name)
    set_info_file(cfg, keyframe)
    cfg.dump(tmp_path / 'dumped.py')
    cfg = Config.fromfile(tmp_path / 'dumped.py')
    assert cfg.val_dataloader == cfg.test_dataloader
    sample = build(cfg)[0]
    img, data = sample['inputs']['img'], sample['data_samples']
    assert img.shape == (6, 3, height, width)
    assert data.img_shape[0] == (height, width, 3)
    results = read(keyframe)
    scaled = np.diag([scale, scale, 1, 1]) @ results['lidar2img'][2]
    assert np.allclose(data.lidar2img[2], scaled)
    # BGR minus the mean, and zero where it is padded.
    assert (img[:, :, int(900 * scale) :] == 0).all()
    picture = cv2.imread(results['img_path'][0]).astype(np.float32)
    picture = cv2.resize(picture, None, fx=scale, fy=scale)
    expected = picture - np.array([103.53, 116.28, 123.675], np.float32)
    found = img[0].permute(1, 2, 0).numpy()[: len(expected)]
    assert np.abs(found - expected).max() < 1e-2


def test_environment_variables_place_the_data(monkeypatch):
    monkeypatch.delenv('MMPRUNE_NUSCENES', raising=False)
    monkeypatch.delenv('MMPRUNE_INFOS', raising=False)
    dataset = Config.fromfile(
        CONFIGS / 'vad_nuscenes.py'
    ).test_dataloader.dataset
    assert dataset.data_root == 'data/nuscenes/'
    assert dataset.ann_file == 'vad_nuscenes_infos_temporal_val.pkl'
    monkeypatch.setenv('MMPRUNE_NUSCENES', '/disk/nuscenes')
    monkeypatch.setenv('MMPRUNE_INFOS', '/disk/infos.pkl')
    dataset = Config.fromfile(
        CONFIGS / 'vad_nuscenes.py'
    ).test_dataloader.dataset
    assert dataset.data_root == '/disk/nuscenes'
    assert dataset.ann_file == '/disk/infos.pkl'


def test_what_a_config_tests_on_is_pointed_at_the_file(keyframe):
    """And nothing that it trains on."""
    wrapped = dict(type='RepeatDataset', dataset=dict(type='A', ann_file='a'))
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dict(type='A', ann_file='a')),
            val_dataloader=dict(
                dataset=dict(
                    type='ConcatDataset',
                    datasets=[dict(ann_file='b'), dict(ann_file='c')],
                )
            ),
            test_dataloader=dict(dataset=wrapped),
        )
    )
    set_info_file(cfg, keyframe)
    test = cfg.test_dataloader.dataset
    assert test.dataset.ann_file == str(keyframe)
    assert 'ann_file' not in test
    for dataset in cfg.val_dataloader.dataset.datasets:
        assert dataset.ann_file == str(keyframe)
    assert cfg.train_dataloader.dataset.ann_file == 'a'


def test_pointing_at_nothing_is_refused(keyframe):
    with pytest.raises(FileNotFoundError, match='no.pkl does not exist'):
        set_info_file(Config(), 'no.pkl')
    message = 'no val_dataloader or test_dataloader with a dataset'
    with pytest.raises(ValueError, match=message):
        set_info_file(Config(dict(model={})), keyframe)


# ---- a real keyframe


def test_the_real_keyframe_is_read_whole(real_infos):
    results = read(real_infos)
    # 69 instances, one of no known class, three without LiDAR points.
    assert len(results['all_gt_bboxes_3d']) == 68
    assert len(results['gt_bboxes_3d']) == 65
    counts = np.bincount(results['all_gt_labels_3d'], minlength=10)
    named = dict(zip(CLASSES, counts.tolist(), strict=True))
    assert named == dict(
        car=8,
        truck=2,
        construction_vehicle=1,
        bus=1,
        trailer=0,
        barrier=22,
        motorcycle=0,
        bicycle=1,
        pedestrian=30,
        traffic_cone=3,
    )
    assert results['can_bus'][3:7] == pytest.approx([0.572032] * 4, abs=1e-6)


@pytest.mark.parametrize('name', CAMERAS)
def test_real_boxes_project_to_the_annotated_pixels(real_infos, name):
    """The file's own 2-D centres are the independent witness."""
    raw = load_info_file(real_infos)['data_list'][0]
    annotated = [item['center_2d'] for item in raw['cam_instances'][name]]
    results = read(real_infos)
    centres = results['all_gt_bboxes_3d'].gravity_center.numpy()
    matrix = results['lidar2img'][CAMERAS.index(name)]
    projected = np.c_[centres, np.ones(len(centres))] @ matrix.T
    projected = projected[projected[:, 2] > 0]
    pixels = projected[:, :2] / projected[:, 2:3]
    gaps = np.linalg.norm(pixels[:, None] - np.array(annotated), axis=-1)
    assert gaps.min(axis=0).max() < 1.5


def test_the_real_keyframe_passes_the_test_pipeline(real_infos):
    cfg = Config.fromfile(CONFIGS / 'vad_nuscenes.py')
    set_info_file(cfg, real_infos)
    sample = build(cfg)[0]
    boxes = sample['data_samples'].gt_instances_3d.bboxes_3d.tensor
    assert sample['inputs']['img'].shape == (6, 3, 384, 640)
    assert len(boxes) == 26
    assert (boxes[:, 0].abs() < 15).all() and (boxes[:, 1].abs() < 30).all()


def build(cfg: Config) -> NuScenesKeyframeDataset:
    before = DefaultScope.get_current_instance()
    init_default_scope('mmdet3d')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if before is not None:
        init_default_scope(before.scope_name)
    return dataset
