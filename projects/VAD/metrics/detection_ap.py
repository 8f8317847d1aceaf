"""Average precision of boxes by the distance of their centres in the BEV.

The matching and the precision-recall area are those of nuScenes (Caesar et
al., CVPR 2020, 3.1). It is not the official score: there are no true
positive errors and no NDS, and the region is a rectangle in the LiDAR frame.
"""

from collections.abc import Sequence

import numpy as np

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
HALF_REGION = (15.0, 30.0)
MIN_SCORE = 0.2
_MIN_RECALL = 0.1
_MIN_PRECISION = 0.1
_RECALLS = np.linspace(0, 1, 101)


def in_region(centers: np.ndarray) -> np.ndarray:
    """Returns which centres ``[n, 2]`` are strictly inside the region."""
    return (np.abs(centers[:, :2]) < HALF_REGION).all(axis=1)


def center_hits(
    centers: np.ndarray,
    scores: np.ndarray,
    gt_centers: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Returns which predictions of one sample and class are true positives.

    In descending score, each takes the nearest true centre that is free.

    Args:
        centers: ``[n, 2]`` predicted, in metres.
        scores: ``[n]``.
        gt_centers: ``[m, 2]``.
        threshold: Largest distance, not included.

    Returns:
        ``[n]`` bool, in the order of ``scores``.
    """
    hits = np.zeros(len(scores), dtype=bool)
    distance = np.linalg.norm(
        centers[:, None].astype(np.float64) - gt_centers[None], axis=-1
    )
    for i in np.argsort(-np.asarray(scores), kind='stable'):
        if not distance.shape[1]:
            break
        j = distance[i].argmin()
        if distance[i, j] < threshold:
            hits[i] = True
            distance[:, j] = np.inf
    return hits


def area_over_recall(
    hits: np.ndarray, scores: np.ndarray, num_truths: int
) -> float:
    """Returns the normalised area above 10 % recall and 10 % precision.

    Args:
        hits: ``[n]`` bool over all samples.
        scores: ``[n]``.
        num_truths: Number of true objects, at least 1.
    """
    if not len(hits) or not np.any(hits):
        return 0.0
    order = np.argsort(-np.asarray(scores), kind='stable')
    found = np.asarray(hits, dtype=np.float64)[order].cumsum()
    precision = found / np.arange(1, len(found) + 1)
    precision = np.interp(_RECALLS, found / num_truths, precision, right=0)
    above = precision[round(100 * _MIN_RECALL) + 1 :] - _MIN_PRECISION
    return float(above.clip(min=0).mean() / (1 - _MIN_PRECISION))


def center_distance_ap(
    samples: Sequence[dict], label: int, threshold: float
) -> float | None:
    """Returns the AP of one class at one threshold over all samples.

    Args:
        samples: Per sample ``centers [n, 2]``, ``scores [n]``, ``labels
            [n]``, ``gt_centers [m, 2]``, ``gt_labels [m]``.
        label: The class.
        threshold: In metres.

    Returns:
        The AP, or None where no sample has a true object of the class.
    """
    truths = sum(int((s['gt_labels'] == label).sum()) for s in samples)
    if truths == 0:
        return None
    hits, scores = [], []
    for sample in samples:
        mine = sample['labels'] == label
        scores.append(sample['scores'][mine])
        hits.append(
            center_hits(
                sample['centers'][mine],
                scores[-1],
                sample['gt_centers'][sample['gt_labels'] == label],
                threshold,
            )
        )
    return area_over_recall(
        np.concatenate(hits), np.concatenate(scores), truths
    )
