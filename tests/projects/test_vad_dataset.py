"""NuScenesVADDataset: what a sample holds, alone and in a Runner."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tiny_infos import rewrite, train_set, val_set

from projects.VAD.data.frame_queue import earlier_frames
from projects.VAD.data.info_file import load_info_file

CONFIGS = Path(__file__).resolve().parents[2] / 'projects/configs'


# ---- test mode


def test_a_test_sample_holds_everything_that_is_evaluated(
    converted, pipelines
):
    dataset = val_set(converted, pipelines['test'])
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


def test_boxes_are_those_of_mmdet3d_1(converted):
    """The car: bottom centre, length before width, heading along y."""
    box = val_set(converted)[0]['gt_bboxes_3d'].tensor[0].tolist()
    expected = [2, 9.1, -1.6, 4.0, 2.0, 1.6, math.pi / 2, 0, 2]
    assert box == pytest.approx(expected, abs=1e-6)


def test_attributes_come_in_the_order_of_the_losses(converted):
    results = val_set(converted)[0]
    car = results['attr_labels'][0]
    assert car[:12].tolist() == [0, 1, 0, 1] + [0] * 8
    assert car[12:18].tolist() == [1, 1, 0, 0, 0, 0]
    assert car[18] == 6
    assert car[27] == 3
    assert not car[28:].any()


def test_lidar2img_projects_the_car_into_the_front_camera(converted):
    """8.1 m ahead of the camera, 2 m to the right, half a metre below."""
    results = val_set(converted)[0]
    pixel = results['lidar2img'][0] @ [2, 9.1, -0.8, 1]
    expected = [80 + 100 * 2 / 8.1, 45 + 100 * 0.5 / 8.1]
    assert (pixel[:2] / pixel[2]).tolist() == pytest.approx(expected)


def test_map_targets_are_twenty_points_per_line(converted):
    gt_map = val_set(converted)[0]['gt_map']
    assert gt_map['labels'].tolist() == [0, 1, 2, 2]
    assert gt_map['pts'].shape == (4, 20, 2)
    assert gt_map['pts'][0, :, 1] == pytest.approx(np.linspace(-30, 30, 20))
    assert gt_map['shift_pts'].shape == (4, 19, 20, 2)


def test_points_per_line_are_as_asked(converted):
    gt_map = val_set(converted, map_fixed_ptsnum_per_line=5)[0]['gt_map']
    assert gt_map['pts'].shape == (4, 5, 2)
    assert gt_map['shift_pts'].shape == (4, 4, 5, 2)


def test_the_sign_of_the_quaternion_is_kept(converted_copy):
    """q and -q are one rotation, but can_bus[3:7] is the real part."""

    def negate(content):
        info = content['infos'][0]
        info['ego2global_rotation'] = [-1.0, 0.0, 0.0, 0.0]

    rewrite(converted_copy, negate)
    assert val_set(converted_copy)[0]['can_bus'][3:7].tolist() == [-1] * 4


# ---- training


def test_a_training_sample_is_a_sequence(converted, pipelines):
    np.random.seed(0)
    sample = train_set(converted, pipelines['train'])[3]
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


def test_each_of_the_earlier_frames_is_dropped_equally_often(converted):
    np.random.seed(0)
    windows = [tuple(earlier_frames(10, 3)) for _ in range(3000)]
    counts = {window: windows.count(window) for window in set(windows)}
    assert set(counts) == {(9, 8), (9, 7), (8, 7)}
    assert min(counts.values()) > 900
    assert earlier_frames(1, 1) == []


def test_frames_before_the_scene_are_copies_of_the_first(converted):
    results = train_set(converted)[0]
    assert [f['token'] for f in results['history']] == ['scene-0061 0'] * 2
    for frame in (*results['history'], results):
        assert frame['can_bus'][:3].tolist() == [0, 0, 0]


def test_frames_of_another_scene_are_copies(converted_copy):
    """The second keyframe of a scene has one frame before it at most."""
    val = 'vad_nuscenes_infos_temporal_val.pkl'
    second = load_info_file(converted_copy / val, temporal=True)['infos']
    rewrite(converted_copy, lambda content: content['infos'].extend(second))
    dataset = train_set(converted_copy)
    seen = set()
    for _ in range(20):
        history = dataset[5]['history']
        seen.add(tuple(frame['token'] for frame in history))
    copies = ('scene-0103 1', 'scene-0103 1')
    assert seen == {('scene-0103 0', 'scene-0103 0'), copies}


def test_can_bus_of_the_history_is_the_difference(converted):
    np.random.seed(1)
    results = train_set(converted, queue_length=4)[3]
    frames = [*results['history'], results]
    place = [100 + 4 * int(frame['token'][-1]) for frame in frames]
    moved = [frame['can_bus'][0] for frame in frames]
    assert moved == [0, *np.diff(place)]
    assert frames[1]['can_bus'][3:7].tolist() == [1] * 4


def test_the_same_seed_gives_the_same_sequence(converted, pipelines):
    dataset = train_set(converted, pipelines['train'])
    pictures = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        pictures.append(dataset[3]['inputs']['img'])
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_one_frame_has_no_history(converted, pipelines):
    sample = train_set(converted, pipelines['train'], queue_length=1)[2]
    assert sample['inputs']['img'].shape == (6, 3, 64, 96)
    assert sample['data_samples'].can_bus[:3].tolist() == [0, 0, 0]


def test_a_keyframe_without_box_or_line_is_replaced(converted_copy, pipelines):
    def empty(content):
        infos = content['infos']
        infos[0]['valid_flag'][:] = False
        infos[1]['gt_map_lines'] = dict.fromkeys(infos[1]['gt_map_lines'], [])
        # Far away: inside of the file, outside of the region.
        infos[2]['gt_boxes'][:, 1] = 80.0

    rewrite(converted_copy, empty)
    dataset = train_set(converted_copy, pipelines['train'])
    found = {dataset[i]['data_samples'].token for i in range(4)}
    assert found == {'scene-0061 3'}
    every = train_set(
        converted_copy, pipelines['train'], filter_empty_gt=False
    )
    found = [every[i]['data_samples'].token[-1] for i in range(4)]
    assert found == ['0', '1', '2', '3']
    assert (
        len(
            val_set(converted_copy, pipelines['test'])[1][
                'data_samples'
            ].gt_map
        )
        == 0
    )


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
    converted_copy, boxes, lines, windows
):
    """Frames 0 to 2 are before it, two of them are taken, 2 has nothing."""

    def empty(content):
        info = content['infos'][2]
        if not boxes:
            info['valid_flag'][:] = False
        if not lines:
            info['gt_map_lines'] = dict.fromkeys(info['gt_map_lines'], [])

    rewrite(converted_copy, empty)
    dataset = train_set(converted_copy)
    samples = [dataset.prepare_data(3) for _ in range(30)]
    found = {
        ''.join(frame['token'][-1] for frame in sample['history'])
        for sample in samples
        if sample is not None
    }
    assert found == windows
    assert any(sample is None for sample in samples) == (len(windows) < 3)
    dataset = train_set(converted_copy, filter_empty_gt=False)
    assert all(dataset.prepare_data(3) for _ in range(10))


def test_attributes_are_filtered_with_their_boxes(converted_copy, pipelines):
    def move(content):
        content['infos'][0]['gt_boxes'][0, 1] = 80.0

    rewrite(converted_copy, move)
    sample = train_set(converted_copy, pipelines['train'])[0]['data_samples']
    assert sample.gt_instances_3d.labels_3d.tolist() == [8]
    assert sample.gt_instances_3d.attr_labels[:, 27].tolist() == [1]


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
def test_options_that_cannot_serve_are_refused(converted, options, message):
    init_default_scope('mmdet3d')
    with pytest.raises(ValueError, match=message):
        train_set(converted, **options)


# ---- with the Runner


@pytest.mark.parametrize('workers', [0, 2])
def test_a_dataloader_serves_the_published_config(
    converted, monkeypatch, workers
):
    monkeypatch.setenv('MMPRUNE_NUSCENES', str(converted))
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


def test_samples_stay_packed_until_they_are_asked_for(converted):
    """Workers share one block of bytes, not thousands of objects."""
    dataset = val_set(converted)
    assert dataset.data_list == []
    assert dataset.data_bytes.dtype == np.uint8


def test_losses_read_a_training_sample(converted, monkeypatch):
    monkeypatch.setenv('MMPRUNE_MINI_WORLD', str(converted))
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
