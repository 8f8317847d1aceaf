"""Options of a config: what is new is said, what does not fit is refused."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmprune.run.config_file import config_path, merge_options


@pytest.fixture
def cfg():
    return Config(
        dict(
            model=dict(type='X', width=8, neck=dict(channels=[3])),
            param_scheduler=[dict(type='A'), dict(type='B', T_max=12)],
        )
    )


@pytest.mark.parametrize(
    ('option', 'near'),
    [
        ('model.widht=3', 'model.width'),
        ('modle.width=3', 'model.width'),
        ('model.neck.chanels=[5]', 'model.neck.channels'),
        ('param_scheduler.1.Tmax=6', 'param_scheduler.1.T_max'),
    ],
)
def test_a_key_that_is_new_is_said_with_the_nearest_one(
    cfg, capsys, option, near
):
    merge_options(cfg, [option])
    key = option.partition('=')[0]
    assert capsys.readouterr().err == (
        f'warning: --cfg-options {key}: the config has no such key, it is '
        f'added; the nearest is {near}\n'
    )


def test_a_new_key_is_added_as_in_mmengine(cfg, capsys):
    merge_options(cfg, ['zzzzzz.deep=3', 'model.width=4'])
    assert (cfg.zzzzzz.deep, cfg.model.width) == (3, 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('no such key, it is added')


def test_keys_of_lists_and_dicts_that_are_there_are_no_news(cfg, capsys):
    merge_options(
        cfg, ['param_scheduler.1.T_max=6', 'model.neck.channels=[1,2]']
    )
    assert cfg.param_scheduler[1].T_max == 6
    assert cfg.model.neck.channels == [1, 2]
    assert capsys.readouterr().err == ''


def test_only_rank_0_says_it(cfg, capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    merge_options(cfg, ['model.widht=3'])
    assert capsys.readouterr().err == ''


def test_a_stock_config_is_found_in_its_package():
    path = config_path('mmdet::retinanet/retinanet_r18_fpn_1x_coco')
    assert path.is_file()
    assert path.parts[-4:-1] == ('.mim', 'configs', 'retinanet')
    assert config_path('some/where.py') == Path('some/where.py')


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('mmdet::retinanet/retinanet_r19_fpn_1x_coco.py', 'r18_fpn_1x_coco'),
        ('mmnothing::a.py', 'is not installed'),
        ('json::a.py', 'has none'),
    ],
)
def test_a_stock_config_that_is_not_there_is_refused(name, why):
    with pytest.raises(ValueError, match=why):
        config_path(name)
