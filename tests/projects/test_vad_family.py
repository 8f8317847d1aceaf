"""What VAD tells the pruner: groups without data, and truthful sources."""

import copy
import pickle

import pytest
from golden import ROOT, build_vad
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmprune.registry import TASK_UTILS
from projects.VAD.data.info_file import load_info_file
from projects.VAD.pruning import samples
from projects.VAD.pruning.family import VADPruning
from projects.VAD.pruning.samples import DRAWN

CONFIG = ROOT / 'projects' / 'configs' / 'VAD' / 'VAD_tiny_stage_2.py'
INFOS = 'vad_nuscenes_infos_temporal_{}.pkl'


@pytest.fixture
def cfg(converted_copy) -> Config:
    """The shipped config over that folder; small pictures."""
    init_default_scope('mmdet3d')
    cfg = Config.fromfile(CONFIG)
    for name in ('train', 'test'):
        cfg[f'{name}_dataloader'].dataset.data_root = str(converted_copy)
        cfg[f'{name}_dataloader'].dataset.pipeline[-3].scales = [0.5]
    return cfg


@pytest.fixture
def drawings(monkeypatch) -> list[tuple[int, int]]:
    """Sizes of the keyframes that were drawn."""
    sizes = []
    write_keyframe = samples.write_keyframe

    def spy(folder, seed=0, size=None):
        sizes.append(size)
        return write_keyframe(folder, seed, (160, 90))

    monkeypatch.setattr(samples, 'write_keyframe', spy)
    return sizes


def build(cfg: Config) -> VADPruning:
    return TASK_UTILS.build({**cfg.pruning, 'cfg': cfg})


def tokens(family: VADPruning) -> list[str]:
    return [batch['data_samples'][0].token for batch in family.batches()]


def test_groups_touch_no_data(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('data were touched')

    monkeypatch.setattr(samples, 'write_keyframe', refuse)
    monkeypatch.setattr(samples.DATASETS, 'build', refuse)
    monkeypatch.setattr(samples, 'info_file', refuse)
    cfg = Config.fromfile(CONFIG)
    cfg.test_dataloader.dataset.data_root = '/nowhere'
    cfg.train_dataloader.dataset.data_root = '/nowhere'
    family = build(cfg)
    assert len(list(family.groups(build_vad('tiny')))) > 90
    assert 'norm' in family.dense_reason('x.norm.weight')
    with pytest.raises(AssertionError, match='data were touched'):
        family.example  # noqa: B018


def test_calibration_reads_training_data_and_the_example_test_data(
    cfg, converted_copy, drawings
):
    family = build(cfg)
    assert tokens(family) == [f'scene-0061 {i}' for i in range(4)]
    assert family.example['data_samples'].token == 'scene-0103 0'
    assert family.calibration_source == str(
        converted_copy / INFOS.format('train')
    )
    assert family.source == str(converted_copy / INFOS.format('val'))
    assert not drawings


def test_calibration_reads_no_more_keyframes_than_batches(cfg, converted_copy):
    """What follows them in the file is not even there."""
    cfg.pruning.num_batches = 2
    path = converted_copy / INFOS.format('train')
    content = load_info_file(path, temporal=True)
    four = content['infos']
    content['infos'] = [copy.deepcopy(four[i % 4]) for i in range(120)]
    whole = pickle.dumps(content, protocol=4)
    path.write_bytes(whole[: len(whole) - len(whole) // 4])
    assert tokens(build(cfg)) == ['scene-0061 0', 'scene-0061 1']
    with pytest.raises(ValueError, match='is not a whole pickle'):
        DATASETS.build(cfg.train_dataloader.dataset)


def test_calibration_repeats_itself(cfg):
    """No distortion of colours, no frame that is left out by chance."""
    kinds = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert any('Distortion' in kind for kind in kinds)
    first, second = (build(cfg).batches() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        images = one['inputs']['img'][0]
        assert images.shape == (6, 3, 64, 96)
        assert images.equal(other['inputs']['img'][0])


def test_boxes_count_as_in_training(cfg, converted_copy):
    """The pedestrian has no LiDAR point, and the file calls it valid."""
    path = converted_copy / INFOS.format('train')
    content = load_info_file(path, temporal=True)
    for info in content['infos']:
        info['valid_flag'][:] = True
    path.write_bytes(pickle.dumps(content))
    labels = {}
    for flag in (True, False):
        cfg.train_dataloader.dataset.use_valid_flag = flag
        sample = build(cfg).batches()[0]['data_samples'][0]
        labels[flag] = sample.gt_instances_3d.labels_3d.tolist()
    assert labels == {True: [0, 8], False: [0]}


def test_validation_data_never_take_the_place_of_training_data(
    cfg, converted_copy, drawings
):
    (converted_copy / INFOS.format('train')).unlink()
    family = build(cfg)
    assert tokens(family) == ['synthetic_0000']
    assert family.calibration_source == DRAWN
    assert family.source == str(converted_copy / INFOS.format('val'))
    assert family.example['data_samples'].token == 'scene-0103 0'
    assert drawings == [(1600, 900)]


def test_without_any_data_one_frame_is_drawn_for_both(
    cfg, converted_copy, drawings
):
    for split in ('train', 'val'):
        (converted_copy / INFOS.format(split)).unlink()
    cfg.pruning.picture_size = (400, 225)
    family = build(cfg)
    assert not drawings
    assert family.source == family.calibration_source == DRAWN
    assert family.example['data_samples'].token == 'synthetic_0000'
    assert tokens(family) == ['synthetic_0000']
    assert drawings == [(400, 225)]


def test_a_file_that_is_named_serves_for_both(cfg, converted_copy, drawings):
    """Also one of validation data: that is being told to."""
    path = converted_copy / INFOS.format('val')
    VADPruning.use_annotations(cfg, path)
    family = build(cfg)
    assert family.source == family.calibration_source == str(path)
    assert tokens(family) == ['scene-0103 0', 'scene-0103 1']
    assert family.example['data_samples'].token == 'scene-0103 0'
    with pytest.raises(FileNotFoundError, match='no.pkl does not exist'):
        VADPruning.use_annotations(cfg, 'no.pkl')


def test_a_file_that_is_named_is_not_trained_on(cfg, converted_copy):
    before = cfg.train_dataloader.to_dict()
    VADPruning.use_annotations(cfg, converted_copy / INFOS.format('val'))
    assert cfg.train_dataloader.to_dict() == before


def test_without_training_data_a_file_that_is_named_is_calibrated_on(
    cfg, converted_copy, drawings
):
    path = converted_copy / INFOS.format('val')
    cfg.pop('train_dataloader')
    VADPruning.use_annotations(cfg, path)
    family = build(cfg)
    assert family.calibration_source == str(path)
    assert tokens(family) == ['scene-0103 0', 'scene-0103 1']
    assert not drawings


def test_the_config_stays_as_it_is(cfg):
    before = copy.deepcopy(cfg.to_dict())
    family = build(cfg)
    family.batches()
    family.example  # noqa: B018
    assert cfg.to_dict() == before


def test_the_first_dataset_of_a_wrapper_is_calibrated_on(cfg):
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=inner
    )
    assert tokens(build(cfg))[0] == 'scene-0061 0'


def test_a_config_without_test_data_is_refused(cfg):
    cfg.test_dataloader = None
    with pytest.raises(ValueError, match='has no test_dataloader'):
        build(cfg).example  # noqa: B018
