"""The weights that every round restarts from."""

import pytest
import torch
from torch import nn

from mmprune.sparsifying import RewindPoint


class Branch(nn.Module):
    """One group of two neurons with known outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(1, 2), nn.Linear(2, 1)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor([[1.0], [-2.0]]))
            self.fc1.bias.zero_()
            self.fc2.weight.copy_(torch.tensor([[3.0, 5.0]]))
            self.fc2.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x))


def test_training_does_not_change_the_rewind_point():
    model = Branch()
    point = RewindPoint.of(model)
    with torch.no_grad():
        model.fc1.weight.add_(1)
    point.verify()
    point.restore(model)
    assert model.fc1.weight.flatten().tolist() == [1, -2]
    point.weights['fc1.weight'].add_(1)
    with pytest.raises(ValueError, match='rewind point has changed'):
        point.restore(model)


def test_a_rewind_point_is_a_checkpoint_like_any_other(tmp_path):
    model = Branch()
    point = RewindPoint.of(model)
    point.save(tmp_path / 'init.pth', dict(epoch=0))
    found = torch.load(tmp_path / 'init.pth', weights_only=True)
    model.load_state_dict(found['state_dict'])
    loaded = RewindPoint.load(tmp_path / 'init.pth')
    assert loaded.checksum == point.checksum
    found['state_dict']['fc1.bias'] += 1
    torch.save(found, tmp_path / 'init.pth')
    with pytest.raises(ValueError, match='has been changed since'):
        RewindPoint.load(tmp_path / 'init.pth')


def test_a_rewind_point_of_another_model_is_refused():
    point = RewindPoint.of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='init.pth does not fit the model'):
        point.check_fits(Branch(), 'init.pth')
