"""Sampling at learnt places: loops, operations and mmcv's op agree."""

import math

import pytest
import torch
import torch.nn.functional as F

from projects.VAD.model.deformable_sampling import (
    _sample_compiled,
    sample_levels,
)


def sampled_by_torch(value, shapes, locations, weights, batch):
    """One grid_sample per query's map and level."""
    heads, width = value.shape[2:]
    out = 0
    levels = value.split([h * w for h, w in shapes], 1)
    for i, (level, (h, w)) in enumerate(zip(levels, shapes, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(-1, width, h, w)
        head = torch.arange(heads).repeat(len(batch))
        chosen = maps[batch.repeat_interleave(heads) * heads + head]
        grid = locations[:, :, i].flatten(0, 1).unsqueeze(1) * 2 - 1
        read = F.grid_sample(chosen, grid, align_corners=False).squeeze(2)
        out = out + (read * weights[:, :, i].flatten(0, 1).unsqueeze(1)).sum(2)
    return out.view(len(batch), heads * width)


@pytest.fixture
def sampling_arguments():
    shapes = [(7, 9), (4, 5)]
    value = torch.randn(3, 83, 2, 5, requires_grad=True)
    locations = (torch.rand(40, 2, 2, 3, 2) * 1.6 - 0.3).requires_grad_()
    weights = torch.rand(40, 2, 2, 3, requires_grad=True)
    batch = torch.randint(0, 3, (40,)).sort().values
    return value, shapes, locations, weights, batch


def assert_same_with_gradients(one, other, leaves):
    torch.testing.assert_close(one, other)
    grads = [
        torch.autograd.grad(out.square().sum(), leaves) for out in (one, other)
    ]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_sampling_equals_grid_sample_with_gradients(sampling_arguments):
    value, _, locations, weights, _ = sampling_arguments
    leaves = (value, locations, weights)
    ours = sample_levels(*sampling_arguments)
    theirs = sampled_by_torch(*sampling_arguments)
    assert_same_with_gradients(ours, theirs, leaves)


def test_operations_give_what_the_compiled_loops_give(
    sampling_arguments, monkeypatch
):
    leaves = [sampling_arguments[i] for i in (0, 2, 3)]
    loops = sample_levels(*sampling_arguments)
    monkeypatch.setattr('torch.jit.is_tracing', lambda: True)
    operations = sample_levels(*sampling_arguments)
    assert 'SampleOnCPU' in loops.grad_fn.name()
    assert 'SampleOnCPU' not in operations.grad_fn.name()
    assert_same_with_gradients(loops, operations, leaves)


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith('AVX'),
    reason='embedding_bag rounds products here before it adds them',
)
def test_the_compiled_loops_give_the_bits_of_the_operations(monkeypatch):
    """Of large maps too, where positions have few digits after the point."""
    value = torch.randn(2, 100 * 100 + 12 * 20, 4, 32)
    locations = torch.rand(500, 4, 2, 4, 2) * 1.2 - 0.1
    weights, batch = torch.rand(500, 4, 2, 4), torch.arange(500) // 250
    given = (value, [(100, 100), (12, 20)], locations, weights, batch)
    with torch.no_grad():
        loops = sample_levels(*given)
        monkeypatch.setattr('torch.jit.is_tracing', lambda: True)
        assert torch.equal(loops, sample_levels(*given))


def test_the_number_of_threads_changes_no_bit(sampling_arguments):
    value, _, locations, weights, _ = sampling_arguments
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = sample_levels(*sampling_arguments)
            leaves = value, locations, weights
            found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_location_that_is_no_number_shows(sampling_arguments):
    value, shapes, locations, weights, batch = sampling_arguments
    lost = locations.detach().clone()
    lost[3, 1, 0, 2, 0] = float('nan')
    out = sample_levels(value, shapes, lost, weights, batch)
    assert out[3, 5:].isnan().all()
    assert out.isnan().sum() == 5


def test_sampling_through_mmcvs_op_is_the_same(sampling_arguments):
    """mmprune serves the op on any device, so its packing is tested here."""
    with torch.no_grad():
        ours = sample_levels(*sampling_arguments)
        theirs = _sample_compiled(*sampling_arguments)
    torch.testing.assert_close(ours, theirs)


def test_sampling_far_outside_is_zero(sampling_arguments):
    value, shapes, _, weights, batch = sampling_arguments
    for far in (1e30, -1e30, float('inf'), float('nan')):
        where = torch.full((40, 2, 2, 3, 2), far)
        with torch.no_grad():
            out = sample_levels(value, shapes, where, weights, batch)
        if math.isfinite(far):
            assert out.abs().max() == 0
        assert out.shape == (40, 10)


def test_sampling_nothing_gives_nothing(sampling_arguments):
    value, shapes, locations, weights, batch = sampling_arguments
    out = sample_levels(value, shapes, locations[:0], weights[:0], batch[:0])
    assert out.shape == (0, 10)
