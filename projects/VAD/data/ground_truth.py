"""From data samples to the targets of the loss."""

import torch
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from .box_convention import to_old


def ground_truth(
    sample: Det3DDataSample, device: torch.device
) -> dict[str, Tensor]:
    """Returns the tensors of one data sample as the loss reads them.

    Boxes become those of mmdet3d 0.17 with z at the gravity centre.

    Raises:
        KeyError: If the sample lacks a part of the ground truth.
    """
    for name in ('gt_instances_3d', 'gt_map', 'gt_ego'):
        if name not in sample:
            raise KeyError(
                f'a training sample of VAD needs {name}, but one lacks it; '
                'use a data set with boxes, map and ego future.'
            )
    objects, lines, ego = sample.gt_instances_3d, sample.gt_map, sample.gt_ego
    boxes = objects.bboxes_3d.tensor.clone()
    boxes[:, 2] += 0.5 * boxes[:, 5]
    gt = dict(
        gt_boxes=to_old(boxes),
        gt_labels=objects.labels_3d,
        gt_attr=objects.attr_labels,
        map_labels=lines.labels,
        map_bboxes=lines.bboxes,
        map_pts=lines.pts,
        shift_pts=lines.shift_pts,
        ego_fut_trajs=ego.fut_trajs,
        ego_fut_masks=ego.fut_masks,
        ego_fut_cmd=ego.fut_cmd,
    )
    return {
        name: torch.as_tensor(value).to(device) for name, value in gt.items()
    }
