"""The shipped VAD configs say what the paper's code says."""

import pytest
from golden import ROOT, build_vad
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import projects.VAD  # noqa: F401
from mmprune.checkpoints.normalization import normalization_of_training
from projects.VAD.data.config_datasets import set_info_file
from projects.VAD.mini_world.keyframe import write_keyframe
from tools import train

FOLDER = ROOT / 'projects' / 'configs' / 'VAD'
SIZES = ('tiny', 'base')
STAGES = ('stage_1', 'stage_2', 'stage_2_rgb', 'e2e')

# epochs, class, box and points weights (as losses and as matching costs),
# the four planning weights
TABLE = {
    'stage_1': (48, 2.0, 0.25, 1.0, (0, 0, 0, 0)),
    'stage_2': (12, 0.8, 0.1, 0.4, (1, 1, 1, 0.5)),
    'stage_2_rgb': (12, 0.8, 0.1, 0.4, (1, 1, 1, 0.5)),
    'e2e': (60, 2.0, 0.25, 1.0, (1, 1, 1, 0.5)),
}


def read(size: str, stage: str) -> Config:
    return Config.fromfile(FOLDER / f'VAD_{size}_{stage}.py')


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('size', SIZES)
def test_stages_differ_in_loss_weights_and_epochs(size, stage):
    epochs, cls, box, points, plan = TABLE[stage]
    config = read(size, stage)
    loss = config.model.pts_bbox_head.loss
    assert loss.loss_cls == loss.loss_map_cls == cls
    assert loss.cls_cost == loss.map_cls_cost == cls
    assert loss.loss_bbox == loss.bbox_cost == box
    assert loss.loss_map_pts == loss.map_pts_cost == points
    assert (loss.loss_traj, loss.loss_traj_cls) == (0.2, 0.2)
    assert loss.loss_map_dir == 0.005
    assert plan == tuple(
        loss[f'loss_plan_{name}'] for name in ('reg', 'bound', 'col', 'dir')
    )
    assert loss.loss_iou == loss.loss_map_bbox == loss.loss_map_iou == 0
    assert config.train_cfg.max_epochs == epochs
    assert config.param_scheduler[1].T_max == epochs
    assert config.family == 'vad'


# The released weights want grey levels of BGR; what starts from torchvision's
# ResNet, and goes on from there, RGB by ImageNet's deviation.
BGR = [103.530, 116.280, 123.675], [1, 1, 1], False
RGB = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('size', SIZES)
def test_pictures_are_normalised_as_the_start_of_the_stage_was(size, stage):
    config = read(size, stage)
    for name in ('train', 'val', 'test'):
        pipeline = config[f'{name}_dataloader'].dataset.pipeline
        steps = {step.type: step for step in pipeline}
        found = steps['NormalizeMultiviewImage']
        expected = BGR if stage == 'stage_2' else RGB
        assert (found.mean, found.std, found.to_rgb) == expected
        scale = steps['RandomScaleImageMultiViewImage'].scales
        assert scale == [{'tiny': 0.4, 'base': 0.8}[size]]
    assert config.test_dataloader.dataset.pipeline == config.test_pipeline


