"""Weights of a few bits, on torchao: after training, or trained with them."""

from .choice import Choice, choose_layers
from .gptq import gptq
from .integers import Scheme, pack, scales, to_float, to_integers, unpack
from .layers import FakeQuantLinear, PackedLinear
from .models import build_fake_quantized_model, build_quantized_model
from .packing import packed_copy, save_quantized

__all__ = [
    'Choice',
    'FakeQuantLinear',
    'PackedLinear',
    'Scheme',
    'build_fake_quantized_model',
    'build_quantized_model',
    'choose_layers',
    'gptq',
    'pack',
    'packed_copy',
    'save_quantized',
    'scales',
    'to_float',
    'to_integers',
    'unpack',
]
