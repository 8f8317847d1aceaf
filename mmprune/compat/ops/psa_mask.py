"""Attention maps from over-completed ones (PSANet, ECCV 2018)."""

import torch
from torch import Tensor


def forward(input: Tensor, output: Tensor, **settings: int) -> None:
    """Writes what each pixel attends to into ``output``.

    Args:
        input: ``[b, hm * wm, h, w]``: at each pixel the attention to its
            neighbours.
        output: ``[b, h * w, h, w]``; written where a neighbour lies in the
            map.
        settings: ``psa_type`` (0: what is collected at a pixel, 1: what it
            distributes), ``h_mask``, ``w_mask``; others are not used.
    """
    here, there, place = _pairs(input, settings)
    flat = input.flatten(2)
    view = output.flatten(2)
    rows, columns = (there, here) if _collects(settings) else (here, there)
    view[:, rows, columns] = flat[:, place, here]


def backward(grad_output: Tensor, grad_input: Tensor, **settings: int) -> None:
    """Writes the gradient of the input."""
    here, there, place = _pairs(grad_input, settings)
    rows, columns = (there, here) if _collects(settings) else (here, there)
    grad_input.flatten(2)[:, place, here] = grad_output.flatten(2)[
        :, rows, columns
    ]


def _collects(settings: dict) -> bool:
    return settings['psa_type'] == 0


def _pairs(input: Tensor, settings: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Returns pixels, neighbours inside the map, and places in the mask."""
    height, width = input.shape[2:]
    h_mask, w_mask = settings['h_mask'], settings['w_mask']
    device = input.device
    y, x, dy, dx = torch.meshgrid(
        torch.arange(height, device=device),
        torch.arange(width, device=device),
        torch.arange(h_mask, device=device),
        torch.arange(w_mask, device=device),
        indexing='ij',
    )
    other_y = y + dy - (h_mask - 1) // 2
    other_x = x + dx - (w_mask - 1) // 2
    inside = (other_y >= 0) & (other_y < height)
    inside &= (other_x >= 0) & (other_x < width)
    here, there = y * width + x, other_y * width + other_x
    return here[inside], there[inside], (dy * w_mask + dx)[inside]
