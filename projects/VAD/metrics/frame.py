"""What one data sample contributes to each part of the evaluation.

Every function takes a sample of ``sample_arrays`` and returns the numbers
that are kept until the end, or None where the sample lacks what the part
needs.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from projects.VAD.data.box_convention import to_old

from . import detection_ap, map_ap, motion, planning, submission
from .constant_velocity import BASELINES


def sample_arrays(sample: dict | BaseDataElement) -> dict:
    """Returns a data sample as nested dicts of arrays; boxes stay boxes."""
    if isinstance(sample, BaseDataElement):
        sample = sample.to_dict()
    out = {}
    for key, value in sample.items():
        if isinstance(value, dict | BaseDataElement):
            value = sample_arrays(value)
        elif isinstance(value, torch.Tensor):
            value = value.detach().cpu().float().numpy()
        out[key] = value
    return out


def of_planning(
    sample: dict, baselines: Sequence[str] = ()
) -> dict[str, float] | None:
    """Returns the errors of the commanded plan and of the baselines.

    A sample without a whole ego future does not count.

    Args:
        sample: Of ``sample_arrays``.
        baselines: Names of ``BASELINES``; evaluated where the data have the
            ego history.
    """
    ego = sample.get('gt_ego', {})
    needed = {'fut_trajs', 'fut_masks', 'fut_cmd'}
    if not needed <= ego.keys() or 'pred_ego' not in sample:
        return None
    whole = ego.get('fut_valid_flag', ego['fut_masks'].min() > 0)
    if not np.all(whole):
        return None
    grid = None
    instances = sample.get('gt_instances_3d', {})
    if 'attr_labels' in instances:
        grid = planning.occupancy(
            _old_boxes(instances), instances['attr_labels']
        )
    truth = ego['fut_trajs'].cumsum(axis=0)
    command = int(ego['fut_cmd'].argmax())
    errors = planning.planning_errors(
        sample['pred_ego']['plans'][command], truth, grid
    )
    for name in baselines if 'his_trajs' in ego else ():
        plan = BASELINES[name](ego['his_trajs'], len(truth))
        for key, value in planning.planning_errors(plan, truth, grid).items():
            if 'center_col' not in key:
                errors[key.replace('plan', name, 1)] = value
    return errors


def of_motion(sample: dict) -> Counter | None:
    """Returns the sums of ``motion_counts``."""
    truth = sample.get('gt_instances_3d', {})
    found = sample.get('pred_instances_3d', {})
    if 'attr_labels' not in truth or 'trajs' not in found:
        return None
    sure = found['scores_3d'] > motion.MIN_SCORE
    labels = found['labels_3d'][sure]
    gt_labels, attr = truth['labels_3d'], truth['attr_labels']
    gt_centers = _old_boxes(truth)[:, :2]
    trajs = found['trajs'][sure]
    steps = found['trajs'].shape[2]
    offsets = attr[:, : 2 * steps].reshape(-1, steps, 2)
    return motion.motion_counts(
        trajs,
        labels,
        gt_centers[:, None] + offsets.cumsum(axis=1),
        attr[:, 2 * steps : 3 * steps],
        gt_labels,
        motion.match_objects(
            _old_boxes(found)[sure, :2], labels, gt_centers, gt_labels
        ),
    )


def of_map(sample: dict, num_classes: int) -> dict | None:
    """Returns distances and scores of the lines per class."""
    if 'gt_map' not in sample or 'pred_map' not in sample:
        return None
    truth, found = sample['gt_map'], sample['pred_map']
    gt_lines = truth.get('lines', truth.get('pts'))
    per_class = {}
    for label in range(num_classes):
        mine = np.flatnonzero(found['labels'] == label)
        theirs = np.flatnonzero(truth['labels'] == label)
        per_class[label] = dict(
            distances=map_ap.chamfer_distances(
                [found['pts'][i] for i in mine], [gt_lines[i] for i in theirs]
            ),
            scores=found['scores'][mine],
        )
    return per_class


def of_detection(sample: dict) -> dict | None:
    """Returns the centres, labels and scores inside the region."""
    truth = sample.get('gt_instances_3d', {})
    found = sample.get('pred_instances_3d', {})
    if 'labels_3d' not in truth or 'labels_3d' not in found:
        return None
    centers, gt_centers = _old_boxes(found), _old_boxes(truth)
    keep = found['scores_3d'] >= detection_ap.MIN_SCORE
    keep &= detection_ap.in_region(centers)
    inside = detection_ap.in_region(gt_centers)
    return dict(
        centers=centers[keep, :2],
        scores=found['scores_3d'][keep],
        labels=found['labels_3d'][keep],
        gt_centers=gt_centers[inside, :2],
        gt_labels=truth['labels_3d'][inside],
    )


def of_nds(
    sample: dict, classes: Sequence[str], min_score: float
) -> dict | None:
    """Returns the boxes in the global frame for ``detection_score``.

    Args:
        sample: Of ``sample_arrays``.
        classes: Names of the labels; those that nuScenes does not detect
            are left out.
        min_score: Predictions below do not count.
    """
    found = sample.get('pred_instances_3d', {})
    needed = {'token', 'lidar2ego', 'ego2global'}
    if 'labels_3d' not in found or not needed <= sample.keys():
        return None
    pose = (sample['lidar2ego'], sample['ego2global'])
    sure = found['scores_3d'] >= min_score
    boxes, kept = _global_boxes(sample['token'], found, classes, pose, sure)
    frame = dict(
        token=sample['token'],
        ego2global=sample['ego2global'],
        found=submission.with_scores(boxes, found['scores_3d'][kept]),
    )
    truth = sample.get('gt_instances_3d', {})
    if 'labels_3d' in truth:
        boxes, kept = _global_boxes(sample['token'], truth, classes, pose)
        for box, i in zip(boxes, kept, strict=True):
            if 'attribute_names' in truth:
                box['attribute_name'] = str(truth['attribute_names'][i])
        frame['truth'] = boxes
    return frame


def _global_boxes(
    token: str,
    instances: dict,
    classes: Sequence[str],
    pose: tuple[np.ndarray, np.ndarray],
    keep: np.ndarray | bool = True,
) -> tuple[list[dict], np.ndarray]:
    """Boxes of the classes of nuScenes and their indices."""
    names = np.array([classes[int(i)] for i in instances['labels_3d']], str)
    keep = keep & np.isin(names, list(submission.ATTRIBUTES))
    kept = np.flatnonzero(keep)
    boxes = submission.submission_boxes(
        token, instances['bboxes_3d'][kept], names[kept], *pose
    )
    return boxes, kept


def _old_boxes(instances: dict) -> np.ndarray:
    """``[n, 9]`` in the old convention, z at the gravity centre."""
    boxes = instances['bboxes_3d']
    old = to_old(boxes.tensor.detach().cpu())
    old[:, :3] = boxes.gravity_center.detach().cpu()
    return old.numpy()
