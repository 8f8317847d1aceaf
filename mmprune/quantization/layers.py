"""Linear layers with four-bit weights: stored, and in training."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .integers import (
    Scheme,
    filled,
    pack,
    scales,
    to_float,
    torchao,
    unpack,
)


class PackedLinear(nn.Module):
    """A linear layer that holds integers and makes weights when it runs.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        bias: Whether it has a bias.
        scheme: How its weights are stored.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool, scheme: Scheme
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.scheme = scheme
        groups = -(-inputs // scheme.group_size)
        self.register_buffer(
            'packed',
            torch.zeros(
                outputs, groups * scheme.group_size // 2, dtype=torch.uint8
            ),
        )
        self.register_buffer(
            'scale', torch.ones(outputs, groups, dtype=torch.float16)
        )
        self.register_buffer('bias', torch.zeros(outputs) if bias else None)
        self.rounding = activation_rounding(scheme)

    @classmethod
    def of(
        cls, layer: nn.Linear, integers: Tensor, scale: Tensor, scheme: Scheme
    ) -> 'PackedLinear':
        """Returns a layer in the place of another.

        Args:
            layer: The layer, for its sizes and bias.
            integers: ``[out, whole groups]``.
            scale: ``[out, groups]``.
            scheme: How they were made.
        """
        new = cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            scheme,
        )
        new.packed, new.scale = pack(integers), scale
        if layer.bias is not None:
            new.bias = layer.bias.detach().float().clone()
        return new

    @property
    def weight(self) -> Tensor:
        """The weights that the integers stand for, ``[out, in]``."""
        return to_float(
            unpack(self.packed),
            self.scale,
            self.scheme.group_size,
            self.in_features,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[..., out]``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(self.rounding(x), self.weight.to(x.dtype), bias)

    def extra_repr(self) -> str:
        """Says its sizes."""
        return f'{self.in_features}, {self.out_features}, {self.scheme}'


class FakeQuantLinear(nn.Linear):
    """A linear layer that computes with rounded weights and trains its own.

    The gradient passes the rounding as if it were none (Bengio et al.,
    "Estimating or Propagating Gradients Through Stochastic Neurons", 2013).
    Names and shapes of the parameters are those of the layer that it was;
    :meth:`take_over` turns one into it.
    """

    scheme: Scheme

    @staticmethod
    def take_over(layer: nn.Linear, scheme: Scheme) -> None:
        """Makes a linear layer compute with rounded weights, in place."""
        layer.__class__ = FakeQuantLinear
        layer.scheme = scheme

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[..., out]``."""
        # Under autocast weights would be rounded from half precision.
        with torch.autocast(x.device.type, enabled=False):
            rounded = rounded_weight(self.weight, self.scheme)
        return F.linear(
            activation_rounding(self.scheme)(x), rounded, self.bias
        )


def rounded_weight(weight: Tensor, scheme: Scheme) -> Tensor:
    """Returns the weights that would be stored, with a gradient."""
    quantizer = _weights(scheme.group_size)
    # Of 16 bits, as stored. torchao would divide in 16 bits then: NaN where
    # a group is zero.
    quantizer.scale = scales(weight, scheme.group_size).float()
    quantizer.zero_point = torch.zeros_like(quantizer.scale)
    rounded = quantizer(filled(weight, scheme.group_size))
    return rounded[:, : weight.shape[1]]


def activation_rounding(scheme: Scheme) -> nn.Module:
    """Returns what activations go through."""
    return nn.Identity() if scheme.activations == 'float' else _tokens()


# torchao's fake quantizers keep no state that is used again.
@functools.cache
def _weights(group_size: int) -> nn.Module:
    qat = torchao('qat')
    return qat.IntxFakeQuantizer(
        qat.IntxFakeQuantizeConfig(
            torch.int4,
            torchao('granularity').PerGroup(group_size),
            is_symmetric=True,
            is_dynamic=False,
        )
    )


@functools.cache
def _tokens() -> nn.Module:
    qat = torchao('qat')
    return qat.IntxFakeQuantizer(
        qat.IntxFakeQuantizeConfig(torch.int8, 'per_token', is_symmetric=False)
    )
