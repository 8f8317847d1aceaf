"""One evaluator for everything that VAD predicts."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mmdet3d.registry import METRICS
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from projects.VAD.data.keyframe_dataset import CLASSES, MAP_CLASSES

from . import detection_ap, frame, map_ap, motion
from .constant_velocity import BASELINES
from .frame_pool import FramePool
from .submission import write_submission

PARTS = ('planning', 'motion', 'map', 'detection', 'nds')
# The names of VAD's own `--eval`; it plans and forecasts under `bbox`.
EVAL_NAMES = dict(
    bbox=('planning', 'motion', 'detection', 'nds'),
    map=('map',),
    chamfer=('map',),
    all=PARTS,
)
REGIONS = ('ego', 'vad_official', 'nuscenes')
# As configs wrote it before there were two regions of VAD's.
EARLIER_REGIONS = dict(vad='ego')


def parts_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the parts of ``VADMetric`` that are meant by ``--eval``.

    Args:
        names: Parts, or the names ``bbox`` (all but the map), ``map``,
            ``chamfer`` (the map) and ``all``.

    Raises:
        ValueError: If a name is not known.
    """
    names = [names] if isinstance(names, str) else list(names)
    unknown = [n for n in names if n not in PARTS and n not in EVAL_NAMES]
    if unknown:
        raise ValueError(
            f'VADMetric was asked for the parts {unknown}, but it knows '
            f'{[*PARTS]} and {[n for n in EVAL_NAMES if n not in PARTS]}; '
            'drop or correct them'
        )
    chosen = {p for n in names for p in EVAL_NAMES.get(n, (n,))}
    return tuple(part for part in PARTS if part in chosen)


