"""The ResNets for CIFAR-10 of He et al., as mmengine models."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmprune.models.classifier import Classifier
from mmprune.registry import MODELS


class _Block(nn.Module):
    """Two convolutions beside a short-cut without parameters."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.missing = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.missing:
            # Option A: every second pixel, and channels of zeros around.
            half = self.missing // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, half, half))
        return F.relu(out + x)


class ResNet(nn.Module):
    """``6n + 2`` layers, widths 16, 32 and 64.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for number, width in enumerate((16, 32, 64), 1):
            layers = []
            for place in range(blocks):
                stride = 2 if number > 1 and not place else 1
                layers.append(_Block(inputs, width, stride))
                inputs = width
            setattr(self, f'layer{number}', nn.Sequential(*layers))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class CifarResNet(Classifier, ResNet):
    """The same with a loss and predictions."""

    network = ResNet


@MODELS.register_module(name='CifarResNet')
def build_cifar_resnet(
    depth: int = 20, data_preprocessor: dict | None = None
) -> CifarResNet:
    """Returns a network of 20, 32, 44, 56 or 110 layers that trains.

    Args:
        depth: ``6n + 2``.
        data_preprocessor: As in any mmengine model.
    """
    net = ResNet((depth - 2) // 6)
    net.__class__ = CifarResNet
    net.adopt(data_preprocessor, 0.0)
    return net
