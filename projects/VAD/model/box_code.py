"""The ten numbers by which the detection branch describes a box."""

import torch
from torch import Tensor


def encode_boxes(boxes: Tensor) -> Tensor:
    """Writes boxes as regression targets.

    The convention of ``boxes`` is the network's: ``(x, y, z, w, l, h, yaw,
    vx, vy)``, with z the gravity centre and the yaw of mmdet3d 0.17.

    Args:
        boxes: ``[..., 9]`` in metres, radians and metres per second.
            Without velocity ``[..., 7]``.

    Returns:
        ``[..., 10]`` (or 8): ``(x, y, log w, log l, z, log h, sin yaw,
        cos yaw, vx, vy)``.
    """
    x, y, z, w, l, h, yaw = boxes[..., :7].unbind(-1)  # noqa: E741
    code = torch.stack(
        (x, y, w.log(), l.log(), z, h.log(), yaw.sin(), yaw.cos()), dim=-1
    )
    return torch.cat((code, boxes[..., 7:]), dim=-1)


def decode_boxes(code: Tensor) -> Tensor:
    """Reads boxes back from regression outputs; inverse of encode_boxes.

    Args:
        code: ``[..., 10]`` or ``[..., 8]``, as ``encode_boxes`` returns it.

    Returns:
        ``[..., 9]`` (or 7): ``(x, y, z, w, l, h, yaw, vx, vy)``, yaw in
        (-pi, pi].
    """
    x, y, log_w, log_l, z, log_h, sin, cos = code[..., :8].unbind(-1)
    yaw = torch.atan2(sin, cos)
    boxes = torch.stack(
        (x, y, z, log_w.exp(), log_l.exp(), log_h.exp(), yaw), dim=-1
    )
    return torch.cat((boxes, code[..., 8:]), dim=-1)
