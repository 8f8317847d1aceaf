"""Parameters and multiply-adds against numbers worked out by hand."""

import copy
import time

import pytest
import torch
from tiny_models import CASES
from torch import nn
from torchvision.ops import DeformConv2d

from mmprune.cost import (
    cost_row,
    cost_table,
    count_macs,
    count_nonzero,
    count_params,
    measure_latencies,
    time_in_turns,
)
from mmprune.cost_table import kept_cost
from mmprune.groups import PruneGroup, Slice
from mmprune.plan import PruningPlan
from mmprune.surgery import apply_plan, kept_index


class Net(nn.Module):
    """A convolution, an attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.attn = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.out = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)  # [1, 16, 8]
        return self.out(self.attn(tokens, tokens, tokens)[0])


IMAGE = torch.randn(1, 3, 4, 4)
CONV = 16 * 8 * 3 * 9
# four projections of 16 tokens, and q k^T and attention x v
ATTENTION = 16 * 4 * 64 + 2 * 16 * 16 * 8
LINEAR = 16 * 8 * 5


def test_macs_by_hand():
    macs = count_macs(Net().eval(), lambda m: m(IMAGE))
    assert macs[''] == CONV + ATTENTION + LINEAR
    assert macs['conv'] == CONV
    assert macs['attn'] == ATTENTION
    assert macs['out'] == LINEAR


def test_macs_that_are_known_are_not_counted_again():
    model = Net().eval()
    table = cost_table(model, lambda m: m(IMAGE))
    assert table.counted == CONV + ATTENTION + LINEAR
    assert cost_table(model, None).counted is None
    row = cost_row(model, lambda m: 1 / 0, macs=table.counted)
    assert row['macs'] == table.counted


def test_macs_of_a_model_that_is_not_called_as_a_whole():
    macs = count_macs(Net().eval(), lambda m: m.forward(IMAGE))
    assert macs['attn'] == ATTENTION


def test_macs_of_the_fused_attention_kernel():
    model = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    x = torch.randn(1, 16, 8)
    macs = count_macs(model, lambda m: m(x, x, x, need_weights=False))
    assert macs[''] == ATTENTION


class Given(nn.Module):
    """Calls a branch that belongs to somebody else, as VAD's decoders do."""

    def forward(self, x, branch):
        return branch(x)


def test_a_branch_counts_where_it_belongs_not_where_it_is_called():
    model = nn.ModuleDict({'decoder': Given(), 'branch': nn.Linear(4, 2)})
    x = torch.randn(1, 4)
    run = lambda m: m['decoder'](x, m['branch'])  # noqa: E731
    assert count_macs(model, run) == {'': 8, 'branch': 8}
    assert cost_table(model, run).total('macs') == 8


def test_macs_of_a_deformable_convolution():
    model = DeformConv2d(4, 6, 3, padding=1)
    image, offset = torch.randn(1, 4, 8, 8), torch.randn(1, 18, 8, 8)
    macs = count_macs(model, lambda m: m(image, offset))
    assert macs[''] == 64 * 6 * 4 * 9


def test_params_and_zeros():
    model = Net()
    model.out.weight.data[:2] = 0
    assert count_params(model) == 8 * 27 + 4 * 64 + 40
    assert count_nonzero(model) == count_params(model) - 16


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert count_params(model) == 4 + 2 + 2


@pytest.mark.parametrize('name', CASES)
def test_the_predicted_cost_is_the_measured_cost(name):
    case = CASES[name]()
    costs = cost_table(case.model, case.forward)
    assert costs.total('macs') == count_macs(case.model, case.forward)['']
    assert costs.total('params') == count_params(case.model)
    groups = tuple(g for g in case.groups if not g.dense)
    keep = {g.name: list(range(0, g.size, 2)) for g in groups}
    plan = PruningPlan(groups, keep)
    index = kept_index(plan, costs.shapes)
    pruned = copy.deepcopy(case.model)
    apply_plan(pruned, plan)
    assert total(costs, 'params', index) == count_params(pruned)
    measured = count_macs(pruned, case.forward)['']
    assert total(costs, 'macs', index) == pytest.approx(measured, rel=1e-6)


def total(costs, unit, index):
    """The cost of what is kept: tensor name -> dim -> positions."""
    cost = 0.0
    for name, price in getattr(costs, unit).items():
        elements = 1
        for dim, size in enumerate(costs.shapes[name]):
            elements *= len(index.get(name, {}).get(dim, range(size)))
        cost += price * elements
    return cost


def test_without_an_example_there_are_no_macs():
    costs = cost_table(Net(), None)
    assert costs.total('macs') == 0
    assert costs.total('params') > 0


def test_models_are_timed_in_turns_after_the_warm_up():
    calls, ticks = [], []
    forwards = {n: lambda n=n: calls.append(n) for n in ('dense', 'pruned')}
    times = time_in_turns(
        forwards, runs=3, warmup=2, tick=lambda: ticks.append(1)
    )
    assert calls == ['dense', 'pruned'] * 5
    assert {n: len(t) for n, t in times.items()} == dict(dense=3, pruned=3)
    assert all(t >= 0 for each in times.values() for t in each)
    assert len(ticks) == 5


def test_the_latency_of_a_model_is_its_median(monkeypatch):
    clock = [0.0]
    steps = dict(slow=iter([9, 0.5, 0.1, 0.2]), fast=iter([9, 0.01, 1, 0.02]))
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])

    def run(name):
        clock[0] += next(steps[name])

    forwards = {name: lambda name=name: run(name) for name in steps}
    found = measure_latencies(forwards, runs=3)
    assert found == pytest.approx(dict(slow=200, fast=20))


def test_no_timed_run_means_no_latency():
    assert measure_latencies(dict(one=lambda: 1 / 0), runs=0) == dict(one=None)


@pytest.mark.parametrize('name', ['resnet', 'vit', 'llama'])
@pytest.mark.parametrize('unit', ['params', 'macs'])
def test_the_cost_of_kept_units_is_that_of_their_plan(name, unit):
    case = CASES[name]()
    groups = [g for g in case.groups if not g.dense]
    table = cost_table(case.model, case.forward)
    quick = kept_cost(table, unit, groups)
    for share in (1, 2, 3):
        keep = {g.name: list(range(0, g.size, share)) for g in groups}
        plan = PruningPlan(tuple(groups), keep)
        index = kept_index(plan, table.shapes)
        assert quick(keep) == pytest.approx(total(table, unit, index))


def test_units_that_share_a_dimension_are_not_counted_twice():
    # Two of four rows and two of four columns of them, as heads and points.
    model = nn.Linear(1, 8, bias=False)
    heads = PruneGroup('h', 'head', 2, (Slice('weight', block=4),))
    points = PruneGroup('p', 'point', 2, (Slice('weight', block=2, copies=2),))
    quick = kept_cost(cost_table(model, None), 'params', [heads, points])
    assert quick(dict(h=[0, 1], p=[0, 1])) == 8
    assert quick(dict(h=[0], p=[0, 1])) == 4
    assert quick(dict(h=[0], p=[1])) == 2
