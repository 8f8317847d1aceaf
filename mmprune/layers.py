"""Which layers have a matrix or kernel of weights, and how it lies."""

from torch import nn

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def is_layer(module: nn.Module) -> bool:
    """Returns whether a module is linear or a convolution."""
    return isinstance(module, _LAYERS) or is_conv1d(type(module))


def is_conv1d(kind: type) -> bool:
    """Returns whether a class is GPT-2's linear layer.

    It has the name of a convolution and computes ``x @ weight + bias`` with
    a weight ``[in, out]``.
    """
    return kind.__name__ == 'Conv1D'


def input_dim(kind: type) -> int:
    """Returns the dimension of a layer's weight that reads its inputs.

    Args:
        kind: Class of the layer.
    """
    turned = issubclass(kind, nn.modules.conv._ConvTransposeNd)
    return 0 if turned or is_conv1d(kind) else 1
