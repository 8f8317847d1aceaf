"""KGSP and MSP: what the distillation loss says, mixed with size, in time."""

import copy

import pytest
import torch
from mmengine.runner import Runner
from tiny_training import TinyMLP, config, differing, final, run
from torch import nn

from mmprune.adapters import distilbert_groups, ffn_groups
from mmprune.calibration import calibrate
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.groups import PruneGroup, Slice
from mmprune.hooks import GradualPruningHook
from mmprune.importance import KDGrad, Magnitude, Mixed
from mmprune.importance.kd_grad import unit_changes
from mmprune.models import load_model
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner
from mmprune.registry import MODELS
from mmprune.schedule import in_steps
from mmprune.sparsifying import UnitChanges
from mmprune.statistics import Statistics

GROUP = PruneGroup(
    'g',
    'neuron',
    2,
    (Slice('one.weight'), Slice('one.bias')),
    (Slice('two.weight', 1),),
)
WEIGHTS = {
    'one.weight': torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    'one.bias': torch.tensor([1.0, 1.0]),
    'two.weight': torch.tensor([[2.0, -1.0], [1.0, 5.0]]),
}
GRADS = {
    'one.weight': torch.tensor([[1.0, -1.0], [0.0, 1.0]]),
    'one.bias': torch.tensor([2.0, 0.0]),
    'two.weight': torch.tensor([[1.0, 3.0], [-4.0, 1.0]]),
}


def test_the_change_of_a_step_by_hand():
    # Unit 0 is read by 2 x 1 and 1 x -4, unit 1 by -1 x 3 and 5 x 1.
    assert unit_changes([GROUP], WEIGHTS, GRADS)['g'].tolist() == [2, 2]
    # 1 + 2 (row) + 2 (bias) + 2 + 4 and 4 + 3 + 5
    whole = unit_changes([GROUP], WEIGHTS, GRADS, 'sum_of_abs')
    assert whole['g'].tolist() == [11, 12]


def test_the_change_is_the_derivative_by_a_gate():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    (group,) = ffn_groups(net)
    x, gate = torch.randn(5, 3), torch.ones(4, requires_grad=True)
    loss = net[2](net[1](net[0](x)) * gate).square().mean()
    loss.backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    found = unit_changes([group], dict(net.named_parameters()), grads)
    assert torch.allclose(found['0'], gate.grad.abs(), atol=1e-6)


def test_calibration_takes_the_mean_of_single_batches():
    net = TinyMLP(dropout=0.0)
    groups = list(ffn_groups(net))
    batches = [
        dict(inputs=list(torch.randn(4, 4)), data_samples=list(labels))
        for labels in torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    ]
    loss_fn = lambda m, b: m(**b, mode='loss')['loss']  # noqa: E731
    stats = calibrate(net, groups, KDGrad().needs, batches, loss_fn)
    single = [
        calibrate(net, groups, KDGrad().needs, [b], loss_fn).changes['net.0']
        for b in batches
    ]
    assert torch.allclose(stats.changes['net.0'], sum(single) / 2)
    assert torch.equal(KDGrad()(groups[0], stats), stats.changes['net.0'])


# -- mixed -------------------------------------------------------------------

HEADS = PruneGroup('h', 'head', 2, (Slice('h.weight'),))
FIRST = PruneGroup('a', 'neuron', 2, (Slice('a.weight'),))
SECOND = PruneGroup('b', 'neuron', 2, (Slice('b.weight'),))
STATS = Statistics(
    tensors={
        'h.weight': torch.tensor([[300.0], [100.0]]),
        'a.weight': torch.tensor([[1.0], [3.0]]),
        'b.weight': torch.tensor([[5.0], [7.0]]),
    },
    changes={
        'h': torch.tensor([1e-3, 3e-3]),
        'a': torch.tensor([4e-6, 2e-6]),
        'b': torch.tensor([1e-6, 1e-6]),
    },
)
ALL = [HEADS, FIRST, SECOND]


def test_scores_are_brought_to_one_scale_per_granularity():
    scores = Mixed(lambda_mag=0.5, lambda_grad=0.25).together(ALL, STATS, {})
    # Sizes of neurons have the mean 4, their changes 2e-6; heads 200, 2e-3.
    assert scores['a'].tolist() == pytest.approx(
        [0.5 * 1 / 4 + 0.25 * 4 / 2, 0.5 * 3 / 4 + 0.25 * 2 / 2]
    )
    assert scores['b'].tolist() == pytest.approx([0.75, 1.0])
    assert scores['h'].tolist() == pytest.approx([0.875, 0.625])


def test_ranks_and_ranges():
    rank = Mixed(normalize='rank').together(ALL, STATS, {})
    assert rank['a'].tolist() == pytest.approx([(0 + 1) / 2, (1 + 2) / 6])
    span = Mixed(normalize='range').together(ALL, STATS, {})
    assert span['b'].tolist() == pytest.approx([4 / 6 / 2, 1 / 2])


def test_masked_units_have_no_part_in_the_scale():
    scores = Mixed(lambda_grad=0, lambda_mag=1).together(
        ALL, STATS, {'a': [0]}
    )
    assert scores['b'].tolist() == pytest.approx([1.0, 1.4])  # by 5, not 4


@pytest.mark.parametrize(
    ('lambdas', 'pure'),
    [((1.0, 0.0), Magnitude(p=2, reduce='sum')), ((0.0, 1.0), KDGrad())],
)
def test_a_lambda_of_zero_gives_the_other_criterion(lambdas, pure):
    mixed = Mixed(*lambdas)
    assert mixed.needs == pure.needs
    scores = mixed.together([FIRST, SECOND], STATS, {})
    together = torch.cat([scores['a'], scores['b']])
    alone = torch.cat([pure(g, STATS) for g in (FIRST, SECOND)])
    assert torch.allclose(together, (alone / alone.mean()).double())


