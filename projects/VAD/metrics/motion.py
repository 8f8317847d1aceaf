"""Forecast of the agents' motion, end to end from detection.

The metric of ViP3D (Gu et al., CVPR 2023) as VAD reports it: positions
include the detected and the true centre, so a detection error counts.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

DYNAMIC = (0, 1, 3, 4, 6, 7, 8)
GROUPS = {'car': (0, 1, 3, 4), 'pedestrian': (8,)}
MATCH_RADIUS = 2.0
MISS_RADIUS = 2.0
MIN_SCORE = 0.6
_APART = 1e6


def match_objects(
    centers: np.ndarray,
    labels: np.ndarray,
    gt_centers: np.ndarray,
    gt_labels: np.ndarray,
) -> np.ndarray:
    """Returns the prediction matched to each true object, -1 for none.

    Hungarian matching of the centres of dynamic classes, whatever the class;
    pairs more than 2 m apart are no match.

    Args:
        centers: ``[n, 2]`` predicted.
        labels: ``[n]``.
        gt_centers: ``[m, 2]``.
        gt_labels: ``[m]``.

    Returns:
        ``[m]`` int64.
    """
    distance = np.linalg.norm(
        centers[:, None].astype(np.float64) - gt_centers[None], axis=-1
    )
    distance[~np.isin(labels, DYNAMIC)] = _APART
    distance[:, ~np.isin(gt_labels, DYNAMIC)] = _APART
    distance[distance > MATCH_RADIUS] = _APART
    rows, columns = linear_sum_assignment(distance)
    near = distance[rows, columns] <= MATCH_RADIUS
    matched = np.full(len(gt_labels), -1, dtype=np.int64)
    matched[columns[near]] = rows[near]
    return matched


def motion_counts(
    trajs: np.ndarray,
    labels: np.ndarray,
    gt_trajs: np.ndarray,
    gt_masks: np.ndarray,
    gt_labels: np.ndarray,
    matched: np.ndarray,
) -> Counter:
    """Returns the sums of one sample, to be added over samples.

    Args:
        trajs: ``[n, modes, T, 2]`` predicted positions in metres.
        labels: ``[n]`` predicted classes.
        gt_trajs: ``[m, T, 2]`` true positions in metres.
        gt_masks: ``[m, T]``, 1 while the future is known.
        gt_labels: ``[m]``.
        matched: ``[m]`` of ``match_objects``.

    Returns:
        For ``car`` and ``pedestrian``: ``gt_`` (whole future known),
        ``cnt_ade_``, ``cnt_fde_``, ``hit_``, ``fp_`` and the sums ``ADE_``,
        ``FDE_`` in metres and ``MR_``.
    """
    counts = Counter()
    for name, classes in GROUPS.items():
        unmatched = np.setdiff1d(np.arange(len(labels)), matched)
        counts[f'fp_{name}'] = int(np.isin(labels[unmatched], classes).sum())
        for i in np.flatnonzero(np.isin(gt_labels, classes)):
            known = int((gt_masks[i] == 1).sum())
            whole = known == gt_masks.shape[1]
            counts[f'gt_{name}'] += int(whole)
            if matched[i] < 0 or known == 0:
                continue
            gap = np.linalg.norm(
                trajs[matched[i], :, :known] - gt_trajs[i, :known], axis=-1
            )
            counts[f'cnt_ade_{name}'] += 1
            counts[f'ADE_{name}'] += float(gap.mean(axis=-1).min())
            if whole:
                end = float(gap[:, -1].min())
                counts[f'cnt_fde_{name}'] += 1
                counts[f'FDE_{name}'] += end
                hit = end <= MISS_RADIUS
                counts[f'hit_{name}' if hit else f'MR_{name}'] += 1
    return counts


def motion_summary(counts: Mapping[str, float]) -> dict[str, float]:
    """Returns EPA, minADE, minFDE (m) and miss rate per group.

    EPA = (hits - 0.5 false positives) / true objects, end-to-end prediction
    accuracy. What would divide by zero is left out.

    Args:
        counts: Sums of ``motion_counts`` over all samples.
    """
    summary = {}
    for name in GROUPS:
        gained = counts.get(f'hit_{name}', 0) - 0.5 * counts.get(
            f'fp_{name}', 0
        )
        for key, total, over in (
            ('EPA', gained, 'gt'),
            ('minADE', counts.get(f'ADE_{name}', 0), 'cnt_ade'),
            ('minFDE', counts.get(f'FDE_{name}', 0), 'cnt_fde'),
            ('MR', counts.get(f'MR_{name}', 0), 'cnt_fde'),
        ):
            if counts.get(f'{over}_{name}', 0):
                summary[f'{key}_{name}'] = total / counts[f'{over}_{name}']
    return summary
