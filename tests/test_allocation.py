"""Scores become kept units: exact counts, ties, chunks, budgets."""

import pytest
import torch

from mmprune import allocation
from mmprune.allocation import (
    allocate,
    lowest,
    lowest_overall,
    lowest_per_row,
    meet_budget,
    merge_orders,
    num_removed,
    removal_order,
    round_half_up,
)
from mmprune.patterns import lowest_of_group

SCORES = {
    'a': torch.tensor([5.0, 1.0, 4.0, 3.0]),
    'b': torch.tensor([2.0, 6.0]),
}


def test_halves_round_upwards():
    assert [round_half_up(x) for x in (0.5, 1.5, 2.5, 2.4)] == [1, 2, 3, 2]


def test_global_scope_drops_the_lowest_of_all():
    keep = allocate(SCORES, 0.5)
    assert keep == {'a': [0, 2], 'b': [1]}


def test_half_a_unit_rounds_upwards():
    assert allocate({'b': SCORES['b']}, 0.25) == {'b': [1]}


@pytest.mark.parametrize('sparsity', [0.0, 0.1, 0.3, 0.5, 0.77, 0.95])
def test_exactly_the_asked_number_goes(sparsity):
    scores = {f'g{i}': torch.rand(37 + i) for i in range(7)}
    keep = allocate(scores, sparsity)
    total = sum(map(len, scores.values()))
    kept = sum(map(len, keep.values()))
    assert total - kept == round_half_up(sparsity * total)


def test_the_best_unit_of_a_group_is_exempt():
    scores = {'low': torch.tensor([0.1, 0.2, 0.3]), 'high': torch.ones(3)}
    assert allocate(scores, 0.5)['low'] == [2]
    assert allocate(scores, 1 / 3, min_keep=2)['low'] == [1, 2]


@pytest.mark.parametrize(
    ('fraction', 'a', 'b'), [(0.25, 1, 2), (0.5, 2, 4), (0.3, 2, 3)]
)
def test_every_group_keeps_a_fraction_of_its_units(fraction, a, b):
    scores = {'a': torch.zeros(4), 'b': torch.zeros(8), 'c': torch.ones(100)}
    keep = allocate(scores, 0.5, min_keep=fraction)
    assert {k: len(v) for k, v in keep.items()} == {
        'a': a,
        'b': b,
        'c': 56 - a - b,
    }
    kept = allocate(scores, 0.9, min_keep=0.5, strict=False)
    assert [len(units) for units in kept.values()] == [2, 4, 50]


def test_equal_scores_shrink_groups_alike():
    scores = {'a': torch.ones(4), 'b': torch.ones(8)}
    assert {k: len(v) for k, v in allocate(scores, 0.5).items()} == {
        'a': 2,
        'b': 4,
    }


def test_kept_units_are_multiples_of_round_to():
    scores = {'a': torch.rand(20), 'b': torch.rand(32)}
    for sparsity in (0.1, 0.4, 0.7):
        keep = allocate(scores, sparsity, round_to=8)
        for name, units in keep.items():
            full = len(scores[name])
            assert len(units) == full or len(units) % 8 == 0
        gone = 52 - sum(map(len, keep.values()))
        assert abs(gone - sparsity * 52) <= 4


def test_narrow_groups_keep_any_number_if_rounding_begins_later():
    scores = {'wide': torch.rand(64), 'narrow': 2 * torch.arange(7) / 7}
    for sparsity in (0.3, 0.5, 0.7):
        keep = allocate(scores, sparsity, round_to=8, round_from=64)
        assert len(keep['wide']) % 8 == 0
    keep = allocate({'narrow': torch.rand(7)}, 3 / 7, round_to=8, round_from=8)
    assert len(keep['narrow']) == 4


def test_impossible_sparsity_is_refused():
    with pytest.raises(ValueError, match=r'in \[0, 1\), found 1'):
        allocate(SCORES, 1.0)
    with pytest.raises(ValueError, match='lets only 4'):
        allocate(SCORES, 0.9)
    with pytest.raises(ValueError, match='min_keep=3'):
        allocate({'a': torch.rand(4)}, 0.5, min_keep=3)
    with pytest.raises(ValueError, match='min_keep=0.75'):
        allocate({'a': torch.rand(4)}, 0.5, min_keep=0.75)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match='at least 1'):
        allocate(SCORES, 0.5, round_to=0)
    with pytest.raises(ValueError, match=r'fraction, found 1 and 1\.5'):
        allocate(SCORES, 0.5, min_keep=1.5)
    with pytest.raises(ValueError, match='not finite'):
        allocate({'a': torch.tensor([1.0, float('nan')])}, 0.5)


def test_any_beginning_of_the_order_keeps_low_scores_out():
    order = removal_order(SCORES)
    assert [c.units for c in order] == [(1,), (0,), (3,), (2,)]
    assert [c.group for c in order] == ['a', 'b', 'a', 'a']


