"""Weights go only into a model that was pruned as they were."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from tiny_runner import Tiny, stock_runner
from torch import nn

from mmprune.checkpoints.guard import check_plan_matches


class _Plan:
    def __init__(self, **keep: list[int]) -> None:
        self.keep = keep

    def to_dict(self) -> dict:
        groups = [dict(name=n, size=3) for n in self.keep]
        return dict(groups=groups, keep=self.keep, provenance=dict(at='x'))


def _saved(path: Path, width: int, plan: _Plan | None) -> str:
    meta = {} if plan is None else dict(pruning_plan=plan.to_dict())
    state = Tiny(width).state_dict()
    torch.save(dict(meta=meta, state_dict=state), path)
    return str(path)


def _model(width: int, plan: _Plan | None) -> Tiny:
    model = Tiny(width)
    if plan is not None:
        model.pruning_plan = plan
    return model


@pytest.mark.parametrize(
    ('plan', 'own', 'message'),
    [
        (_Plan(fc=[0, 2]), None, r"the model is dense: groups \['fc'\]"),
        (_Plan(fc=[0, 2]), _Plan(fc=[0, 1]), 'pruned differently'),
        (_Plan(fc=[0, 2]), _Plan(bn=[0, 2]), r"\['bn', 'fc'\]"),
    ],
)
def test_another_plan_raises_with_the_fix(tmp_path, plan, own, message):
    path = _saved(tmp_path / 'x.pth', 2, plan)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(_model(2 if own else 3, own), path)
    assert "type='mmprune.PrunedModel'" in str(caught.value)
    assert 'tools/test.py' in str(caught.value)


@pytest.mark.parametrize(
    ('plan', 'own', 'width'),
    [
        (_Plan(fc=[0, 2]), _Plan(fc=[0, 2]), 2),
        (_Plan(), None, 3),
        (_Plan(fc=[0, 1, 2]), None, 3),
        (None, None, 3),
        (_Plan(), _Plan(), 3),
        # Weights whose plan was stripped still fit.
        (None, _Plan(fc=[0, 2]), 2),
    ],
)
def test_a_matching_plan_loads(tmp_path, plan, own, width):
    path = _saved(tmp_path / 'x.pth', width, plan)
    model = _model(width, own)
    load_checkpoint(model, path, strict=True)
    expected = torch.load(path, weights_only=True)['state_dict']['fc.weight']
    assert torch.equal(model.fc.weight, expected)


@pytest.mark.parametrize('plan', [None, _Plan()])
def test_dense_weights_do_not_go_into_a_pruned_model(tmp_path, plan):
    path = _saved(tmp_path / 'x.pth', 3, plan)
    model = _model(2, _Plan(fc=[0, 2]))
    with pytest.raises(ValueError) as caught:
        load_checkpoint(model, path)
    text = str(caught.value)
    # fc has two tensors of another shape, bn four; five are named.
    assert '6 shapes differ (fc.weight (3, 2) for (2, 2),' in text
    assert text.count(') for (') == 5
    # Another width is no error while nothing was pruned: a new head.
    load_checkpoint(_model(2, None), path)


def test_a_stock_runner_refuses_the_wrong_plan(tmp_path):
    path = _saved(tmp_path / 'x.pth', 2, _Plan(fc=[0, 2]))
    runner = stock_runner(tmp_path / 'run', 2, ema=False, load_from=path)
    with pytest.raises(ValueError, match='the model is dense'):
        runner.load_or_resume()


def test_the_guard_looks_into_wrappers():
    model = _model(3, None)
    pruned = dict(meta=dict(pruning_plan=_Plan(fc=[0]).to_dict()))
    wrapped = nn.DataParallel(model)
    with pytest.raises(ValueError, match='the model is dense'):
        check_plan_matches(wrapped, pruned)
    model.pruning_plan = _Plan(fc=[0])
    check_plan_matches(wrapped, pruned)


def test_the_guard_reads_a_plan_that_is_text():
    plan = json.dumps(_Plan(fc=[0]).to_dict())
    with pytest.raises(ValueError, match='the model is dense'):
        check_plan_matches(_model(3, None), dict(meta=dict(pruning_plan=plan)))


def test_a_bare_state_dict_has_no_plan():
    check_plan_matches(_model(3, None), Tiny(3).state_dict())
    state = {f'module.{k}': v for k, v in Tiny(3).state_dict().items()}
    with pytest.raises(ValueError, match='6 shapes differ'):
        check_plan_matches(_model(2, _Plan(fc=[0, 2])), state)
