"""Thin data sets over files that are there; nothing is downloaded."""

from .batches import BatchesByLength
from .cifar import CIFAR
from .digits import Digits
from .sentences import SST2, GeneratedSentiment, pad_sentences
from .tokens import TokenWindows
from .transforms import PadCrop, RandomMirror, ToTensor

__all__ = [
    'CIFAR',
    'SST2',
    'BatchesByLength',
    'Digits',
    'GeneratedSentiment',
    'PadCrop',
    'RandomMirror',
    'ToTensor',
    'TokenWindows',
    'pad_sentences',
]
