"""The image part with convolutions of eight bits."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def quantize_image(
    source: Path, target: Path, pictures: Iterable[np.ndarray]
) -> None:
    """Writes a copy whose convolutions read and weigh eight bits.

    Static: the ranges are those of the pictures. Symmetric, with a scale per
    output channel of the weights and zero points 0, as TensorRT wants them;
    a weight that is zero stays zero, so that a 2:4 pattern survives. Biases
    stay in float, because TensorRT dequantizes no int32.

    Args:
        source: ``image.onnx``.
        target: What is written.
        pictures: To calibrate on, ``[1, cameras, 3, H, W]`` each.
    """
    from onnxruntime.quantization import CalibrationDataReader

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.left, None)
            return None if picture is None else {'img': picture}

    # It asks for a preparation that a graph without free sizes needs not.
    logging.disable(logging.WARNING)
    try:
        _quantize(source, target, Pictures())
    finally:
        logging.disable(logging.NOTSET)


def _quantize(source: Path, target: Path, reader: Any) -> None:
    from onnxruntime.quantization import (
        QuantFormat,
        QuantType,
        quantize_static,
    )

    quantize_static(
        str(source),
        str(target),
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=['Conv'],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options=dict(
            ActivationSymmetric=True,
            WeightSymmetric=True,
            QuantizeBias=False,
        ),
    )
