"""The blocks of a model, one by one, compute what the whole model does."""

import pytest
import torch
from tiny_llm import ARCHITECTURES, dense, tokens
from torch import nn

from mmprune.blocks import catch_inputs, find_blocks, finish


def run(model: nn.Module, batch: torch.Tensor):
    return model(input_ids=batch, mode='tensor')


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_blocks_run_one_behind_the_other_give_the_model(name):
    model = dense(ARCHITECTURES[name])
    batches = tokens(5).split(2)
    with torch.no_grad():
        expected = [run(model, batch) for batch in batches]
    paths = find_blocks(model)
    carried = catch_inputs(model, paths, batches, run)
    for number, path in enumerate(paths):
        carried.carry(model.get_submodule(path), number, 'cpu')
    found = list(finish(model, paths, carried, batches, run))
    assert [len(each) for each in found] == [2, 2, 1]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_model_is_left_as_it_was():
    model = dense()
    before = {n: m.forward for n, m in model.named_modules()}
    catch_inputs(model, find_blocks(model), [tokens(2)], run)
    assert {n: m.forward for n, m in model.named_modules()} == before


def test_arguments_that_are_equal_are_held_once():
    model = dense()
    batches = [tokens(2, seed=seed) for seed in range(3)]
    carried = catch_inputs(model, find_blocks(model), batches, run)
    calls = {id(call) for batch in carried.calls for call in batch}
    assert len(calls) == 1


def test_masks_of_padded_batches_are_their_own():
    """Each batch has its own mask, so its own arguments."""
    model = dense()
    rows = tokens(2)
    masks = [torch.ones_like(rows), torch.ones_like(rows)]
    masks[1][0, :4] = 0

    def padded(net: nn.Module, mask: torch.Tensor):
        return net(input_ids=rows, attention_mask=mask, mode='tensor')

    with torch.no_grad():
        expected = [padded(model, mask) for mask in masks]
    paths = find_blocks(model)
    carried = catch_inputs(model, paths, masks, padded)
    for number, path in enumerate(paths):
        carried.carry(model.get_submodule(path), number, 'cpu')
    found = list(finish(model, paths, carried, masks, padded))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


class Pairs(nn.Module):
    """Blocks that return a tuple and are called by keyword."""

    def __init__(self, order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.order = order
        self.layers = nn.ModuleList(Pair() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in self.order:
            x, _ = self.layers[number](hidden=x, scale=2.0)
        return x


class Pair(nn.Module):
    """A block of :class:`Pairs`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, hidden: torch.Tensor, scale: float) -> tuple:
        return self.fc(hidden) * scale, 'more'


def call(model: nn.Module, batch: torch.Tensor):
    return model(batch)


def test_blocks_may_return_tuples():
    torch.manual_seed(0)
    model, batch = Pairs(), torch.randn(2, 3)
    paths = find_blocks(model)
    carried = catch_inputs(model, paths, [batch], call)
    for number, path in enumerate(paths):
        carried.carry(model.get_submodule(path), number, 'cpu')
    (found,) = finish(model, paths, carried, [batch], call)
    assert torch.equal(found, model(batch))


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match='Sequential has no standard blocks'):
        find_blocks(model)


def test_blocks_in_another_order_are_refused():
    model = Pairs(order=(1, 0))
    with pytest.raises(ValueError, match='do not run in their order'):
        catch_inputs(model, find_blocks(model), [torch.ones(1, 3)], call)


def test_the_longest_list_of_modules_with_layers_is_taken():
    model = nn.Module()
    model.heads = nn.ModuleList([nn.Linear(2, 2)])
    model.norms = nn.ModuleList([nn.LayerNorm(400)] * 3)
    model.net = Pairs()
    assert find_blocks(model) == ['net.layers.0', 'net.layers.1']
