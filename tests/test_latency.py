"""A latency is met by measuring, on layers that move a clock of ours: what
they take is known, however busy the machine is."""

import json

import pytest
import torch
from torch import nn

import mmprune
from mmprune.cost import cost_table
from mmprune.groups import PruneGroup, Slice
from mmprune.pruners import LatencyPruner, StructuredPruner
from mmprune.pruners.layer_times import LayerTimes
from mmprune.run.options import PruningOptions

PER_CHANNEL = 0.1  # milliseconds


class Clock:
    """Stands still but for those who move it, in milliseconds."""

    now = 0.0

    @classmethod
    def move(cls, milliseconds):
        cls.now += milliseconds / 1000


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr('mmprune.cost.time.perf_counter', lambda: Clock.now)


class Slow(nn.Linear):
    """Takes a time in proportion to what it puts out."""

    calls = 0

    def forward(self, x):
        Slow.calls += 1
        Clock.move(len(self.weight) * PER_CHANNEL)
        return super().forward(x)


class Net(nn.Module):
    """Two slow layers, and 4 ms that nothing can remove.

    Args:
        drift: Part of the 4 ms that comes on top once it is pruned, which
            no sum of layers foresees.
    """

    def __init__(self, drift=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Slow(4, 60), Slow(60, 40)
        self.out = nn.Linear(40, 2)
        self.drift = drift

    def forward(self, x):
        Clock.move(4 * (1 + self.drift * (len(self.one.weight) < 60)))
        return self.out(self.two(self.one(x)))


GROUPS = [
    PruneGroup(
        path,
        'channel',
        size,
        (Slice(f'{path}.weight'), Slice(f'{path}.bias')),
        (Slice(f'{reader}.weight', 1),),
    )
    for path, size, reader in (('one', 60, 'two'), ('two', 40, 'out'))
]


def forward(model):
    return model(torch.ones(1, 4))


def pruned(ratio, table, drift=0.0):
    model = Net(drift).eval()
    pruner = StructuredPruner(ratio, target='macs')
    choose = LatencyPruner(pruner, forward, table, runs=5)
    return choose(model, GROUPS, costs=cost_table(model, forward))


def milliseconds(plan):
    return 4 + PER_CHANNEL * sum(len(plan.keep[g.name]) for g in GROUPS)


def test_the_sum_of_the_layers_and_the_rest_meets_the_latency(tmp_path):
    plan = pruned(0.4, tmp_path / 'times.json')
    # Dense: 6 + 4 + 4 ms.
    left = milliseconds(plan) / 14
    assert left == pytest.approx(0.6, abs=0.01)
    met = plan.provenance['latency']
    assert met['asked'] == 0.6
    assert met['by_layers'] == pytest.approx(left)
    assert met['predicted'] == pytest.approx(left)
    assert met['measured'] == pytest.approx(left)
    assert met['rest_ms'] == pytest.approx(4)
    assert met['rounds'] == 1
    assert plan.provenance['target'] == 'latency'
    assert plan.provenance['sparsity'] == 0.4


def test_what_the_sum_does_not_foresee_is_learned_by_measuring(tmp_path):
    plan = pruned(0.3, tmp_path / 'times.json', drift=0.5)
    met = plan.provenance['latency']
    assert met['rounds'] > 1
    # Two milliseconds more, for which units have to go as well.
    assert met['measured'] == pytest.approx((milliseconds(plan) + 2) / 14)
    assert met['measured'] == pytest.approx(0.7, abs=0.7 * 0.03)
    assert met['predicted'] == pytest.approx(met['measured'], abs=0.03)
    assert met['by_layers'] == pytest.approx(milliseconds(plan) / 14)


def test_nothing_is_removed_for_nothing(tmp_path):
    assert not pruned(0.0, tmp_path / 'times.json').groups


def test_what_cannot_be_reached_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match='asked for 5.0% of the latency'):
        pruned(0.95, tmp_path / 'times.json')


def test_a_layer_is_measured_once_for_its_sizes(tmp_path):
    path, model = tmp_path / 'cache' / 'times.json', Net().eval()
    table = LayerTimes(path)
    first = table.total(model, forward)
    assert first == pytest.approx(10)
    assert table.measured == 3
    Slow.calls = 0
    again = LayerTimes(path)
    assert again.total(model, forward) == first
    assert (again.measured, Slow.calls) == (0, 2)
    (found,) = json.loads(path.read_text()).values()
    assert any('(60, 4)' in k and 'float32[1, 4]' in k for k in found)
    # The same layers, of a batch of two, are others.
    again.total(model, lambda net: net(torch.ones(2, 4)))
    assert again.measured == 3


def test_layers_are_timed_without_a_trace(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)).eval()
    table = LayerTimes(tmp_path / 'times.json')
    expected = net(torch.ones(1, 2))
    table.total(net, lambda m: m(torch.ones(1, 2)))
    assert torch.equal(net(torch.ones(1, 2)), expected)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_module_that_a_group_sets_up_counts_as_one_layer(tmp_path):
    net = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True))
    group = PruneGroup('0', 'head', 2, (), attrs={'0.num_heads': 1})
    table = LayerTimes(tmp_path / 'times.json')

    def run(model):
        x = torch.ones(1, 3, 4)
        return model[0](x, x, x)

    table.total(net, run, [group])
    (found,) = json.loads(table.path.read_text()).values()
    assert [k.split()[0] for k in found] == ['MultiheadAttention']


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / 'times.json'
    path.write_text('{"cpu": [1, 2]}')
    with pytest.raises(ValueError, match=r'times.json is not a table'):
        LayerTimes(path)


def test_from_python_the_table_lies_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    model = Net().eval()
    small = mmprune.prune(model, torch.ones(1, 4), ratio=0.4, target='latency')
    kept = len(small.one.weight) + len(small.two.weight)
    assert (4 + PER_CHANNEL * kept) / 14 == pytest.approx(0.6, abs=0.01)
    assert (tmp_path / 'mmprune' / 'layer_times.json').is_file()


def test_a_latency_needs_timed_runs():
    with pytest.raises(ValueError, match='--latency-runs 0 times none'):
        PruningOptions(target='latency', latency_runs=0)
