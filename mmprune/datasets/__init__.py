"""Thin data sets over files that are there; nothing is downloaded."""

from .cifar import CIFAR
from .digits import Digits
from .tokens import TokenWindows
from .transforms import PadCrop, RandomMirror, ToTensor

__all__ = [
    'CIFAR',
    'Digits',
    'PadCrop',
    'RandomMirror',
    'ToTensor',
    'TokenWindows',
]
