"""From weights to four-bit integers in groups, and back; packed two a byte."""

import dataclasses
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice

LOWEST, HIGHEST = -8, 7
# The smallest number of float16: a group of zeros has this scale, and its
# integers are zeros.
LEAST_SCALE = 2.0**-24


@dataclass(frozen=True)
class Scheme:
    """How weights are stored and activations are rounded.

    Weights are integers of 4 bits from -8 to 7, symmetric: zero stays zero.
    ``group_size`` neighbouring inputs of an output share a scale of 16 bits,
    their largest absolute value by 7.5.

    Args:
        group_size: Weights of a group; a multiple of 2.
        activations: ``float``, or ``int8``: rounded to 8 bits as they come,
            with a range for each token.
    """

    group_size: int = 32
    activations: str = 'float'

    def __post_init__(self) -> None:
        check_choice('activations', self.activations, ('float', 'int8'))
        if self.group_size < 2 or self.group_size % 2:
            raise ValueError(
                'group_size is an even number and at least 2, found '
                f'{self.group_size}'
            )

    @property
    def bits(self) -> float:
        """Bits of a weight, its part of a scale included."""
        return 4 + 16 / self.group_size

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return dataclasses.asdict(self)


def torchao(part: str) -> ModuleType:
    """Imports a part of torchao's quantization, when it is needed.

    Registries import this package for whoever builds a model.

    Raises:
        ValueError: If torchao is not installed.
    """
    try:
        return importlib.import_module(f'torchao.quantization.{part}')
    except ModuleNotFoundError as error:
        if error.name != 'torchao':
            raise
        raise ValueError(
            'weights of a few bits need the package torchao; pip install '
            "'mmprune[llm]'"
        ) from error


def filled(weight: Tensor, group_size: int) -> Tensor:
    """Returns a matrix with zeros behind its last input, to whole groups.

    After pruning a layer may have any number of inputs.
    """
    lacking = -weight.shape[1] % group_size
    return F.pad(weight, (0, lacking)) if lacking else weight


def scales(weight: Tensor, group_size: int) -> Tensor:
    """Returns the scales of a matrix ``[out, groups]``, float16.

    Args:
        weight: ``[out, in]``, of any number of inputs.
        group_size: Inputs of a group.
    """
    ao = torchao('quant_primitives')
    found, _ = ao.choose_qparams_affine(
        filled(weight.detach().float(), group_size),
        ao.MappingType.SYMMETRIC,
        (1, group_size),
        torch.int8,
        quant_min=LOWEST,
        quant_max=HIGHEST,
        eps=LEAST_SCALE,
        scale_dtype=torch.float16,
    )
    # torchao gives one group of each row as [out].
    return found.reshape(weight.shape[0], -1)


def to_integers(weight: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Returns the nearest integers ``[out, whole groups]``, int8."""
    return torchao('quant_primitives').quantize_affine(
        filled(weight.detach().float(), group_size),
        (1, group_size),
        scale.float(),
        torch.zeros_like(scale, dtype=torch.int8),
        torch.int8,
        LOWEST,
        HIGHEST,
    )


def to_float(
    integers: Tensor, scale: Tensor, group_size: int, inputs: int
) -> Tensor:
    """Returns the weights ``[out, inputs]`` that integers stand for."""
    found = torchao('quant_primitives').dequantize_affine(
        integers,
        (1, group_size),
        scale.float(),
        torch.zeros_like(scale, dtype=torch.int8),
        torch.int8,
        LOWEST,
        HIGHEST,
        output_dtype=torch.float32,
    )
    return found[:, :inputs]


def pack(integers: Tensor) -> Tensor:
    """Returns two integers a byte: ``[out, in]`` to ``[out, in / 2]`` uint8.

    The lower half of a byte is the first of the two, counted from -8.
    """
    codes = (integers.to(torch.int16) - LOWEST).to(torch.uint8)
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """Returns the integers ``[out, in]`` of bytes ``[out, in / 2]``, int8."""
    codes = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)
    return codes.to(torch.int8) + LOWEST
