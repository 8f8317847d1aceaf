"""Info files that NuScenesVADDataset reads: of any origin, whole or not."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from tiny_infos import TRAIN, Bomb, make_official, rewrite, train_set, val_set

from projects.VAD.data import map_ground_truth, record_reading
from projects.VAD.data.info_file import load_info_file
from projects.VAD.data.temporal_info import choose_folder
from projects.VAD.mini_world.keyframe import write_keyframe

# ---- files as they are


def test_an_official_file_is_read_as_it_is(converted_copy, pipelines):
    before = (
        val_set(converted_copy)[2],
        train_set(converted_copy, pipelines['train']),
    )
    rewrite(converted_copy, make_official)
    after = (
        val_set(converted_copy)[2],
        train_set(converted_copy, pipelines['train']),
    )
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


def test_pickles_of_other_numpy_versions_are_read(converted_copy):
    """Protocol 2, as mmcv wrote it, and the module names of numpy 2."""
    content = load_info_file(converted_copy / TRAIN, temporal=True)
    make_official(content)
    raw = pickle.dumps(content, protocol=2)
    assert b'numpy.core' in raw
    for variant in (raw, raw.replace(b'numpy.core', b'numpy._core')):
        (converted_copy / TRAIN).write_bytes(variant)
        assert len(val_set(converted_copy)) == 4


def test_a_moved_folder_is_read(converted_copy, tmp_path):
    before = val_set(converted_copy)[0]['img_path'][0]
    other = tmp_path / 'elsewhere' / 'nuscenes'
    shutil.move(converted_copy, other)
    assert before == str(converted_copy / 'samples/CAM_FRONT/scene-0061_0.jpg')
    for dataset in (val_set(other), val_set('', name=str(other / TRAIN))):
        path = dataset[0]['img_path'][0]
        assert path == str(other / 'samples/CAM_FRONT/scene-0061_0.jpg')


def test_original_paths_are_found_below_data_root(converted_copy, tmp_path):
    rewrite(converted_copy, make_official)
    infos = tmp_path / 'infos'
    infos.mkdir()
    shutil.move(converted_copy / TRAIN, infos / TRAIN)
    path = val_set(converted_copy, name=str(infos / TRAIN))[0]['img_path'][0]
    assert path == str(converted_copy / 'samples/CAM_FRONT/scene-0061_0.jpg')


def test_absolute_paths_serve_where_nothing_else_does(
    converted_copy, tmp_path
):
    def absolute(content):
        for info in content['infos']:
            for camera in info['cams'].values():
                camera['data_path'] = str(converted_copy / camera['data_path'])

    rewrite(converted_copy, absolute)
    infos = tmp_path / 'infos'
    infos.mkdir()
    shutil.move(converted_copy / TRAIN, infos / TRAIN)
    path = val_set(infos)[0]['img_path'][0]
    assert path == str(converted_copy / 'samples/CAM_FRONT/scene-0061_0.jpg')


def test_a_file_without_any_picture_is_refused(converted_copy):
    shutil.rmtree(converted_copy / 'samples')
    with pytest.raises(FileNotFoundError, match='set data_root to the folder'):
        val_set(converted_copy)


def test_scenes_stay_together_when_their_times_overlap(converted_copy):
    val = 'vad_nuscenes_infos_temporal_val.pkl'
    others = load_info_file(converted_copy / val, temporal=True)['infos']

    def mix(content):
        for info in others:
            info['timestamp'] -= 3_600_100_000
        content['infos'] = [*others[::-1], *content['infos'][::-1]]

    rewrite(converted_copy, mix)
    dataset = val_set(converted_copy)
    tokens = [dataset.get_data_info(i)['token'] for i in range(6)]
    first = [f'scene-0061 {i}' for i in range(4)]
    assert tokens == ['scene-0103 0', 'scene-0103 1', *first]


@pytest.mark.parametrize('count', [1, 5, 9])
def test_the_first_keyframes_are_those_of_the_whole(converted_copy, count):
    val = 'vad_nuscenes_infos_temporal_val.pkl'
    others = load_info_file(converted_copy / val, temporal=True)['infos']
    rewrite(converted_copy, lambda c: c['infos'].extend(others[::-1]))
    rewrite(converted_copy, lambda c: c['infos'].reverse())
    whole, first = (
        val_set(converted_copy),
        val_set(converted_copy, indices=count),
    )
    assert len(first) == min(count, 6)
    for i in range(len(first)):
        assert whole.get_data_info(i)['token'] == first[i]['token']


@pytest.mark.parametrize('count', [1, 3, 9])
def test_the_head_is_what_comes_first_in_the_file(converted_copy, count):
    """In the order of time, whatever that of the file is."""
    rewrite(converted_copy, lambda content: content['infos'].reverse())
    dataset = val_set(converted_copy, head=count)
    tokens = [dataset[i]['token'] for i in range(len(dataset))]
    assert tokens == [f'scene-0061 {i}' for i in range(4)][-count:]
    with pytest.raises(ValueError, match='at least 1 keyframe, found 0'):
        val_set(converted_copy, head=0)


@pytest.mark.parametrize('how', ['head', 'indices'])
def test_a_broken_record_does_not_count_among_the_first(converted_copy, how):
    def damage(content):
        content['infos'][0]['cams'] = None

    rewrite(converted_copy, damage)
    with pytest.warns(UserWarning, match='keyframe 0 of'):
        dataset = val_set(converted_copy, corrupt='skip', **{how: 2})
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


def test_the_test_split_has_no_ground_truth(converted_copy):
    def forget(content):
        for info in content['infos']:
            for key in [k for k in info if k.startswith('gt_')]:
                del info[key]
            del info['fut_valid_flag'], info['valid_flag']
            del info['num_lidar_pts'], info['num_radar_pts']

    rewrite(converted_copy, forget)
    shutil.rmtree(converted_copy / 'maps')
    results = val_set(converted_copy)[0]
    assert len(results['gt_bboxes_3d']) == 0
    assert not {'gt_map', 'gt_ego'} & results.keys()
    with pytest.raises(ValueError, match='no gt_agent_fut_trajs.*create_data'):
        train_set(converted_copy)


def test_a_pickle_with_code_is_refused(converted_copy):
    marker = converted_copy / 'it_ran'
    bomb = Bomb(os.mkdir, str(marker))
    content = dict(infos=[bomb], metadata={})
    (converted_copy / TRAIN).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match='mkdir, and only plain containers'):
        val_set(converted_copy)
    assert not marker.exists()


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


def test_a_process_reads_a_file_once_for_all_of_its_datasets(
    converted_copy, monkeypatch
):
    read, stream = [], record_reading.stream_info_file

    def spy(path, take):
        read.append(path)
        return stream(path, take)

    monkeypatch.setattr(record_reading, 'stream_info_file', spy)
    first, second = (
        train_set(converted_copy),
        train_set(converted_copy, queue_length=2),
    )
    assert len(read) == 1
    assert first.data_bytes is second.data_bytes
    assert len(first[3]['history']) == 2 and len(second[3]['history']) == 1
    rewrite(converted_copy, lambda content: content['infos'].pop())
    assert len(train_set(converted_copy)) == 3


# ---- map lines


def test_map_lines_of_the_cache_file_serve_in_evaluation(converted_copy):
    rewrite(converted_copy, make_official)
    shutil.rmtree(converted_copy / 'maps')
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
    path = converted_copy / 'nuscenes_map_anns_val.json'
    path.write_text(json.dumps(dict(GTs=cached)))
    dataset = val_set(converted_copy, map_ann_file=path.name)
    gt_map = dataset[0]['gt_map']
    assert gt_map['labels'].tolist() == [0]
    assert gt_map['lines'][0].tolist() == vectors[0]['pts']
    path.write_text(json.dumps(dict(GTs=cached[1:])))
    with pytest.raises(ValueError, match='no map lines for keyframe scene'):
        val_set(converted_copy, map_ann_file=path.name)
    path.write_text('[]')
    with pytest.raises(ValueError, match='has another layout than VAD'):
        val_set(converted_copy, map_ann_file=path.name)


def test_training_without_map_is_refused(converted_copy):
    rewrite(converted_copy, make_official)
    shutil.rmtree(converted_copy / 'maps')
    assert 'gt_map' not in val_set(converted_copy)[0]
    with pytest.raises(ValueError, match='4 keyframes .* have no map lines'):
        train_set(converted_copy)


def test_lines_of_another_region_are_not_used(converted_copy):
    """A region twice as long: the divider is twice as long."""
    region = (-15.0, -60.0, -2.0, 15.0, 60.0, 2.0)
    pts = val_set(converted_copy, pc_range=region)[0]['gt_map']['pts']
    assert pts[0, [0, -1], 1].tolist() == [-60, 60]
    shutil.rmtree(converted_copy / 'maps')
    with pytest.raises(ValueError, match='region of 30 x 120 m'):
        train_set(converted_copy, pc_range=region)


def test_maps_are_there_before_worker_processes_are(
    converted_copy, monkeypatch
):
    """Each of them would read all maps, and again in every epoch."""
    rewrite(converted_copy, make_official)
    opened, open_map = [], map_ground_truth._open_map

    def spy(data_root, location):
        opened.append(location)
        return open_map(data_root, location)

    monkeypatch.setattr(map_ground_truth, '_open_map', spy)
    dataset = val_set(converted_copy)
    assert opened == ['singapore-onenorth']
    assert len(dataset[0]['gt_map']['labels']) == 4
    train_set(converted_copy)
    assert opened == ['singapore-onenorth']