@pytest.mark.parametrize('stage', STAGES)
def test_checkpoints_will_know_their_normalisation(tmp_path, stage):
    """A Runner writes the meta information of the training data into them."""
    init_default_scope('mmdet3d')
    config = read('tiny', stage)
    config.train_dataloader.dataset.ann_file = str(write_keyframe(tmp_path))
    dataset = DATASETS.build(config.train_dataloader.dataset)
    meta = dict(dataset_meta=dataset.metainfo)
    found = normalization_of_training(meta)
    expected = BGR if stage == 'stage_2' else RGB
    assert (found['mean'], found['std'], found['to_rgb']) == expected


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('stage', ['stage_2', 'stage_2_rgb'])
def test_the_second_stage_refuses_to_start_from_random_weights(
    size, stage, capsys, tmp_path
):
    """Its stem is frozen, and nothing but a checkpoint fills it."""
    words = [FOLDER / f'VAD_{size}_{stage}.py', '--work-dir', tmp_path]
    with pytest.raises(SystemExit) as end:
        train.main([str(word) for word in words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert (
        f'VAD_{size}_{stage}.py goes on from the weights of another' in error
    )
    first = f'work_dirs/VAD_{size}_stage_1/epoch_48.pth'
    assert f'add --load-from {first}' in error


@pytest.mark.parametrize('stage', ['stage_1', 'e2e'])
def test_what_trains_from_scratch_needs_no_checkpoint(stage):
    config = read('tiny', stage)
    assert not config.custom_hooks
    assert 'torchvision' in config.model.img_backbone.init_cfg.checkpoint


def test_a_stock_runner_takes_the_config(tmp_path):
    config = read('tiny', 'stage_2')
    config.work_dir = str(tmp_path)
    runner = Runner.from_cfg(config)
    assert type(runner.model) is projects.VAD.VAD


def test_the_schedule_trains_the_backbone_ten_times_slower():
    config = read('tiny', 'stage_1')
    model = build_vad('tiny', 'stage_1')
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    rates = {
        id(parameter): group['lr']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert rates[id(model.img_backbone.layer2[0].conv1.weight)] == (
        pytest.approx(2e-5)
    )
    assert rates[id(model.img_neck.fpn_convs[0].conv.weight)] == 2e-4


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('size', SIZES)
def test_training_is_set_up_as_published(size, stage):
    config = read(size, stage)
    loader = config.train_dataloader
    assert loader.batch_size == 1
    assert loader.sampler == dict(type='DefaultSampler', shuffle=True)
    assert loader.dataset.queue_length == {'tiny': 3, 'base': 4}[size]
    assert loader.dataset.use_valid_flag
    assert not loader.dataset.get('test_mode')
    assert loader.dataset.pipeline == config.train_pipeline
    assert [step.type for step in config.train_pipeline] == [
        'LoadMultiViewImageFromFiles',
        'PhotoMetricDistortionMultiViewImage',
        'CustomObjectRangeFilter',
        'CustomObjectNameFilter',
        'NormalizeMultiviewImage',
        'RandomScaleImageMultiViewImage',
        'PadMultiViewImage',
        'PackVADInputs',
    ]
    assert config.train_pipeline[2:] == config.test_pipeline[1:]
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('AdamW', 2e-4)
    assert optimizer.weight_decay == 0.01
    assert config.optim_wrapper.clip_grad == dict(max_norm=35, norm_type=2)
    warm_up, cosine = config.param_scheduler
    assert (warm_up.end, warm_up.by_epoch) == (500, False)
    assert warm_up.start_factor == pytest.approx(1 / 3)
    assert cosine.eta_min_ratio == 1e-3
    assert config.auto_scale_lr.base_batch_size == 8


@pytest.mark.parametrize('stage', STAGES)
def test_every_epoch_is_kept_and_every_hundredth_step_logged(stage):
    hooks = read('tiny', stage).default_hooks
    assert hooks.checkpoint.interval == 1
    assert hooks.checkpoint.get('max_keep_ckpts', -1) == -1
    assert hooks.logger.interval == 100
    assert read('tiny', stage).log_processor.window_size == 100


@pytest.mark.parametrize('name', ['train', 'val', 'test'])
def test_data_are_vad_info_files_below_the_folder(name, monkeypatch):
    monkeypatch.setenv('MMPRUNE_NUSCENES', '/disk/nuscenes')
    monkeypatch.delenv('MMPRUNE_INFOS', raising=False)
    dataset = read('tiny', 'e2e')[f'{name}_dataloader'].dataset
    split = 'train' if name == 'train' else 'val'
    assert dataset.data_root == '/disk/nuscenes'
    assert dataset.ann_file == f'vad_nuscenes_infos_temporal_{split}.pkl'
    assert dataset.type == 'NuScenesVADDataset'
    assert bool(dataset.get('test_mode')) == (name != 'train')


def test_testing_needs_no_training_data(tmp_path):
    """One drawn keyframe is on disk, and nothing else."""
    config = read('tiny', 'stage_2')
    keyframe = write_keyframe(tmp_path / 'keyframe')
    config.test_dataloader.dataset.ann_file = str(keyframe)
    config.test_dataloader.num_workers = 0
    config.test_dataloader.persistent_workers = False
    config.work_dir = str(tmp_path / 'work')
    runner = Runner.from_cfg(config)
    loader = runner.build_dataloader(config.test_dataloader)
    [batch] = list(loader)
    assert batch['inputs']['img'][0].shape == (6, 3, 384, 640)
    with pytest.raises(FileNotFoundError, match='temporal_train.pkl does not'):
        runner.build_dataloader(config.train_dataloader)


def test_validation_and_test_can_be_pointed_at_one_keyframe(tmp_path):
    config = read('tiny', 'stage_2')
    keyframe = write_keyframe(tmp_path)
    set_info_file(config, keyframe)
    for name in ('val', 'test'):
        dataset = DATASETS.build(config[f'{name}_dataloader'].dataset)
        assert len(dataset) == 1


def test_configs_survive_being_written_and_read():
    for size in SIZES:
        config = read(size, 'e2e')
        again = Config.fromstring(config.dump(), '.py')
        assert again.to_dict() == config.to_dict()
