"""A plan is data: checked when made, the same after a round trip."""

import json

import pytest
import torch

from mmprune.groups import PruneGroup, Slice
from mmprune.plan import PruningPlan, checkpoint_plan

GROUP = PruneGroup('g', 'channel', 4, (Slice('w'),), (Slice('v', 1),))


def plan(keep=(0, 2)) -> PruningPlan:
    return PruningPlan(
        (GROUP,), {'g': list(keep)}, {'u': '2:4'}, {'sparsity': 0.5}
    )


def test_removed_is_what_is_not_kept():
    assert plan().removed(GROUP) == [1, 3]


@pytest.mark.parametrize(
    ('keep', 'message'),
    [
        ([], 'lose all its units'),
        ([2, 0], 'sorted and unique'),
        ([1, 1], 'sorted and unique'),
        ([0, 4], 'outside the 4 units'),
        ([-1, 0], 'outside the 4 units'),
    ],
)
def test_impossible_keep_is_refused(keep, message):
    with pytest.raises(ValueError, match=message):
        plan(keep)


def test_keep_must_fit_the_groups():
    with pytest.raises(ValueError, match=r"without a group: \['h'\]"):
        PruningPlan((GROUP,), {'g': [0], 'h': [0]})
    with pytest.raises(ValueError, match='must be unique'):
        PruningPlan((GROUP, GROUP), {'g': [0]})


def test_round_trip_through_json(tmp_path):
    plan().save(tmp_path / 'plan.json')
    assert PruningPlan.load(tmp_path / 'plan.json') == plan()
    assert [p.name for p in tmp_path.iterdir()] == ['plan.json']


def test_round_trip_through_a_checkpoint(tmp_path):
    path = tmp_path / 'pruned.pth'
    meta = {'pruning_plan': plan().to_dict()}
    torch.save({'meta': meta, 'state_dict': {}}, path)
    assert PruningPlan.load(path) == plan()


def test_the_written_plan_holds_plain_types_only():
    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) for k in value) and all(
                map(plain, value.values())
            )
        if isinstance(value, list):
            return all(map(plain, value))
        return type(value) in (str, int, float, bool)

    assert plain(plan().to_dict())


def test_what_is_no_plan_is_refused(tmp_path):
    path = tmp_path / 'plan.json'
    with pytest.raises(ValueError, match='no plan at'):
        PruningPlan.load(path)
    path.write_text('{')
    with pytest.raises(ValueError, match='is not JSON'):
        PruningPlan.load(path)
    path.write_text('[]')
    with pytest.raises(ValueError, match='found list'):
        PruningPlan.load(path)
    newer = {**plan().to_dict(), 'version': 99}
    path.write_text(json.dumps(newer))
    with pytest.raises(ValueError, match='update mmprune'):
        PruningPlan.load(path)


def test_dense_checkpoint_has_no_plan(tmp_path):
    assert checkpoint_plan({'meta': None}) is None
    path = tmp_path / 'dense.pth'
    torch.save({'state_dict': {}}, path)
    with pytest.raises(ValueError, match='carries no pruning plan'):
        PruningPlan.load(path)
