"""A gradual pruning meets its schedule at every step, on every rank."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tiny_models import CASES
from tiny_training import (
    TinyMLP,
    config,
    differing,
    final,
    run,
    run_with_crash,
)

from mmprune.adapters import ffn_groups
from mmprune.masks import mask_plan
from mmprune.packing import unpack_masks
from mmprune.plan import PruningPlan
from mmprune.pruners import (
    StructuredPruner,
    WeightPruner,
    plan_from_zeros,
    prunable_weights,
)
from mmprune.schedule import CubicSchedule
from mmprune.sparsifying import GradientAverages
from mmprune.surgery import apply_plan

SEED = dict(type='mmprune.SeedHook')
PLAN = dict(type='mmprune.PlanHook')
EMA = dict(type='EMAHook', momentum=0.1)
WEIGHTS = dict(type='mmprune.WeightPruner')
UNITS = dict(type='mmprune.StructuredPruner')
TAYLOR = dict(UNITS, importance=dict(type='mmprune.Taylor'))
AVERAGED = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    accumulative_counts=2,
    optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
)


def cubic(**changes) -> dict:
    return {
        **dict(type='mmprune.CubicSchedule', begin=2, end=14, final=0.8),
        **changes,
    }


def gradual(pruner: dict, schedule: dict | None = None, **kwargs) -> dict:
    return dict(
        type='mmprune.GradualPruningHook',
        pruner=pruner,
        schedule=schedule or cubic(),
        **kwargs,
    )


@HOOKS.register_module()
class WatchHook(Hook):
    """Keeps what is zero after each iteration."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.weights, self.units = [], []

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Looks at the weights."""
        weights = prunable_weights(runner.model)
        self.weights.append({n: w == 0 for n, w in weights.items()})
        self.units.append(dead_units(runner.model))


def dead_units(model) -> dict[str, list[int]]:
    try:
        plan = plan_from_zeros(model, ffn_groups(model))
    except ValueError:
        return {}
    return {g.name: plan.removed(g) for g in plan.groups}


@pytest.fixture
def watched():
    """Returns a run's Runner and what its WatchHook saw."""

    def watch(cfg):
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='WatchHook')]
        runner = run(cfg)
        (hook,) = (h for h in runner.hooks if isinstance(h, WatchHook))
        return runner, hook

    return watch


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's wrapper runs on the CPU, but asks for a GPU."""
    name = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(name, lambda: True)


@pytest.mark.parametrize(
    'schedule',
    [
        cubic(),
        cubic(type='mmprune.LinearSchedule'),
        cubic(type='mmprune.ExponentialSchedule', initial=0.1),
    ],
    ids=lambda s: s['type'],
)
@pytest.mark.parametrize('scope', ['global', 'layer'])
def test_weights_meet_the_schedule_at_every_step(
    tmp_path, watched, schedule, scope
):
    from mmprune.registry import TASK_UTILS

    hook = gradual(dict(WEIGHTS, scope=scope), schedule)
    _, seen = watched(config(tmp_path, custom_hooks=[hook]))
    asked = TASK_UTILS.build(schedule)
    assert len(seen.weights) == 16
    for step, zeros in enumerate(seen.weights, 1):
        parts = [torch.cat([z.flatten() for z in zeros.values()])]
        if scope == 'layer':
            parts = list(zeros.values())
        for part in parts:
            wanted = int(asked(step) * part.numel() + 0.5)
            assert int(part.sum()) == wanted, step
    for before, after in zip(seen.weights, seen.weights[1:], strict=False):
        assert not any((before[n] & ~after[n]).any() for n in before)


@pytest.mark.parametrize('pruner', [UNITS, TAYLOR], ids=['l1', 'taylor'])
def test_units_meet_the_schedule_at_every_step(tmp_path, watched, pruner):
    hook = gradual(pruner, cubic(final=0.5))
    _, seen = watched(config(tmp_path, custom_hooks=[hook]))
    asked = CubicSchedule(2, 14, 0.5)
    for step, dead in enumerate(seen.units, 1):
        wanted = int(asked(step) * 16 + 0.5)
        assert sum(map(len, dead.values())) == wanted, step
    for before, after in zip(seen.units, seen.units[1:], strict=False):
        assert all(set(u) <= set(after[n]) for n, u in before.items())


def test_intervals_and_epochs_count_their_steps(tmp_path, watched):
    schedule = cubic(type='mmprune.LinearSchedule', begin=2, end=13)
    hook = gradual(WEIGHTS, schedule, interval=5)
    _, seen = watched(config(tmp_path / 'i', custom_hooks=[hook]))
    counts = [sum(int(z.sum()) for z in s.values()) for s in seen.weights]
    changes = [i + 1 for i in range(1, 16) if counts[i] != counts[i - 1]]
    assert changes == [7, 12, 13]
    hook = gradual(WEIGHTS, cubic(begin=0, end=2), by_epoch=True)
    runner, seen = watched(
        config(tmp_path / 'e', epochs=3, custom_hooks=[hook])
    )
    counts = [sum(int(z.sum()) for z in s.values()) for s in seen.weights]
    # 120 weights; after epoch 1 and 2, seen from the next iteration on.
    assert counts == [0] * 4 + [84] * 4 + [96] * 4


