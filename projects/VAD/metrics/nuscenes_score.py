"""The nuScenes detection score, counted by nuscenes-devkit.

The devkit loads its tables, matches and averages; here is only what it lacks:
VAD's regions, any set of frames, and ground truth without the tables.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

HALF_REGION = (30.0, 15.0)
ERRORS = dict(
    trans_err='mATE',
    scale_err='mASE',
    orient_err='mAOE',
    vel_err='mAVE',
    attr_err='mAAE',
)


class _BoxEval(DetectionEval):
    """The devkit's evaluation of boxes that are loaded and filtered."""

    def __init__(self, truths: EvalBoxes, found: EvalBoxes) -> None:
        self.cfg = config_factory('detection_cvpr_2019')
        self.gt_boxes, self.pred_boxes = truths, found
        self.verbose = False


def detection_score(
    frames: Sequence[dict],
    region: str = 'ego',
    tables: tuple[str, str] | None = None,
) -> dict[str, float]:
    """Returns NDS, mAP, the five mean errors and the AP per class.

    Args:
        frames: Per sample ``token``, ``found`` (boxes of ``with_scores``),
            ``ego2global [4, 4]`` and, unless ``tables`` are given, ``truth``
            (boxes of ``submission_boxes``, possibly with
            ``attribute_name``).
        region: ``ego``: boxes with ``|x| < 30 m``, ``|y| < 15 m`` in the ego
            frame (x forward), whatever the class; ``vad_official``: as VAD's
            own evaluation has it, these bounds on the offset from the ego
            along the axes of the map, whatever the heading, and predictions
            alone cut in the ego frame as well; ``nuscenes``: the official
            distance of each class, 30 to 50 m.
        tables: ``(data_root, version)`` of the official ground truth.

    Returns:
        ``NDS``, ``mAP``, ``mATE`` (m), ``mASE`` (1 - IoU), ``mAOE`` (rad),
        ``mAVE`` (m/s), ``mAAE`` (1 - accuracy) and ``AP_<class>``, official
        in that a class without true objects counts as not found. Where no
        true object of the samples has an attribute, ``mAAE`` and ``NDS`` are
        replaced by ``NDS_without_attributes``, which averages the others
        with the same weights. Empty without any true object.
    """
    poses = {
        f['token']: np.asarray(f['ego2global'], np.float64) for f in frames
    }
    found = _eval_boxes({f['token']: f['found'] for f in frames}, poses)
    if tables is None:
        truths = _eval_boxes({f['token']: f['truth'] for f in frames}, poses)
        by_distance = region == 'nuscenes'
        truths, found = (
            _near(boxes) if by_distance else boxes for boxes in (truths, found)
        )
    else:
        truths, found = _official(found, region, *tables)
    if region == 'ego':
        truths, found = (_in_rectangle(b, poses) for b in (truths, found))
    elif region == 'vad_official':
        truths, found = (
            _in_rectangle(b) for b in (truths, _in_rectangle(found, poses))
        )
    if not truths.all:
        return {}
    return _report(truths, found, official=tables is not None)


def _report(
    truths: EvalBoxes, found: EvalBoxes, official: bool
) -> dict[str, float]:
    metrics, _ = _BoxEval(truths, found).evaluate()
    report = dict(NDS=float(metrics.nd_score), mAP=float(metrics.mean_ap))
    for error, name in ERRORS.items():
        report[name] = float(metrics.tp_errors[error])
    for name, value in metrics.mean_dist_aps.items():
        report[f'AP_{name}'] = float(value)
    if not official and not any(box.attribute_name for box in truths.all):
        del report['NDS'], report['mAAE']
        weight = metrics.cfg.mean_ap_weight
        scores = metrics.tp_scores
        gained = sum(scores[e] for e in scores if e != 'attr_err')
        report['NDS_without_attributes'] = float(
            (weight * metrics.mean_ap + gained) / (weight + len(scores) - 1)
        )
    return report


def _eval_boxes(
    frames: Mapping[str, list[dict]], poses: Mapping[str, np.ndarray]
) -> EvalBoxes:
    """The devkit's boxes, with their offset to the ego vehicle."""
    boxes = EvalBoxes()
    for token, content in frames.items():
        origin = poses[token][:3, 3]
        boxes.add_boxes(
            token,
            [
                DetectionBox.deserialize(
                    dict(attribute_name='')
                    | box
                    | dict(ego_translation=box['translation'] - origin)
                )
                for box in content
            ],
        )
    return boxes


def _official(
    found: EvalBoxes, region: str, data_root: str, version: str
) -> tuple[EvalBoxes, EvalBoxes]:
    """Truths of the tables and predictions, filtered as the devkit does."""
    tables = NuScenes(version=version, dataroot=data_root, verbose=False)
    known = {sample['token'] for sample in tables.sample}
    strange = [t for t in found.sample_tokens if t not in known]
    if strange:
        raise ValueError(
            f'{len(strange)} of {len(found.sample_tokens)} evaluated frames '
            f'(first: {strange[0]}) are not in {version} of {data_root}; '
            'name the dataset that the info file was made from'
        )
    truths = load_gt_of_sample_tokens(
        tables, found.sample_tokens, DetectionBox
    )
    config = config_factory('detection_cvpr_2019')
    ranges = config.class_range
    if region != 'nuscenes':
        ranges = dict.fromkeys(ranges, np.inf)
    filtered = []
    for boxes in (truths, found):
        boxes = add_center_dist(tables, boxes)
        if boxes.all:  # the devkit cannot filter nothing
            boxes = filter_eval_boxes(tables, boxes, ranges)
        filtered.append(boxes)
    return tuple(filtered)


def _kept(boxes: EvalBoxes, keep) -> EvalBoxes:
    kept = EvalBoxes()
    for token in boxes.sample_tokens:
        kept.add_boxes(token, [box for box in boxes[token] if keep(box)])
    return kept


def _near(boxes: EvalBoxes) -> EvalBoxes:
    ranges = config_factory('detection_cvpr_2019').class_range
    return _kept(boxes, lambda box: box.ego_dist < ranges[box.detection_name])


def _in_rectangle(
    boxes: EvalBoxes, poses: Mapping[str, np.ndarray] | None = None
) -> EvalBoxes:
    """Boxes of 60 m x 30 m around the ego; without poses global axes."""

    def inside(box: DetectionBox) -> bool:
        offset = np.asarray(box.ego_translation)
        if poses is not None:
            offset = offset @ poses[box.sample_token][:3, :3]
        return bool((np.abs(offset[:2]) < HALF_REGION).all())

    return _kept(boxes, inside)
