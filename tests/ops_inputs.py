"""Boxes for tests of the served ops, and the devices to run them on."""

import pytest
import torch
from torch import Tensor

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)
devices = pytest.mark.parametrize(
    'device', ['cpu', pytest.param('cuda', marks=cuda)]
)


def random_boxes(n: int, size: float = 40.0) -> Tensor:
    corner = torch.rand(n, 2) * size
    return torch.cat([corner, corner + 3 + torch.rand(n, 2) * size / 2], 1)