@pytest.mark.parametrize('pruner', [WEIGHTS, UNITS], ids=['weights', 'units'])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_momentum_and_average_are_as_sparse(tmp_path, amp_on_cpu, pruner):
    hooks = [gradual(pruner, cubic(final=0.6)), EMA]
    runner = run(config(tmp_path, custom_hooks=hooks, optim_wrapper=AVERAGED))
    saved = final(tmp_path)
    masks, fills = unpack_masks(saved['pruning_masks'])
    assert fills == {}
    live = dict(runner.model.named_parameters())
    state = runner.optim_wrapper.optimizer.state
    for name, mask in masks.items():
        assert (~mask).any()
        for tensor in (
            live[name],
            saved['state_dict'][name],
            saved['ema_state_dict'][f'module.{name}'],
            state[live[name]]['exp_avg'],
            state[live[name]]['exp_avg_sq'],
        ):
            assert tensor[~mask].abs().max() == 0
            assert (tensor[mask] != 0).any()


@pytest.mark.parametrize('after', [3, 11])
@pytest.mark.parametrize(
    'pruner', [WEIGHTS, UNITS, TAYLOR], ids=['weights', 'units', 'taylor']
)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_resumed_run_ends_bit_identical(tmp_path, amp_on_cpu, pruner, after):
    hooks = [SEED, gradual(pruner, cubic(final=0.6), interval=3), EMA]
    changes = dict(
        custom_hooks=hooks,
        optim_wrapper=AVERAGED,
        default_hooks=dict(
            checkpoint=dict(
                type='mmprune.SafeCheckpointHook', by_epoch=False, interval=2
            )
        ),
        train_cfg=dict(by_epoch=False, max_iters=16, val_interval=99),
        train_dataloader=dict(
            batch_size=3,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(type='NoisyPoints'),
        ),
    )
    run(config(tmp_path / 'whole', **changes))
    run_with_crash(config(tmp_path / 'crashed', **changes), after=after)
    one, other = final(tmp_path / 'whole'), final(tmp_path / 'crashed')
    assert differing(one, other) == []
    assert one['meta'].get('masked_plan') == other['meta'].get('masked_plan')


def test_the_plan_of_a_model_says_what_is_sparse(tmp_path):
    changes = dict(custom_hooks=[SEED, gradual(WEIGHTS), PLAN])
    cfg = config(tmp_path, **changes)
    runner = Runner.from_cfg(cfg)
    runner.model.pruning_plan = PruningPlan((), {})
    runner.train()
    plan = runner.model.pruning_plan
    assert plan.sparse == dict.fromkeys(
        prunable_weights(runner.model), 'unstructured'
    )
    # A resumed run tells it from the masks of its checkpoint.
    cfg.experiment_name += 'again'
    cfg.resume = True
    cfg.train_cfg.max_epochs = 5
    again = Runner.from_cfg(cfg)
    again.model.pruning_plan = PruningPlan((), {})
    again.train()
    assert again.model.pruning_plan == plan


def test_the_plan_of_a_masked_run_gives_the_small_model(tmp_path):
    hook = gradual(UNITS, cubic(final=0.5))
    runner = run(config(tmp_path, custom_hooks=[hook]))
    masked = runner.model.eval()
    saved = final(tmp_path)
    plan = plan_from_zeros(masked, ffn_groups(masked))
    written = PruningPlan.from_dict(saved['meta']['masked_plan'])
    assert plan.keep == written.keep
    assert 'pruning_plan' not in saved['meta']
    small = copy.deepcopy(masked)
    apply_plan(small, plan)
    x = torch.randn(5, 4)
    assert torch.allclose(small(x), masked(x), atol=1e-6)
    count = sum(p.numel() for p in small.parameters())
    assert count < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize('case', ['resnet', 'vit', 'llama', 'distilbert'])
