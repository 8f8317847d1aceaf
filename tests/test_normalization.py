"""Weights know the normalisation of their training; commands compare it."""

import runpy

import pytest
import torch
from conftest import ROOT
from tiny_project import CONFIG, write_checkpoint, write_config

from mmprune.checkpoints.normalization import (
    compare_normalization,
    normalization_of_training,
)
from mmprune.checkpoints.reading import load_checkpoint_file

RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.4, 57.1, 57.4], to_rgb=True)
BGR = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
# As a training before mmengine wrote it; the test data say something else.
OLD_TEXT = """
img_norm_cfg = dict(mean=[0, 0, 0], std=[9, 9, 9], to_rgb=True)
data = dict(
    workers_per_gpu=4,
    test=dict(pipeline=[dict(type='N', mean=[1, 2, 3], std=[4, 5, 6])]),
    train=dict(
        type='Data',
        pipeline=[
            dict(type='Load', scale=-1.5),
            {'type': 'NormalizeMultiviewImage', 'mean': [103.53, 116.28,
             123.675], 'std': (1, 1, 1), 'to_rgb': False},
        ]))
"""
NEW_TEXT = """
base = __import__('pathlib').Path('{path}').touch()
model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6]))
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=[
    dict(type='Normalize', mean=[123.675, 116.28, 103.53],
         std=[58.4, 57.1, 57.4]),
])))
"""


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        (dict(img_norm_cfg=RGB, cfg=OLD_TEXT), RGB),
        (dict(img_norm_cfg=None, cfg=OLD_TEXT), None),
        (dict(dataset_meta=dict(img_norm_cfg=BGR), cfg=NEW_TEXT), BGR),
        (dict(config=OLD_TEXT, cfg=NEW_TEXT), BGR),
        (dict(cfg=NEW_TEXT), RGB),
        (dict(cfg="model = dict(type='A')"), None),
        (dict(cfg='not ( python'), None),
        (dict(epoch=3), None),
        (None, None),
    ],
)
def test_what_a_checkpoint_says_about_its_training(meta, expected):
    assert normalization_of_training(meta) == expected


def test_the_text_of_a_config_is_not_run(tmp_path):
    path = tmp_path / 'ran'
    meta = dict(cfg=NEW_TEXT.replace('{path}', str(path)))
    assert normalization_of_training(meta) == RGB
    assert not path.exists()


def test_a_preprocessor_normalises_as_well():
    text = 'model = dict(data_preprocessor=dict(mean=[1], std=[2]))'
    found = normalization_of_training(dict(cfg=text))
    assert found == dict(mean=[1.0], std=[2.0], to_rgb=False)


def test_nothing_is_said_where_one_side_does_not_tell():
    lines = []
    data = dict(test_dataloader=dict(dataset=dict(pipeline=[BGR])))
    compare_normalization(data, {}, 'a.pth', lines.append)
    compare_normalization({}, dict(img_norm_cfg=RGB), 'a.pth', lines.append)
    compare_normalization(data, dict(img_norm_cfg=BGR), 'a', lines.append)
    assert lines == []
    compare_normalization(data, dict(img_norm_cfg=RGB), 'a', lines.append)
    [line] = lines
    assert 'BGR with mean 103.53 116.28 123.675 and deviation 1 1 1' in line
    assert 'trained on RGB with mean 123.675 116.28 103.53' in line


# -- the commands ------------------------------------------------------------


def config_of(folder, numbers):
    """The tiny config, whose data name a normalisation."""
    folder.mkdir()
    text = CONFIG.replace(
        "type='TinyImages'",
        f"type='TinyImages', metainfo=dict(norm={numbers})",
    )
    return write_config(folder, text)


@pytest.fixture
def command(capsys):
    """Runs a command; returns the warnings that it prints."""

    def run(name, *words):
        capsys.readouterr()
        main = runpy.run_path(str(ROOT / 'tools' / name))['main']
        main([str(word) for word in words])
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith('warning: ')]

    return run


def test_commands_warn_when_weights_saw_other_pictures(tmp_path, command):
    rgb, bgr = (
        config_of(tmp_path / name, numbers)
        for name, numbers in (('rgb', RGB), ('bgr', BGR))
    )
    trained = tmp_path / 'trained' / 'epoch_1.pth'
    assert not command('train.py', rgb, '--work-dir', trained.parent)
    for config, count in ((rgb, 0), (bgr, 1)):
        work = ('--work-dir', config.parent / 'work')
        start = ('--load-from', trained)
        assert len(command('train.py', config, *work, *start)) == count
        assert len(command('test.py', config, trained, *work)) == count
        out = config.parent / 'pruned'
        prune = ('prune_and_retrain.py', config, trained, '--output-dir', out)
        assert len(command(*prune)) == count
    # What was pruned with the wrong config still says how it was trained.
    for path in out.glob('*.pth'):
        assert load_checkpoint_file(path)['meta']['img_norm_cfg'] == RGB
        assert not command('test.py', rgb, path, *work)
        assert command('test.py', bgr, path, *work)


def test_weights_to_start_from_are_loaded(tmp_path, command):
    config = write_config(tmp_path)
    dense = write_checkpoint(tmp_path)
    work = tmp_path / 'work'
    still = ('--cfg-options', 'optim_wrapper.optimizer.lr=0')
    words = (config, '--work-dir', work, '--load-from', dense, *still)
    command('train.py', *words)
    one, two = (
        load_checkpoint_file(path)['state_dict']['one.weight']
        for path in (dense, work / 'epoch_1.pth')
    )
    assert torch.equal(one, two)


def test_weights_to_start_from_that_are_not_there_are_named(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / 'tools' / 'train.py'))['main']
    words = [write_config(tmp_path), '--load-from', '/nowhere.pth']
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    assert 'no checkpoint at /nowhere.pth' in capsys.readouterr().err
