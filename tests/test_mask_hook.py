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
from mmprune.masks import Region, clear, weight_regions
from mmprune.packing import unpack_masks
from mmprune.sparsifying import Masking
from mmprune.sparsifying.masking import _ELEMENTWISE

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


def train_one_layer(kind: type, apply: bool, fill: float = 0.0) -> tuple:
    """Ten steps of a layer with a mask; returns its weight and the mask."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False)
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1)
    masks = {'weight': torch.rand(4, 6) > 0.4}
    masking = Masking(model, [optimizer])
    masking.hold(lambda net: weight_regions(net, masks, {'weight': fill}))
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        if apply:
            masking.apply()
    return model.weight.detach(), masks['weight']


@pytest.mark.parametrize(
    'kind', sorted(_ELEMENTWISE, key=lambda kind: kind.__name__)
)
def test_an_elementwise_optimizer_leaves_zeros_where_they_are(kind):
    weight, mask = train_one_layer(kind, apply=False)
    assert weight[~mask].abs().max() == 0
    assert (weight[mask] != 0).all()


@pytest.mark.parametrize('apply', [False, True])
def test_what_another_optimizer_moves_is_put_back(apply):
    assert torch.optim.Muon not in _ELEMENTWISE
    weight, mask = train_one_layer(torch.optim.Muon, apply)
    assert (weight[~mask].abs().max() == 0) == apply


@pytest.mark.parametrize('apply', [False, True])
def test_weight_decay_moves_a_fill_that_is_put_back(apply):
    weight, mask = train_one_layer(torch.optim.SGD, apply, fill=-1e4)
    assert (weight[~mask] == -1e4).all() == apply


def test_a_frozen_tensor_that_is_thawed_is_put_back():
    model = nn.Linear(2, 1, bias=False).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masking = Masking(model, [optimizer])
    hold(masking, [[False, True]])
    model.requires_grad_(True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert model.weight[0, 0] != 0
    masking.apply()
    assert model.weight[0, 0] == 0


@pytest.mark.parametrize(
    'between, written', [(nn.GELU(), 1), (nn.Sigmoid(), 3)]
)
def test_a_gradient_that_is_zero_by_itself_is_left_alone(
    monkeypatch, between, written
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    units = {'0.weight': (4, 1), '0.bias': (4,), '2.weight': (1, 4)}
    masks = {
        name: (torch.arange(4) > 1).view(shape).expand_as(tensor)
        for (name, shape), tensor in zip(
            units.items(), list(model.parameters())[:3], strict=True
        )
    }
    clear(weight_regions(model, masks))
    masking = Masking(model, [optimizer])
    read = {'2.weight': masks['2.weight']}
    masking.hold(lambda net: weight_regions(net, read), producers_zero=True)
    zeroed = []
    zero = Region.zero
    monkeypatch.setattr(
        Region,
        'zero',
        lambda region, values: zeroed.append(1) or zero(region, values),
    )
    # What a step without any loss gives does not tell one from the other.
    for factor in 0, 1, 1, 1:
        optimizer.zero_grad()
        (factor * model(torch.randn(8, 3)).square().sum()).backward()
        assert (model[2].weight.grad[~masks['2.weight']] == 0).all()
        optimizer.step()
    assert len(zeroed) == 1 + written
    assert zeros(dict(model.named_parameters()), masks) == [0, 0, 0]


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