@METRICS.register_module()
class VADMetric(BaseMetric):
    """Evaluates what the data samples hold ground truth for.

    - planning: needs ``gt_ego``; collisions also the futures of the agents
      (``gt_instances_3d.attr_labels``). Samples whose ego future ends early
      do not count. The baselines need ``gt_ego.his_trajs``.
    - motion: needs ``attr_labels``.
    - map: needs ``gt_map``; its ``lines`` (list of polylines) where given,
      else its ``pts``.
    - detection: needs ``gt_instances_3d``; ``bev_center_ap`` is the mean over
      classes and over 0.5, 1, 2 and 4 m. It is not the official mAP.
    - nds: the detection score of nuscenes-devkit; needs ``token``,
      ``lidar2ego`` and ``ego2global`` in the metainfo, and as ground truth
      the official tables (``data_root``, ``version``) or else
      ``gt_instances_3d``, whose ``attribute_names`` are used where given.

    What has no ground truth is left out, and so is a class without one
    (except in ``nds``); one line is logged. Frames of a scene must come in
    order and one by one, because the model remembers the frame before;
    ``SceneSampler`` sees to that on several processes. A frame that comes
    twice counts once.

    Args:
        parts: The parts to evaluate, or names of ``parts_of``.
        classes: Names of the detection classes in label order.
        map_classes: Names of the map classes in label order.
        baselines: Planners to compare with: ``constant_velocity``,
            ``constant_turn``.
        region: Where ``nds`` counts: ``ego`` (30 m ahead and behind, 15 m
            to the sides), ``vad_official`` (the rectangle of published
            logs, see ``detection_score``) or ``nuscenes`` (30 to 50 m around
            by class).
        min_score: Predictions below do not count in ``nds``.
        data_root: nuScenes folder with the official tables.
        version: Of these tables, such as ``v1.0-mini``.
        jsonfile_prefix: Folder for ``results_nusc.json``.
        num_workers: Processes that compute while the model goes on; on
            several ranks each has as many.
        collect_device: See ``BaseMetric``.
        collect_dir: See ``BaseMetric``.
        prefix: Put before each name.

    Raises:
        ValueError: If a part, a baseline or the region is not known,
            ``num_workers`` is negative, or only one of ``data_root`` and
            ``version`` is given.
        FileNotFoundError: If there are no tables where they should be.
    """

    default_prefix = 'VAD'

    def __init__(
        self,
        parts: str | Sequence[str] = PARTS,
        classes: Sequence[str] = CLASSES,
        map_classes: Sequence[str] = MAP_CLASSES,
        *,
        baselines: Sequence[str] = ('constant_velocity',),
        region: str = 'ego',
        min_score: float = detection_ap.MIN_SCORE,
        data_root: str | None = None,
        version: str | None = None,
        jsonfile_prefix: str | None = None,
        num_workers: int = 0,
        collect_device: str = 'cpu',
        collect_dir: str | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix, collect_dir)
        self.parts = parts_of(parts)
        self.classes = tuple(classes)
        self.map_classes = tuple(map_classes)
        self.baselines = _known('baseline', tuple(baselines), BASELINES)
        region = EARLIER_REGIONS.get(region, region)
        (self.region,) = _known('region', (region,), REGIONS)
        self.min_score = min_score
        self.tables = _tables(data_root, version)
        self.jsonfile_prefix = jsonfile_prefix
        if num_workers < 0:
            raise ValueError(
                f'VADMetric was asked for num_workers={num_workers}; give 0 '
                'for none, or how many processes'
            )
        self._pool = FramePool(num_workers)
        self._num_frames: int | None = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Reduces each sample to the numbers that the metrics need."""
        del data_batch
        reducers = dict(
            planning=partial(frame.of_planning, baselines=self.baselines),
            motion=frame.of_motion,
            map=partial(frame.of_map, num_classes=len(self.map_classes)),
            detection=frame.of_detection,
            nds=partial(
                frame.of_nds, classes=self.classes, min_score=self.min_score
            ),
        )
        reduce = partial(
            _numbers, reducers={part: reducers[part] for part in self.parts}
        )
        for sample in data_samples:
            arrays = frame.sample_arrays(sample)
            self.results += self._pool.submit(reduce, arrays)

    def evaluate(self, size: int) -> dict[str, float]:
        """Returns the metrics of all processes.

        Args:
            size: Number of frames of the dataset.
        """
        self._num_frames = size
        self.results += self._pool.rest()
        # With what a sampler repeated: duplicates are found by their token.
        return super().evaluate(get_world_size() * len(self.results))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Returns all metrics that the collected samples allow."""
        results = distinct_frames(results, self._num_frames)
        reports = dict(
            planning=_mean_of_each,
            motion=_motion_report,
            map=self._map_report,
            detection=self._detection_report,
            nds=self._nds_report,
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
                f'VADMetric: nothing to compare for {", ".join(missing)} in '
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

    def _nds_report(self, found: list[dict]) -> dict[str, float]:
        if self.jsonfile_prefix is not None:
            path = write_submission(
                {one['token']: one['found'] for one in found},
                self.jsonfile_prefix,
            )
            MMLogger.get_current_instance().info(
                f'VADMetric: detections of {len(found)} samples are in {path}.'
            )
        if self.tables is None:
            found = [one for one in found if 'truth' in one]
        if not found:
            return {}
        # Not at the top: the devkit takes a second that only this part needs.
        from .nuscenes_score import detection_score

        return detection_score(found, self.region, self.tables)


def distinct_frames(
    results: Sequence[dict], num_frames: int | None = None
) -> list[dict]:
    """Returns each frame once, in the order of time.

    Of frames that come twice the first counts: the repeats follow a frame
    that was not the one before. The order does not depend on the processes,
    so that equal scores rank equally.

    Args:
        results: With ``token`` and ``timestamp``, in the order that
            mmengine's ``collect_results`` gives. Where one has no token,
            nothing is sorted.
        num_frames: How many there should be; logged if not.
    """
    if any(one.get('token') is None for one in results):
        return list(results[:num_frames])
    first = {}
    for one in results:
        first.setdefault(one['token'], one)
    if num_frames is not None and len(first) != num_frames:
        MMLogger.get_current_instance().warning(
            f'VADMetric: {len(first)} different frames were evaluated, the '
            f'dataset has {num_frames}.'
        )
    return sorted(
        first.values(), key=lambda one: (one['timestamp'], one['token'])
    )


def _numbers(arrays: dict, reducers: dict[str, Callable]) -> dict:
    """What is kept of a frame until the end."""
    numbers = {part: reduce(arrays) for part, reduce in reducers.items()}
    numbers['token'] = arrays.get('token')
    numbers['timestamp'] = arrays.get('timestamp') or 0
    return numbers


def _known(what: str, names: tuple, known: Sequence[str]) -> tuple:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f'VADMetric was asked for the {what} {unknown[0]!r}, but it knows '
            f'{list(known)}; correct it'
        )
    return names


def _tables(
    data_root: str | None, version: str | None
) -> tuple[str, str] | None:
    """Where the official ground truth is, refused early if it is not."""
    if data_root is None and version is None:
        return None
    if data_root is None or version is None:
        raise ValueError(
            f'VADMetric got data_root={data_root!r} and version={version!r}; '
            'give both for the official tables, or none'
        )
    folder = Path(data_root) / version
    if not (folder / 'sample_annotation.json').is_file():
        raise FileNotFoundError(
            f'VADMetric was asked for the tables in {folder}, but there is '
            'no sample_annotation.json; correct data_root and version, or '
            'drop both to take the ground truth of the data samples'
        )
    return str(data_root), version


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
    ap: Callable,
    found: list[dict],
    names: list[str],
    thresholds: Sequence[float],
    mean_name: str,
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
