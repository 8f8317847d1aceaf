"""Average precision of map polylines by their Chamfer distance.

Follows HDMapNet (Li et al., ICRA 2022) as MapTR and VAD use it.
"""

from collections.abc import Sequence

import numpy as np
import shapely
from scipy.spatial.distance import cdist

from projects.VAD.data.map_lines import sample_line

NUM_POINTS = 100
REACH = 2.0
THRESHOLDS = (0.5, 1.0, 1.5)


def chamfer_distances(
    lines: Sequence[np.ndarray], gt_lines: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns half the sum of the two mean nearest-point distances.

    Lines are sampled to 100 points. Pairs that are farther apart than about
    4 m everywhere (their bands of 2 m do not meet) are infinitely far.

    Args:
        lines: n predicted polylines ``[k, 2]``.
        gt_lines: m true polylines ``[k, 2]``.

    Returns:
        ``[n, m]`` in metres.
    """
    lines = [sample_line(line, NUM_POINTS) for line in lines]
    gt_lines = [sample_line(line, NUM_POINTS) for line in gt_lines]
    distances = np.full((len(lines), len(gt_lines)), np.inf)
    if not lines or not gt_lines:
        return distances
    tree = shapely.STRtree([_band(line) for line in gt_lines])
    pairs = tree.query([_band(line) for line in lines], 'intersects')
    for i, j in pairs.T:
        gap = cdist(lines[i], gt_lines[j])
        distances[i, j] = (gap.min(1).mean() + gap.min(0).mean()) / 2
    return distances


def count_hits(
    distances: np.ndarray, scores: np.ndarray, threshold: float
) -> np.ndarray:
    """Returns which predictions of one sample are true positives.

    A prediction looks at its nearest true line only; the first in descending
    score takes it.

    Args:
        distances: ``[n, m]`` of ``chamfer_distances``.
        scores: ``[n]``.
        threshold: Largest distance of a true positive, in metres.

    Returns:
        ``[n]`` bool, in the order of ``scores``.
    """
    hits = np.zeros(len(scores), dtype=bool)
    taken = np.zeros(distances.shape[1], dtype=bool)
    if not distances.size:
        return hits
    nearest = distances.argmin(axis=1)
    for i in np.argsort(-np.asarray(scores), kind='stable'):
        j = nearest[i]
        hits[i] = distances[i, j] <= threshold and not taken[j]
        taken[j] |= hits[i]
    return hits


def average_precision(
    hits: np.ndarray, scores: np.ndarray, num_truths: int
) -> float:
    """Returns the area under the precision envelope.

    Args:
        hits: ``[n]`` bool over all samples.
        scores: ``[n]``.
        num_truths: Number of true objects over all samples.

    Raises:
        ValueError: If there is no true object; then it is not defined.
    """
    if num_truths <= 0:
        raise ValueError(
            f'average precision over {num_truths} true objects is not '
            'defined; leave this class out'
        )
    order = np.argsort(-np.asarray(scores), kind='stable')
    found = np.asarray(hits, dtype=np.float64)[order].cumsum()
    recall = np.concatenate(([0.0], found / num_truths))
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())


def map_average_precision(
    samples: Sequence[dict], label: int, threshold: float
) -> float | None:
    """Returns the AP of one class at one threshold over all samples.

    Args:
        samples: Per sample and class: ``{label: dict(distances=[n, m],
            scores=[n])}``.
        label: The class.
        threshold: In metres.

    Returns:
        The AP, or None where no sample has a true line of the class.
    """
    parts = [sample[label] for sample in samples]
    truths = sum(part['distances'].shape[1] for part in parts)
    if truths == 0:
        return None
    hits = [
        count_hits(part['distances'], part['scores'], threshold)
        for part in parts
    ]
    scores = [part['scores'] for part in parts]
    return average_precision(
        np.concatenate(hits), np.concatenate(scores), truths
    )


def _band(line: np.ndarray) -> shapely.Geometry:
    return shapely.LineString(line).buffer(
        REACH, cap_style='flat', join_style='mitre'
    )