def test_zeroed_units_of_any_family_become_a_plan(case):
    model, forward, groups = CASES[case]()
    keep = {g.name: list(range(g.size // 2)) for g in groups if not g.dense}
    asked = PruningPlan(tuple(g for g in groups if not g.dense), keep)
    mask_plan(model, asked)
    found = plan_from_zeros(model, groups)
    assert found.keep == keep
    with torch.no_grad():
        expected = forward(model)
        apply_plan(model, found)
        assert torch.allclose(forward(model), expected, atol=1e-4)


def test_units_that_nobody_writes_are_zero_as_well():
    model = TinyMLP().eval()
    with torch.no_grad():
        model.net[0].weight[2] = 0
        model.net[0].bias[2] = 0
        model.net[0].weight[3] = 0
    plan = plan_from_zeros(model, ffn_groups(model))
    assert {g.name: plan.removed(g) for g in plan.groups} == {'net.0': [2]}
    x = torch.randn(5, 4)
    expected = model(x)
    apply_plan(model, plan)
    assert torch.allclose(model(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match='none of the 2 groups has a unit'):
        plan_from_zeros(TinyMLP(), ffn_groups(TinyMLP()))


def test_what_went_goes_first_and_never_comes_back():
    model = TinyMLP()
    before = WeightPruner(0.5).masks(model)
    # The dropped weights now are the largest.
    for name, mask in before.items():
        model.get_parameter(name).data[~mask] = 100
    for sparsity in (0.2, 0.5, 0.7):
        after = WeightPruner(sparsity).masks(model, before)
        assert not any((after[n] & ~before[n]).any() for n in before)
        gone = sum(int((~mask).sum()) for mask in after.values())
        assert gone == max(60, int(sparsity * 120))
    groups = list(ffn_groups(model))
    first = StructuredPruner(0.25)(model, groups)
    gone = {g.name: set(first.removed(g)) for g in first.groups}
    for group in first.groups:
        for unit in gone[group.name]:
            model.get_parameter(group.producers[0].tensor).data[unit] = 999
    for sparsity in (0.0, 0.25, 0.5):
        later = StructuredPruner(sparsity)(model, groups, before=first)
        left = {g.name: set(later.removed(g)) for g in later.groups}
        assert all(gone[n] <= left[n] for n in gone)
        lost = sum(map(len, left.values()))
        assert lost == max(4, int(16 * sparsity))


def test_gradients_are_those_the_optimizer_steps_with():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    averages = GradientAverages(model, ['weight'], [optimizer], momentum=0.5)
    with pytest.raises(ValueError, match='begin the schedule later'):
        averages.averages()
    for value in (1.0, 3.0):
        # Two batches in one step.
        for _ in range(2):
            model(torch.tensor([[value, 0.0]])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    # 2, then half of it and half of 6.
    assert averages.averages()['weight'].tolist() == [[4, 0]]
    averages.release()
    optimizer.step()
    assert averages.averages()['weight'].tolist() == [[4, 0]]


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (dict(interval=0), 'interval is a number of steps'),
        (dict(pruner=dict(WEIGHTS, sparsity=0.3)), 'leave it out of the'),
        (dict(pruner=dict(UNITS, target='macs')), 'counts units, not macs'),
        (dict(groups='mmprune.tree_groups'), "no function 'mmprune.tree_"),
        (dict(pruner=dict(UNITS, min_keep=4)), 'let only'),
        (dict(pruner=dict(TAYLOR, min_keep=4)), 'let only'),
        (
            dict(pruner=TAYLOR, schedule=cubic(begin=0, initial=0.3)),
            'begin the schedule later',
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(
    tmp_path, hook, message
):
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path, custom_hooks=[{**gradual(UNITS), **hook}]))
    assert not list(tmp_path.glob('*.pth'))


def test_epochs_are_refused_where_training_has_none(tmp_path):
    hook = gradual(WEIGHTS, by_epoch=True)
    loop = dict(by_epoch=False, max_iters=4, val_interval=99)
    with pytest.raises(ValueError, match='give the schedule in iterations'):
        run(config(tmp_path, custom_hooks=[hook], train_cfg=loop))


def test_a_schedule_longer_than_the_training_is_said(tmp_path):
    hook = gradual(WEIGHTS, cubic(end=99))
    run(config(tmp_path, epochs=1, custom_hooks=[hook], log_level='INFO'))
    (log,) = tmp_path.rglob('*.log')
    text = log.read_text()
    assert 'ends at step 99, training after 4: it stops at' in text
    # 0.8 - 0.8 * (95 / 97) ** 3
    assert 'iteration 4: sparsity asked 0.0485, met 0.0500' in text


def test_every_granularity_may_have_its_own_final_sparsity(tmp_path, watched):
    # The hidden units are neurons; the model has no heads.
    final = cubic(final=dict(neuron=0.5))
    _, seen = watched(
        config(tmp_path / 'n', custom_hooks=[gradual(UNITS, final)])
    )
    assert sum(map(len, seen.units[-1].values())) == 8
    hook = gradual(UNITS, cubic(final=dict(neuron=0.5, head=0.2)))
    with pytest.raises(ValueError, match=r"sparsity names .*'head'"):
        run(config(tmp_path / 'h', custom_hooks=[hook]))


def test_single_weights_may_go_by_their_gradients(tmp_path, watched):
    hook = gradual(dict(WEIGHTS, importance=dict(type='mmprune.Taylor')))
    _, seen = watched(config(tmp_path, custom_hooks=[hook]))
    assert sum(int(z.sum()) for z in seen.weights[-1].values()) == 96


@HOOKS.register_module()
class FreezeHook(Hook):
    """Freezes the first layer before anything looks at it."""

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Freezes it."""
        runner.model.net[0].requires_grad_(False)


def test_frozen_weights_stay_dense_where_gradients_decide(tmp_path, watched):
    hook = gradual(dict(WEIGHTS, importance=dict(type='mmprune.Taylor')))
    hooks = [dict(type='FreezeHook'), hook]
    _, seen = watched(config(tmp_path, custom_hooks=hooks))
    zeros = {n: int(z.sum()) for n, z in seen.weights[-1].items()}
    # 80 % of 64 + 24 weights
    assert zeros['net.0.weight'] == 0 and sum(zeros.values()) == 70
