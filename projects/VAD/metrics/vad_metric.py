"""One evaluator for everything that VAD predicts."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement

from ..box_convention import to_old
from . import detection_ap, map_ap, motion, planning

PARTS = ('planning', 'motion', 'map', 'detection')
CLASSES = (
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
)
MAP_CLASSES = ('divider', 'ped_crossing', 'boundary')


@METRICS.register_module()
class VADMetric(BaseMetric):
    """Evaluates what the data samples hold ground truth for.

    - planning: needs ``gt_ego``; collisions also the futures of the agents
      (``gt_instances_3d.attr_labels``). Samples whose ego future ends early
      do not count.
    - motion: needs ``attr_labels``.
    - map: needs ``gt_map``; its ``lines`` (list of polylines) where given,
      else its ``pts``.
    - detection: needs ``gt_instances_3d``; ``bev_center_ap`` is the mean over
      classes and over 0.5, 1, 2 and 4 m. It is not the official mAP.

    What has no ground truth is left out, and so is a class without one; one
    log line says so. Frames must come in order and one by one, because the
    model remembers the frame before.

    Args:
        parts: The parts to evaluate, of ``planning``, ``motion``, ``map``
            and ``detection``.
        classes: Names of the detection classes in label order.
        map_classes: Names of the map classes in label order.
        collect_device: See ``BaseMetric``.
        prefix: Put before each name.

    Raises:
        ValueError: If a part is not known.
    """

    default_prefix = 'VAD'

    def __init__(
        self,
        parts: Sequence[str] = PARTS,
        classes: Sequence[str] = CLASSES,
        map_classes: Sequence[str] = MAP_CLASSES,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(
                f'VADMetric was asked for the parts {unknown}, but it knows '
                f'{list(PARTS)}; drop or correct them'
            )
        self.parts = tuple(parts)
        self.classes = tuple(classes)
        self.map_classes = tuple(map_classes)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Reduces each sample to the numbers that the metrics need."""
        del data_batch
        reducers = dict(
            planning=_planning,
            motion=_motion,
            map=lambda sample: _map(sample, len(self.map_classes)),
            detection=_detection,
        )
        for sample in data_samples:
            arrays = _arrays(sample)
            self.results.append(
                {part: reducers[part](arrays) for part in self.parts}
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Returns all metrics that the collected samples allow."""
        reports = dict(
            planning=_mean_of_each,
            motion=_motion_report,
            map=self._map_report,
            detection=self._detection_report,
        )
        metrics, missing = {}, []
        for part in self.parts:
            found = [r[part] for r in results if r[part] is not None]
            report = reports[part](found) if found else {}
            if not report:
                missing.append(part)
            metrics |= report
        if missing:
            MMLogger.get_current_instance().info(
                f'VADMetric: no ground truth for {", ".join(missing)} in '
                f'{len(results)} samples; these metrics are left out.'
            )
        return metrics

    def _map_report(self, found: list[dict]) -> dict[str, float]:
        names = [f'map_AP_{name}' for name in self.map_classes]
        return _mean_ap(
            map_ap.map_average_precision,
            found,
            names,
            map_ap.THRESHOLDS,
            'map_mAP',
        )

    def _detection_report(self, found: list[dict]) -> dict[str, float]:
        names = [f'bev_center_ap_{name}' for name in self.classes]
        return _mean_ap(
            detection_ap.center_distance_ap,
            found,
            names,
            detection_ap.THRESHOLDS,
            'bev_center_ap',
        )


def _arrays(sample: dict | BaseDataElement) -> dict:
    """The sample as nested dicts of numpy arrays; boxes stay boxes."""
    if isinstance(sample, BaseDataElement):
        sample = sample.to_dict()
    out = {}
    for key, value in sample.items():
        if isinstance(value, dict | BaseDataElement):
            value = _arrays(value)
        elif isinstance(value, torch.Tensor):
            value = value.detach().cpu().float().numpy()
        out[key] = value
    return out


def _old_boxes(instances: dict) -> np.ndarray:
    """``[n, 9]`` in the old convention, z at the gravity centre."""
    boxes = instances['bboxes_3d']
    old = to_old(boxes.tensor.detach().cpu())
    old[:, :3] = boxes.gravity_center.detach().cpu()
    return old.numpy()


def _planning(sample: dict) -> dict[str, float] | None:
    """Errors of the commanded plan; None where there is no whole future."""
    ego = sample.get('gt_ego', {})
    needed = {'fut_trajs', 'fut_masks', 'fut_cmd'}
    if not needed <= ego.keys() or 'pred_ego' not in sample:
        return None
    whole = ego.get('fut_valid_flag', ego['fut_masks'].min() > 0)
    if not np.all(whole):
        return None
    command = int(ego['fut_cmd'].argmax())
    grid = None
    instances = sample.get('gt_instances_3d', {})
    if 'attr_labels' in instances:
        grid = planning.occupancy(
            _old_boxes(instances), instances['attr_labels']
        )
    return planning.planning_errors(
        sample['pred_ego']['plans'][command],
        ego['fut_trajs'].cumsum(axis=0),
        grid,
    )


def _motion(sample: dict) -> Counter | None:
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


def _map(sample: dict, num_classes: int) -> dict | None:
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


def _detection(sample: dict) -> dict | None:
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


def _mean_of_each(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean per name over the samples that have it."""
    names = dict.fromkeys(name for errors in found for name in errors)
    return {
        name: float(np.mean([e[name] for e in found if name in e]))
        for name in names
    }


def _motion_report(found: list[Counter]) -> dict[str, float]:
    total = Counter()
    for counts in found:
        total.update(counts)
    return motion.motion_summary(total)


def _mean_ap(
    ap, found: list[dict], names: list[str], thresholds, mean_name: str
) -> dict[str, float]:
    """Mean over thresholds per class, and over the classes that exist."""
    report = {}
    for label, name in enumerate(names):
        values = [ap(found, label, threshold) for threshold in thresholds]
        if values[0] is not None:
            report[name] = float(np.mean(values))
    if report:
        report[mean_name] = float(np.mean(list(report.values())))
    return report
