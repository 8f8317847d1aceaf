"""A model that is loaded is not initialised first."""

import pytest
import torch
from tiny_project import write_checkpoint, write_config
from torch import nn

from mmprune.checkpoints.unfilled import all_in_state, unfilled
from mmprune.models import load_model


class Drawn(nn.Module):
    """Parameters by several ways of `nn.init`, a constant and a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.LayerNorm(3)
        self.table = nn.Parameter(torch.zeros(3, 2))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer('drawn', torch.zeros(4).uniform_(1, 2))


def states():
    """The draws that a model takes from the generator."""
    torch.manual_seed(0)
    Drawn()
    after = torch.get_rng_state()
    torch.manual_seed(0)
    with unfilled():
        net = Drawn()
    return net, after, torch.get_rng_state()


def test_parameters_are_not_drawn_and_buffers_are():
    net, after, found = states()
    assert not torch.equal(after, found)
    torch.manual_seed(0)
    assert torch.equal(net.drawn, torch.zeros(4).uniform_(1, 2))
    assert torch.equal(net.norm.weight, torch.ones(3))
    assert torch.equal(net.table, torch.zeros(3, 2))


def test_afterwards_layers_are_drawn_again():
    with unfilled():
        nn.Linear(2, 2)
    torch.manual_seed(0)
    first = nn.Linear(2, 2).weight
    torch.manual_seed(0)
    assert torch.equal(nn.Linear(2, 2).weight, first)
    assert first.any()


@pytest.mark.parametrize('seed', [0, 1])
def test_a_loaded_model_has_the_weights_of_the_file(tmp_path, seed):
    config, checkpoint = write_config(tmp_path), write_checkpoint(tmp_path)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    model = load_model(config, checkpoint)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    saved = torch.load(checkpoint)['state_dict']
    found = model.state_dict()
    assert all(torch.equal(found[k], v) for k, v in saved.items())


class Taught(nn.Module):
    """Has a teacher that is in no state dict, as mmdet's LAD."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        object.__setattr__(self, 'teacher', nn.Sequential(nn.Linear(2, 2)))


def test_a_hidden_teacher_is_not_in_the_state():
    assert all_in_state(Drawn())
    assert not all_in_state(Taught())
