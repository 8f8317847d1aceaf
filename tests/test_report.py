"""The report says what was cut, what stayed, and why."""

import torch
from torch import nn

from mmprune.cost import weights_mb
from mmprune.groups import PruneGroup, Slice
from mmprune.plan import PruningPlan
from mmprune.removed import (
    group_rows,
    kind_rows,
    module_rows,
    tensor_rows,
    uncovered_rows,
)
from mmprune.run.report import markdown, summary_table

GROUPS = [
    PruneGroup('a', 'channel', 4, (Slice('0.weight'),)),
    PruneGroup('b', 'channel', 8, (), dense='frozen'),
    PruneGroup('c', 'head', 2, ()),
]
PLAN = PruningPlan((GROUPS[0],), {'a': [0, 3]})


def test_rows_of_groups_and_kinds():
    rows = group_rows(PLAN, GROUPS)
    assert [(r['group'], r['kept'], r['sparsity']) for r in rows] == [
        ('a', 2, 0.5),
        ('b', 8, 0.0),
        ('c', 2, 0.0),
    ]
    assert kind_rows(rows) == [
        dict(granularity='channel', groups=1, dense_groups=1, units=4, kept=2),
        dict(granularity='head', groups=1, dense_groups=0, units=2, kept=2),
    ]


def test_sparsity_per_tensor_counts_zeros_and_removed_elements():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    model[1].weight.data = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    dense = {n: tuple(p.shape) for n, p in model.named_parameters()}
    dense['0.weight'] = (4, 4)
    rows = {r['tensor']: r['sparsity'] for r in module_rows(dense, model)}
    assert rows == {'0.weight': 0.5, '1.weight': 0.25}


def test_rows_of_tensors_name_the_groups_whose_units_they_hold():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    dense = {n: tuple(p.shape) for n, p in model.named_parameters()}
    dense['0.weight'] = (4, 4)
    reader = PruneGroup('b', 'channel', 8, (), (Slice('0.weight', 1),))
    rows = tensor_rows(dense, model, [*GROUPS[:1], reader])
    assert rows[0] == dict(
        tensor='0.weight', params=16, left=8, groups=['a', 'b']
    )
    assert rows[1] == dict(tensor='0.bias', params=2, left=2, groups=[])


def test_what_no_group_covers_is_listed_with_the_reason():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    rows = uncovered_rows(model, GROUPS, lambda name: f'why {name}')
    assert rows == [
        dict(tensor='1.weight', params=16, dense_because='why 1.weight')
    ]


def test_table_shows_ratios_to_dense_and_leaves_out_what_was_not_measured():
    table = summary_table(
        {
            'dense': dict(params=4e6, macs=2e9, latency_ms=None),
            'structured': dict(params=1e6, macs=1e9, latency_ms=None),
        }
    )
    assert table.splitlines()[0] == '| model | params (M) | MACs (G) |'
    assert '| structured | 1.00 (25%) | 1.00 (50%) |' in table


def test_page_has_every_part():
    page = markdown(
        dict(
            title='t',
            notes='how it was measured',
            models={'dense': dict(params=1e6)},
            groups=group_rows(PLAN, GROUPS),
            kinds=kind_rows(group_rows(PLAN, GROUPS)),
            uncovered=[dict(tensor='x', params=1, dense_because='a|b')],
            weights=[dict(tensor='w', dense_shape=[1], sparsity=0.25)],
        )
    )
    for text in ('frozen', 'how it was', '| a | channel | 4 | 2 | 50.0% |'):
        assert text in page
    assert 'a/b' in page  # a bar would break the table


def test_size_in_megabytes():
    assert weights_mb(nn.Linear(500, 500, bias=False)) == 1.0
