"""A run that was killed and resumed ends bit by bit like one that was not."""

import random

import numpy as np
import pytest
import torch
from tiny_training import config, differing, final, run, run_with_crash

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.hooks.seed_hook import seed_all, seed_worker
from mmprune.registry import FUNCTIONS

SEED = dict(type='mmprune.SeedHook')
EMA = dict(type='EMAHook', momentum=0.1)
AMP = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-3),
    clip_grad=dict(max_norm=1.0),
)
ADAM = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-2),
    accumulative_counts=3,
    paramwise_cfg=dict(bias_lr_mult=2.0),
)
WORKERS = dict(
    batch_size=3,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='NoisyPoints'),
)
BY_ITERATION = dict(
    train_cfg=dict(by_epoch=False, max_iters=16, val_interval=100),
    train_dataloader=dict(
        batch_size=3,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset=dict(type='NoisyPoints'),
    ),
    default_hooks=dict(
        checkpoint=dict(
            type='mmprune.SafeCheckpointHook', by_epoch=False, interval=5
        )
    ),
)


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's wrapper runs on the CPU, but asks for a GPU."""
    name = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(name, lambda: True)


CASES = {
    'plain': dict(custom_hooks=[SEED]),
    'ema': dict(custom_hooks=[SEED, EMA]),
    'amp': dict(custom_hooks=[SEED, EMA], optim_wrapper=AMP),
    # 4 batches an epoch, 3 in a step: epochs end in the middle of one.
    'accumulation': dict(custom_hooks=[SEED, EMA], optim_wrapper=ADAM),
    'no seed given': dict(custom_hooks=[SEED], randomness=dict(seed=None)),
    'seed per rank': dict(
        custom_hooks=[SEED], randomness=dict(seed=None, diff_rank_seed=True)
    ),
    'workers': dict(custom_hooks=[SEED], train_dataloader=WORKERS),
    'iterations': dict(custom_hooks=[SEED, EMA], **BY_ITERATION),
    'iterations with workers': dict(
        custom_hooks=[SEED],
        **{
            **BY_ITERATION,
            'randomness': dict(seed=None),
            'train_dataloader': dict(
                WORKERS, sampler=dict(type='InfiniteSampler', shuffle=True)
            ),
        },
    ),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_resumed_run_ends_bit_identical(case, tmp_path, amp_on_cpu):
    changes = CASES[case]
    run_with_crash(config(tmp_path / 'crashed', **changes), after=11)
    crashed = final(tmp_path / 'crashed')
    # Where the config gives no seed, the Runner chose one.
    seed = dict(randomness=dict(seed=crashed['meta']['seed']))
    run(config(tmp_path / 'whole', **{**changes, **seed}))
    whole = final(tmp_path / 'whole')
    assert differing(crashed, whole) == []
    assert len(whole['state_dict']) == 6


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_without_the_hook_a_resumed_run_ends_elsewhere(tmp_path):
    run_with_crash(config(tmp_path / 'crashed'), after=11)
    run(config(tmp_path / 'whole'))
    assert differing(final(tmp_path / 'crashed'), final(tmp_path / 'whole'))


def test_a_checkpoint_within_an_accumulation_holds_the_gradients(tmp_path):
    changes = dict(custom_hooks=[SEED], optim_wrapper=ADAM)
    run(config(tmp_path, epochs=2, **changes))
    # 4 batches an epoch: one of a step's three is done after the first.
    first = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    assert first['pending_gradients'].keys() == first['state_dict'].keys()
    # The last step of a run takes what there is.
    assert 'pending_gradients' not in final(tmp_path)


def drawn() -> tuple:
    return (
        torch.rand(1).item(),
        float(np.random.rand()),
        random.random(),
    )


def test_seed_epoch_and_rank_each_change_all_generators():
    streams = []
    for key in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (2, 0, 0), (1, 0, 0)):
        seed_all(*key)
        streams.append(drawn())
    assert streams[0] == streams[-1]
    for generator in zip(*streams[:-1], strict=True):
        assert len(set(generator)) == 4


def test_workers_are_seeded_from_the_epoch(tmp_path):
    loader = dict(WORKERS, worker_init_fn=dict(type='mmprune.seed_worker'))
    assert FUNCTIONS.get('mmprune.seed_worker') is seed_worker
    seen = {}
    for name, changes in (
        ('named', dict(train_dataloader=loader)),
        ('by the hook', dict(train_dataloader=WORKERS)),
    ):
        runner = run(
            config(tmp_path / name, epochs=1, custom_hooks=[SEED], **changes)
        )
        seen[name] = runner.train_dataloader.worker_init_fn
        epochs = []
        for epoch in (0, 1, 0):
            seed_all(7, epoch)
            batches = list(runner.train_dataloader)
            epochs.append(torch.stack([b['inputs'][0] for b in batches]))
        assert torch.equal(epochs[0], epochs[2])
        assert not torch.isclose(epochs[0], epochs[1]).all(1).any()
    assert seen['by the hook'] is seed_worker


def test_workers_that_outlive_an_epoch_are_refused(tmp_path):
    loader = dict(WORKERS, persistent_workers=True)
    with pytest.raises(ValueError, match='set persistent_workers=False'):
        run(config(tmp_path, custom_hooks=[SEED], train_dataloader=loader))


def test_a_seed_that_the_config_gives_the_sampler_stays(tmp_path):
    loader = dict(WORKERS, num_workers=0)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=True, seed=123)
    runner = run(
        config(
            tmp_path, epochs=1, custom_hooks=[SEED], train_dataloader=loader
        )
    )
    assert runner.train_dataloader.sampler.seed == 123
