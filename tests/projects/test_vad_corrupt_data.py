"""Corrupt pictures and records of a data set: named, or left out and said."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_infos import rewrite, train_set, val_set


def spoil(root: Path, name: str = 'CAM_BACK/scene-0061_2.jpg') -> Path:
    path = root / 'samples' / name
    path.write_bytes(path.read_bytes()[:-50])
    return path


@pytest.mark.parametrize('damage', ['short', 'garbage', 'empty', 'absent'])
def test_a_bad_picture_is_named(converted_copy, pipelines, damage):
    path = spoil(converted_copy)
    if damage == 'garbage':
        path.write_bytes(b'\xff\xd8' + bytes(200) + b'\xff\xd9')
    if damage == 'empty':
        path.write_bytes(b'')
    if damage == 'absent':
        path.unlink()
    message = f'picture {path} '
    with pytest.raises(ValueError, match=message):
        train_set(converted_copy, pipelines['train'])[2]
    for corrupt in ('fatal', 'skip'):
        dataset = val_set(converted_copy, pipelines['test'], corrupt=corrupt)
        with pytest.raises(ValueError, match=message):
            dataset[2]


def test_training_skips_a_bad_picture_and_says_so_once(
    converted_copy, pipelines
):
    path = spoil(converted_copy)
    dataset = train_set(converted_copy, pipelines['train'], corrupt='skip')
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
def test_a_bad_record_is_named_or_left_out(converted_copy, change, message):
    rewrite(converted_copy, lambda content: change(content['infos'][1]))
    with pytest.raises(ValueError, match=f'keyframe 1 of .*{message}'):
        val_set(converted_copy)
    for make in (val_set, train_set):
        with pytest.warns(UserWarning, match=message):
            dataset = make(converted_copy, corrupt='skip')
        tokens = [dataset.get_data_info(i)['token'] for i in range(3)]
        assert tokens == [f'scene-0061 {i}' for i in (0, 2, 3)]


def test_a_file_of_bad_records_only_is_refused(converted_copy):
    def spoil_all(content):
        for info in content['infos']:
            del info['ego2global_rotation']

    rewrite(converted_copy, spoil_all)
    message = 'no keyframe that can be used, of 4; .* keyframe 0 of .*KeyError'
    with pytest.raises(ValueError, match=message):
        val_set(converted_copy, corrupt='skip')


def test_what_was_left_out_is_said_by_every_dataset(converted_copy):
    rewrite(converted_copy, lambda content: content['infos'][1].pop('cams'))
    for _ in range(2):
        with pytest.warns(UserWarning, match='keyframe 1 of'):
            assert len(val_set(converted_copy, corrupt='skip')) == 3
    with pytest.raises(ValueError, match='keyframe 1 of .*KeyError: cams'):
        val_set(converted_copy)
