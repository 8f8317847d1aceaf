"""Zeros stay zeros through everything that a training does."""

import itertools

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny_training import (
    config,
    differing,
    final,
    run,
    run_with_crash,
    sparse_checkpoint,
)
from torch import nn

from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.masks import weight_regions
from mmprune.packing import unpack_masks
from mmprune.sparsifying import Masking

SEED = dict(type='mmprune.SeedHook')
EMA = dict(type='EMAHook', momentum=0.1)
MASK = dict(type='mmprune.MaskHook')
OPTIMIZERS = {
    'sgd': dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1),
    'nesterov': dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True),
    'adamw': dict(type='AdamW', lr=0.05, weight_decay=0.1),
}


@pytest.fixture
def pruned(tmp_path):
    """A weight-sparse checkpoint and its masks."""
    path = tmp_path / 'sparse.pth'
    return path, sparse_checkpoint(path)


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's wrapper runs on the CPU, but asks for a GPU."""
    name = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(name, lambda: True)


def zeros(state: dict, masks: dict) -> list[float]:
    """The largest magnitude where a mask drops, per tensor."""
    return [state[n][~m].abs().max().item() for n, m in masks.items()]


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('steps', [1, 3])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_weights_momentum_and_average_stay_sparse(
    tmp_path, pruned, amp_on_cpu, optimizer, amp, steps
):
    path, masks = pruned
    wrapper = dict(
        type='AmpOptimWrapper' if amp else 'OptimWrapper',
        optimizer=OPTIMIZERS[optimizer],
        accumulative_counts=steps,
        clip_grad=dict(max_norm=1.0),
        **(dict(dtype='bfloat16') if amp else {}),
    )
    runner = run(
        config(
            tmp_path / 'run',
            load_from=str(path),
            custom_hooks=[MASK, EMA],
            optim_wrapper=wrapper,
        )
    )
    saved = final(tmp_path / 'run')
    live = dict(runner.model.named_parameters())
    assert zeros(live, masks) == [0, 0]
    # The averaged weights are those under state_dict.
    assert zeros(saved['state_dict'], masks) == [0, 0]
    for name, mask in masks.items():
        kept = live[name][mask]
        assert (kept != 0).all()
        assert not torch.equal(kept, saved['state_dict'][name][mask])
        for value in runner.optim_wrapper.optimizer.state[live[name]].values():
            if value.shape == mask.shape:
                assert value[~mask].abs().max() == 0
                assert (value[mask] != 0).any()


def test_without_the_hook_the_zeros_are_lost(tmp_path, pruned):
    path, masks = pruned
    runner = run(config(tmp_path / 'run', load_from=str(path)))
    lost = zeros(dict(runner.model.named_parameters()), masks)
    assert min(lost) > 1e-3


def hold(masking: Masking, keep: list) -> None:
    masks = {'weight': torch.tensor(keep)}
    masking.hold(lambda model: weight_regions(model, masks))


def test_masked_gradients_do_not_count_in_the_norm():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 1.0]])
    masking = Masking(model)
    hold(masking, [[True, False]])
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert model.weight.grad.tolist() == [[3, 0]]
    assert nn.utils.clip_grad_norm_(model.parameters(), 10).item() == 3
    # An overflown gradient, as loss scaling makes them, stays no NaN.
    model(torch.tensor([[1.0, float('inf')]])).sum().backward()
    assert model.weight.grad.tolist() == [[4, 0]]
    masking.release()
    model(torch.tensor([[0.0, 5.0]])).sum().backward()
    assert model.weight.grad.tolist() == [[4, 5]]


def test_new_masks_clear_gradients_and_momentum_so_far():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    optimizer.step()
    masking = Masking(model, [optimizer])
    hold(masking, [[False, True]])
    assert model.weight.grad.tolist() == [[0, 4]]
    momentum = optimizer.state[model.weight]['momentum_buffer']
    assert momentum.tolist() == [[0, 4]]
    assert model.weight[0, 0] == 0


@HOOKS.register_module()
class ZeroOneHook(Hook):
    """Sets a surviving weight to exactly zero after the first epoch."""

    priority = 'HIGH'

    def after_train_epoch(self, runner) -> None:
        """Sets the weight, once."""
        if runner.epoch == 0:
            runner.model.net[0].weight.data[0, 1] = 0