def test_lambdas_are_checked():
    with pytest.raises(ValueError, match='not both 0'):
        Mixed(lambda_mag=0, lambda_grad=0)
    with pytest.raises(ValueError, match='not negative'):
        Mixed(lambda_mag=-1)


def test_one_ranking_of_all_kinds():
    pruner = StructuredPruner(
        0.5, importance=Mixed(1.0, 0.0), normalize=None, together=True
    )
    # By their means: heads 1.5, .5; neurons .25, .75, 1.25, 1.75.
    plan = pruner(nn.Module(), ALL, stats=STATS)
    assert {n: plan.keep[n] for n in plan.keep} == {'h': [0], 'a': [1]} or (
        plan.keep == {'h': [0], 'a': [1], 'b': [1]}
    )
    with pytest.raises(ValueError, match='give one sparsity'):
        StructuredPruner(dict(head=0.5), together=True)


# -- in a training -----------------------------------------------------------


def kgsp(**changes) -> dict:
    return {
        **dict(
            type='mmprune.GradualPruningHook',
            schedule=dict(
                type='mmprune.CubicSchedule', begin=0.125, end=0.5, final=0.5
            ),
            pruner=dict(
                type='mmprune.StructuredPruner',
                importance=dict(type='mmprune.Mixed'),
                normalize=None,
            ),
            window=3,
        ),
        **changes,
    }


def hook_of(runner: Runner) -> GradualPruningHook:
    (hook,) = (h for h in runner.hooks if isinstance(h, GradualPruningHook))
    return hook


def test_a_window_holds_the_last_steps(tmp_path):
    net = TinyMLP(dropout=0.0)
    groups = list(ffn_groups(net))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = UnitChanges(net, groups, [optimizer], 'abs_of_sum', window=2)
    with pytest.raises(ValueError, match='begin the schedule later'):
        watch.fill(Statistics({}))
    expected = []
    for _ in range(3):
        x = list(torch.randn(4, 4))
        net(x, list(torch.tensor([0, 1, 2, 0])), mode='loss')[
            'loss'
        ].backward()
        params = dict(net.named_parameters())
        grads = {n: p.grad.clone() for n, p in params.items()}
        expected.append(unit_changes(groups, params, grads)['net.0'].clone())
        optimizer.step()
        optimizer.zero_grad()
    stats = Statistics({})
    watch.fill(stats)
    assert torch.allclose(stats.changes['net.0'], sum(expected[1:]) / 2)
    watch.release()
    assert not optimizer._optimizer_step_pre_hooks


def test_fractions_of_a_training_are_steps(tmp_path):
    runner = run(config(tmp_path, custom_hooks=[kgsp()]))
    hook = hook_of(runner)  # 4 epochs of 4 iterations
    assert (hook.schedule.begin, hook.schedule.end) == (2, 8)
    assert hook.growth.count() == (8, 16)
    assert hook._gradients._handles[0].id not in (
        runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    )
    with pytest.raises(ValueError, match='a fraction between 0.0 and 1.0'):
        in_steps(dict(begin=1.5), 10)


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_a_resumed_pruning_ends_bit_identical(tmp_path, epoch):
    seed = dict(type='mmprune.SeedHook')
    whole = run(config(tmp_path / 'whole', custom_hooks=[seed, kgsp()]))
    path = tmp_path / 'whole' / f'epoch_{epoch}.pth'
    again = run(
        config(
            tmp_path / 'again',
            custom_hooks=[seed, kgsp()],
            load_from=str(path),
            resume=True,
        )
    )
    assert (
        differing(final(tmp_path / 'whole'), final(tmp_path / 'again')) == []
    )
    assert hook_of(again).growth.count() == hook_of(whole).growth.count()


def test_a_pruned_model_is_written_at_the_end(tmp_path):
    hooks = [kgsp(), dict(type='mmprune.ExportHook', latency_runs=0)]
    cfg = config(tmp_path, custom_hooks=hooks)
    runner = run(cfg)
    small = load_model(cfg, tmp_path / 'pruned.pth')
    widths = [small.net[0].out_features, small.net[3].out_features]
    assert sum(widths) == 8
    saved = load_checkpoint_file(tmp_path / 'pruned.pth')
    assert saved['meta']['iter'] == 16
    x = list(torch.randn(5, 4))
    masked = copy.deepcopy(runner.model).eval()
    assert torch.allclose(small(x), masked(x), atol=1e-5)


# -- heads and neurons of a DistilBERT ---------------------------------------


def test_heads_and_neurons_of_distilbert_meet_targets_of_their_own():
    model = MODELS.build(
        dict(
            type='mmprune.HuggingFaceClassifier',
            config=dict(
                model_type='distilbert',
                vocab_size=30,
                dim=24,
                n_heads=6,
                n_layers=3,
                hidden_dim=40,
                max_position_embeddings=12,
            ),
        )
    )
    ids = torch.arange(2, 14).view(2, 6)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    loss_fn = lambda m, b: m(b, torch.tensor([0, 1]), mode='loss')['loss']  # noqa: E731
    pruner = StructuredPruner(
        dict(head=0.3, neuron=0.2), importance=Mixed(), normalize=None
    )
    groups = list(distilbert_groups(model))
    plan = pruner(model, groups, [inputs], loss_fn)
    lost = {'head': 0, 'neuron': 0}
    for group in plan.groups:
        lost[group.granularity] += len(plan.removed(group))
    assert lost == {'head': 5, 'neuron': 24}  # 5.4 of 18 and 24 of 120
    assert isinstance(plan, PruningPlan)
