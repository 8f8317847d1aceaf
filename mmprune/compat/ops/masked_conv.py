"""Convolution at some pixels of a map only (arXiv:1901.03278)."""

import torch.nn.functional as F
from torch import Tensor


def im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Writes the neighbourhoods of pixels into ``data_col``.

    Args:
        features: ``[1, c, h, w]``.
        mask_h_idx: ``[n]``, rows of the pixels.
        mask_w_idx: ``[n]``, their columns.
        data_col: ``[c * kernel_h * kernel_w, n]``; written.
        kernel_h: Height of a neighbourhood.
        kernel_w: Width of a neighbourhood.
        pad_h: Zeros above and below.
        pad_w: Zeros left and right.
    """
    columns = F.unfold(features, (kernel_h, kernel_w), padding=(pad_h, pad_w))
    width = features.shape[3] + 2 * pad_w - kernel_w + 1
    data_col.copy_(columns[0][:, mask_h_idx * width + mask_w_idx])


def col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    *,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Writes ``col``, ``[c, n]``, to the pixels of ``im``, ``[1, c, h, w]``.

    Args:
        col: Values, a column per pixel.
        mask_h_idx: ``[n]``, rows of the pixels.
        mask_w_idx: ``[n]``, their columns.
        im: Written at the pixels.
        height: Not used.
        width: Not used.
        channels: Not used.
    """
    im[0, :, mask_h_idx, mask_w_idx] = col