def test_merged_orders_shrink_alike():
    one = {'a': torch.arange(4.0)}
    two = {'b': torch.arange(8.0)}
    order = merge_orders([(s, removal_order(s)) for s in (one, two)])
    first = [c.group for c in order[:6]]
    assert first.count('a') == 2
    assert first.count('b') == 4


def cost(keep):
    """Unit 0 of `a` costs 10, every other unit 1."""
    return sum(10 if (g, i) == ('a', 0) else 1 for g in keep for i in keep[g])


def test_budget_is_met_with_finer_units_where_a_big_one_overshoots():
    scores = {'a': torch.tensor([2.0, 9.0]), 'b': torch.arange(3.0, 13.0)}
    order = removal_order(scores)
    keep = meet_budget(scores, order, cost, budget=18, tolerance=0.1)
    assert cost(keep) == 18  # of 21
    assert 0 in keep['a']  # removing it would leave 11


def test_budget_out_of_reach_says_what_remains():
    order = removal_order(SCORES)
    with pytest.raises(ValueError, match=r'asked to remove 99\.0%'):
        meet_budget(SCORES, order, cost, budget=0.15, tolerance=0.01)


def test_budget_between_two_chunks_says_the_nearest():
    scores = {'b': torch.arange(8.0)}
    order = removal_order(scores, round_to=4)
    with pytest.raises(ValueError, match='lower round_to'):
        meet_budget(scores, order, cost, budget=6, tolerance=0.5)


def test_lowest_takes_exactly_k_with_ties():
    values = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0])
    assert lowest(values, 2).tolist() == [False, True, True, False, False]
    assert lowest(values, 0).sum() == 0
    assert lowest(values, 5).all()


def test_the_last_counts_are_exactly_as_asked():
    assert num_removed(0.7, 72) == 50
    assert num_removed(0.7, 18432) == 12902


def test_filling_back_keeps_a_part_of_what_would_be_removed():
    counts = [num_removed(1.0, 10, fill_back=f) for f in (0, 0.29, 0.5, 1)]
    assert counts == [10, 8, 5, 0]
    assert num_removed(1.0, 100, 0.29) == 71  # 0.29 * 100 is 28.999...
    assert num_removed(0.7, 10, fill_back=0.5) == 4


def test_all_tensors_compete_for_the_lowest():
    values = dict(a=torch.tensor([[3.0, 1], [1, 5]]), b=torch.tensor([1.0]))
    mask = lowest_overall(values, 0.4)  # two of five, of three ones
    assert mask['a'].tolist() == [[False, True], [True, False]]
    assert mask['b'].tolist() == [False]


def reference_rows(values, count):
    mask = torch.zeros_like(values, dtype=torch.bool)
    for row, order in enumerate(torch.sort(values, stable=True).indices):
        mask[row, order[:count]] = True
    return mask


@pytest.mark.parametrize('count', [0, 1, 5, 12])
@pytest.mark.parametrize('levels', [2, 1000], ids=['ties', 'no ties'])
@pytest.mark.parametrize('sorts', [True, False])
def test_every_row_loses_exactly_its_lowest(count, levels, sorts, monkeypatch):
    monkeypatch.setattr(allocation, '_SORTS_FAST', sorts)
    monkeypatch.setattr(allocation, '_PART', 60)  # five rows at a time
    values = torch.randint(0, levels, (40, 12)).float()
    found = lowest_per_row(values, count)
    assert (found.sum(1) == count).all()
    assert torch.equal(found, reference_rows(values, count))


@pytest.mark.parametrize(('count', 'size'), [(2, 4), (4, 8), (1, 4), (3, 5)])
@pytest.mark.parametrize('levels', [2, 1000], ids=['ties', 'no ties'])
def test_every_group_of_neighbours_loses_exactly_its_lowest(
    count, size, levels
):
    values = torch.randint(0, levels, (30, 4 * size)).float()
    found = lowest_of_group(values, count, size)
    expected = reference_rows(values.view(-1, size), count)
    assert torch.equal(found, expected.view(values.shape))


@pytest.mark.parametrize('kind', ['random', 'ties', 'zeros', 'rising'])
def test_the_lowest_of_many_are_exact(kind):
    """Over a million entries a sample only says where to look."""
    n = 2**20 + 17
    values = dict(
        random=lambda: torch.randn(n).abs(),
        ties=lambda: torch.randint(0, 50, (n,)).float(),
        zeros=lambda: torch.cat([torch.zeros(n // 2), torch.rand(n - n // 2)]),
        rising=lambda: torch.arange(n).float(),
    )[kind]()
    ordered = values.sort(stable=True).indices
    for count in (1, 7, n // 2, n // 2 + 9, n - 1, n):
        mask = lowest(values, count)
        expected = torch.zeros(n, dtype=torch.bool)
        expected[ordered[:count]] = True
        assert torch.equal(mask, expected)
