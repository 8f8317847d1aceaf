"""Networks of a few layers, and what is discovered of them."""

import torch
from torch import nn

from mmprune.discovery import discovered_groups
from mmprune.plan import PruningPlan
from mmprune.pruners import masked_difference

PICTURE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def lively(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    return model.eval()


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def found(model, x=PICTURE):
    """Name -> size of the open groups, after masked == pruned was seen."""
    lively(model)
    groups = discovered_groups(model, lambda net: net(x))
    open_groups = [g for g in groups if not g.dense]
    for half in (0, 1):  # either half of the units of every group
        keep = {g.name: list(range(half, g.size, 2)) for g in open_groups}
        plan = PruningPlan(tuple(open_groups), keep)
        if open_groups and all(keep.values()):
            difference = masked_difference(model, plan, lambda net: net(x))
            assert difference < 1e-5
    return {g.name: g.size for g in open_groups}


def open_group(model):
    """The only group of which units can be removed."""
    groups = discovered_groups(model, lambda net: net(PICTURE))
    (group,) = [g for g in groups if not g.dense]
    return group


def reasons(model, x=PICTURE):
    groups = discovered_groups(lively(model), lambda net: net(x))
    return {g.name: g.dense for g in groups if g.dense}