def test_a_survivor_that_becomes_zero_is_not_frozen(tmp_path, pruned):
    path, masks = pruned
    assert masks['net.0.weight'][0, 1]
    hooks = [SEED, MASK, dict(type='ZeroOneHook')]
    changes = dict(custom_hooks=hooks, param_scheduler=None)
    work_dir = tmp_path / 'run'
    run(config(work_dir, epochs=1, load_from=str(path), **changes))
    assert final(work_dir)['state_dict']['net.0.weight'][0, 1] == 0
    runner = run(config(work_dir, epochs=2, resume=True, **changes))
    assert runner.model.net[0].weight[0, 1] != 0
    live = dict(runner.model.named_parameters())
    assert zeros(live, masks) == [0, 0]


def test_the_masks_in_a_checkpoint_are_those_of_the_start(tmp_path, pruned):
    path, masks = pruned
    hooks = [MASK, dict(type='mmprune.PlanHook')]
    run(config(tmp_path / 'run', load_from=str(path), custom_hooks=hooks))
    saved = final(tmp_path / 'run')
    found, fills = unpack_masks(saved['pruning_masks'])
    assert fills == {}
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[n], masks[n]) for n in masks)
    bits = saved['pruning_masks']['net.0.weight']['bits']
    assert (bits.dtype, len(bits)) == (torch.uint8, 32 // 8)
    # The next run learns from it which weights are sparse.
    assert saved['meta']['pruning_plan']['sparse'].keys() == masks.keys()


def test_a_resumed_sparse_run_ends_bit_identical(tmp_path, pruned):
    path, masks = pruned
    changes = dict(load_from=str(path), custom_hooks=[SEED, MASK, EMA])
    run(config(tmp_path / 'whole', **changes))
    crashed = config(tmp_path / 'crashed', **changes)
    # The second start resumes from the folder.
    again = run_with_crash(crashed, after=11, load_from=None)
    one, other = final(tmp_path / 'whole'), final(tmp_path / 'crashed')
    assert differing(one, other) == []
    assert again.iter == 16


def test_names_choose_the_tensors(tmp_path, pruned):
    path, masks = pruned
    hook = dict(type='mmprune.MaskHook', names=r'net\.0\.weight')
    runner = run(
        config(tmp_path / 'run', load_from=str(path), custom_hooks=[hook])
    )
    one, other = zeros(dict(runner.model.named_parameters()), masks)
    assert one == 0
    assert other > 0


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (MASK, 'neither the checkpoint nor the model says'),
        (dict(MASK, names='decoder'), "names='decoder' matches no parameter"),
    ],
)
def test_what_cannot_be_masked_is_refused(tmp_path, hook, message):
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path, custom_hooks=[hook]))


def test_a_plan_of_another_model_is_refused(tmp_path, pruned):
    path, _ = pruned
    checkpoint = load_checkpoint_file(path, mmap=False)
    checkpoint['meta']['pruning_plan']['sparse'] = {'head.weight': 'x'}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="calls 'head.weight' sparse"):
        run(config(tmp_path, load_from=str(path), custom_hooks=[MASK]))


@HOOKS.register_module()
class DisturbHook(Hook):
    """Writes into a pruned weight when all other hooks are done."""

    priority = 'VERY_LOW'

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Writes."""
        runner.model.net[0].weight.data[0, 0] = 1


def test_a_weight_that_strays_is_found_after_training(tmp_path, pruned):
    path, masks = pruned
    assert not masks['net.0.weight'][0, 0]
    hooks = [MASK, dict(type='DisturbHook')]
    cfg = config(tmp_path / 'run', load_from=str(path), custom_hooks=hooks)
    with pytest.raises(ValueError, match='1 weights of net.0.weight are prun'):
        run(cfg)


def test_the_sparsity_is_logged(tmp_path, pruned):
    path, _ = pruned
    runner = run(
        config(tmp_path / 'run', load_from=str(path), custom_hooks=[MASK])
    )
    history = runner.message_hub.get_scalar('train/sparsity').data[0]
    assert history.tolist() == [0.5] * 16


def test_the_hook_comes_before_the_average():
    from mmengine.hooks import EMAHook
    from mmengine.runner import get_priority

    from mmprune.hooks import MaskHook

    order = [get_priority(h.priority) for h in (MaskHook, EMAHook)]
    assert all(a < b for a, b in itertools.pairwise(order))
