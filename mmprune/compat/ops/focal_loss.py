"""Focal loss (Lin et al., https://arxiv.org/abs/1708.02002)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import exact_dtype

# The smallest normal float32: probabilities below it count as it.
_TINY = torch.finfo(torch.float32).tiny
_LOG_TINY = math.log(_TINY)


def sigmoid_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the loss of each logit into ``output``.

    ``-alpha (1-p)^gamma log p`` for the target class, ``-(1-alpha) p^gamma
    log(1-p)`` for the others.

    Args:
        input: Logits, ``[n, c]``.
        target: Class of each row, ``[n]``; ``c`` is background.
        weight: Weight of each class, ``[c]``, or empty.
        output: ``[n, c]``; written.
        gamma: Focus on hard rows.
        alpha: Balance of target and others.
    """
    x, hit = _logits(input, target)
    p = x.sigmoid()
    log_p = F.logsigmoid(x).clamp(min=_LOG_TINY)
    log_q = F.logsigmoid(-x).clamp(min=_LOG_TINY)
    positive = alpha * (1 - p) ** gamma * log_p
    negative = (1 - alpha) * p**gamma * log_q
    loss = -torch.where(hit, positive, negative)
    output.copy_(loss * _row_weight(weight, target)[:, None])


def sigmoid_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the gradient of each logit's own loss into ``grad_input``."""
    x, hit = _logits(input, target)
    p = x.sigmoid()
    log_p = F.logsigmoid(x).clamp(min=_LOG_TINY)
    log_q = F.logsigmoid(-x).clamp(min=_LOG_TINY)
    positive = alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    negative = (1 - alpha) * p**gamma * (gamma * (1 - p) * log_q - p)
    grad = -torch.where(hit, positive, negative)
    grad_input.copy_(grad * _row_weight(weight, target)[:, None])


def softmax_forward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the loss of each row into ``output``, ``[n]``.

    Args:
        softmax: Probabilities, ``[n, c]``.
        target: Class of each row, ``[n]``; negative: no loss.
        weight: Weight of each class, ``[c]``, or empty.
        output: ``[n]``; written.
        gamma: Focus on hard rows.
        alpha: Scale.
    """
    p, counts = _target_probability(softmax, target)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=_TINY).log()
    output.copy_(loss * counts * _row_weight(weight, target))


def softmax_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the gradient of the logits into ``grad_input``, ``[n, c]``."""
    p, counts = _target_probability(softmax, target)
    log_p = p.clamp(min=_TINY).log()
    slope = gamma * (1 - p) ** (gamma - 1) * p * log_p - (1 - p) ** gamma
    buff.copy_(alpha * slope * counts * _row_weight(weight, target))
    classes = torch.arange(softmax.shape[1], device=softmax.device)
    hit = (target[:, None] == classes).to(buff.dtype)
    grad_input.copy_(buff[:, None] * (hit - softmax))


def _logits(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    classes = torch.arange(input.shape[1], device=input.device)
    return input.to(exact_dtype(input)), target[:, None] == classes


def _target_probability(
    softmax: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    picked = softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return picked.to(exact_dtype(softmax)), target >= 0


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Returns the weight of each row's class, 1 for background, ``[n]``."""
    if weight.numel() == 0:
        return torch.ones_like(target, dtype=exact_dtype(weight))
    known = (target >= 0) & (target < len(weight))
    picked = weight[target.clamp(0, len(weight) - 1)]
    return torch.where(known, picked, torch.ones_like(picked))
