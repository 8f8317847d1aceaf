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
    p, log_p, log_q = _probabilities(input)
    positive = alpha * (1 - p) ** gamma * log_p
    negative = (1 - alpha) * p**gamma * log_q
    output.copy_(_of_classes(positive, negative, weight, target))


def sigmoid_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the gradient of each logit's own loss into ``grad_input``."""
    p, log_p, log_q = _probabilities(input)
    positive = alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    negative = (1 - alpha) * p**gamma * (gamma * (1 - p) * log_q - p)
    grad_input.copy_(_of_classes(positive, negative, weight, target))


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
    hit = _hits(target, softmax.shape[1]).to(buff.dtype)
    grad_input.copy_(buff[:, None] * (hit - softmax))


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the sigmoid, its logarithm, and that of 1 minus it."""
    x = logits.to(exact_dtype(logits))
    log_p, log_q = (F.logsigmoid(y).clamp(min=_LOG_TINY) for y in (x, -x))
    return x.sigmoid(), log_p, log_q


def _of_classes(
    positive: Tensor, negative: Tensor, weight: Tensor, target: Tensor
) -> Tensor:
    """Returns minus what holds for the target or another class, weighted."""
    hit = _hits(target, positive.shape[1])
    chosen = torch.where(hit, positive, negative)
    return -chosen * _row_weight(weight, target)[:, None]


def _hits(target: Tensor, classes: int) -> Tensor:
    """Returns where the target class of each row is, ``[n, classes]``."""
    return target[:, None] == torch.arange(classes, device=target.device)


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
