"""Sequences of keyframes with everything that VAD learns."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet3d.registry import DATASETS

from projects.VAD.data.frame_queue import earlier_frames, relative_frames
from projects.VAD.data.keyframe_dataset import (
    MAP_CLASSES,
    NuScenesKeyframeDataset,
)
from projects.VAD.data.map_ground_truth import MapExpansion, read_map_ann_file
from projects.VAD.data.map_lines import REGION, line_targets
from projects.VAD.data.packed_records import Records
from projects.VAD.data.packing import PackVADInputs
from projects.VAD.data.picture_check import (
    PictureError,
    check_picture,
    decode_picture,
)
from projects.VAD.data.record_reading import RecordReader
from projects.VAD.data.temporal_info import choose_folder, unpack_info

# Numbers of a point of nuScenes' scans.
NUM_PTS_FEATS = 5


@DATASETS.register_module()
class NuScenesVADDataset(NuScenesKeyframeDataset):
    """Sequences of nuScenes keyframes with boxes, map, futures and ego.

    Reads VAD's own ``vad_nuscenes_infos_temporal_*.pkl`` as they are, and
    files of the mmdet3d 1.x layout. Boxes come out in the convention of
    mmdet3d 1.x, whatever the file has.

    In training a sample is a keyframe with ``queue_length - 1`` earlier ones
    (``results['history']``, oldest first): of the ``queue_length`` before it
    one is dropped at random, and one of another scene is replaced by a copy
    of the frame after it. Their ``can_bus`` is relative to the frame before.
    A keyframe without box or without map line is not used. In test mode
    keyframes come one by one and in order, with an absolute ``can_bus``.

    ``results`` hold beyond those of ``NuScenesKeyframeDataset``: ``gt_map``
    (``labels``, ``bboxes``, ``pts``, ``shift_pts``; in test mode also
    ``lines``) and ``gt_ego``. Map lines are those of the info file, else
    those of ``map_ann_file``, else cut out of the maps in ``data_root``.

    Args:
        ann_file: The info file, absolute or below ``data_root``.
        data_root: Folder of nuScenes.
        queue_length: Frames of a training sample, the keyframe included.
        pc_range: Region ``(x, y, z, x, y, z)`` in metres.
        map_classes: Map classes in label order.
        map_fixed_ptsnum_per_line: Points of a map line.
        map_ann_file: Map lines for evaluation as VAD caches them
            (``nuscenes_map_anns_val.json``).
        filter_empty_gt: Whether training leaves keyframes without box or
            map line out, and those with an earlier frame without both.
        corrupt: ``fatal``: a keyframe that cannot be read is an error.
            ``skip``: warns once per file. A bad record is left out when the
            file is read; for a bad picture training takes another keyframe.
            In test mode a bad picture is always an error: metrics over
            fewer frames would be other metrics.
        **kwargs: Further arguments of ``NuScenesKeyframeDataset``.

    Raises:
        FileNotFoundError: The info file, the pictures or a map are absent.
        ValueError: An option or a keyframe is not usable.
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str = '',
        queue_length: int = 3,
        pc_range: Sequence[float] = (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0),
        map_classes: Sequence[str] = MAP_CLASSES,
        map_fixed_ptsnum_per_line: int = 20,
        map_ann_file: str | None = None,
        filter_empty_gt: bool = True,
        corrupt: str = 'fatal',
        **kwargs: Any,
    ) -> None:
        _check_options(queue_length, pc_range, map_classes, corrupt)
        self.queue_length = queue_length
        self.region = (pc_range[3] - pc_range[0], pc_range[4] - pc_range[1])
        self.map_classes = tuple(map_classes)
        self.map_points = map_fixed_ptsnum_per_line
        self.map_ann_file = map_ann_file
        self.filter_empty_gt = filter_empty_gt
        self.corrupt = corrupt
        self._maps = MapExpansion(data_root)
        self._cached_lines: dict[str, dict] = {}
        self._warned: set[str] = set()
        super().__init__(ann_file=ann_file, data_root=data_root, **kwargs)
        steps = self.pipeline.transforms
        packs = isinstance(steps[-1], PackVADInputs) if steps else True
        if not self.test_mode and not packs:
            raise ValueError(
                'a training pipeline of VAD ends with PackVADInputs, which '
                'packs the earlier frames with the keyframe; found '
                f'{type(steps[-1]).__name__} at its end.'
            )

    def full_init(self) -> None:
        """Reads the info file; keyframes come scene by scene, in time."""
        if self._fully_initialized:
            return
        super().full_init()
        found = self._found
        if found['problem'] and self.corrupt == 'fatal':
            raise ValueError(f'{found["problem"]}; make the file again.')
        if found['problem']:
            self._warn(found['problem'], key=self.ann_file)
        if found['temporal']:
            self._find_file = choose_folder(
                found['pictures'], self.data_root, self.ann_file
            )
        self._check_map_lines()

    def _read_records(self) -> Records:
        reader = RecordReader(
            self.ann_file,
            not self.test_mode,
            self.read_keyframe,
            skip=self.corrupt == 'skip',
        )
        if self.head is not None:
            return reader.read_first(self.head)
        return reader.read()

    def _records(self) -> Records:
        records = super()._records()
        self._found = records.found
        return records

    def _keyframe(self, record: dict) -> dict:
        if not self._found['temporal']:
            return record
        keyframe = unpack_info(record, self._find_file)
        return dict(keyframe, sample_idx=record['sample_idx'])

    def get_data_info(self, idx: int) -> dict:
        """Returns what the pipeline gets for one keyframe."""
        return self._add_map(self._without_map(idx))

    def prepare_data(self, idx: int) -> dict | None:
        """Returns a sample; None where training is to take another one."""
        if self.test_mode:
            return self._run(self.get_data_info(idx), self.pipeline.transforms)
        try:
            return self._sequence(idx)
        except PictureError as error:
            if self.corrupt == 'fatal':
                raise
            self._warn(str(error))
            return None

    # ---- map lines

    def _check_map_lines(self) -> None:
        """Finds out where map lines come from, and that there are some."""
        self._lines_fit = self._region_of_lines() == tuple(self.region)
        lacking = [
            token
            for token, has_lines in self._found['tokens']
            if not (has_lines and self._lines_fit)
        ]
        if not lacking:
            return
        if self.map_ann_file is not None:
            path = self._below_root(self.map_ann_file)
            self._cached_lines = read_map_ann_file(path)
            for token in lacking:
                if token not in self._cached_lines:
                    raise ValueError(
                        f'{self.map_ann_file} has no map lines for keyframe '
                        f'{token} of {self.ann_file}; it was '
                        'made from another file, leave map_ann_file out.'
                    )
        elif self._maps.exists():
            # Before worker processes are forked, which would each read them.
            self._maps.read(self._found['locations'])
        elif not self.test_mode:
            raise ValueError(
                f'{len(lacking)} keyframes of {self.ann_file} have no map '
                f'lines for a region of {self.region[0]:g} x '
                f'{self.region[1]:g} m, and {self.data_root or "."} has no '
                'maps/expansion; unpack the map expansion there, or make '
                'the file again with tools/create_data.py.'
            )

    def _region_of_lines(self) -> tuple[float, ...]:
        """The region of the map lines in the file."""
        metadata = self._found['metadata']
        if metadata is None and self._found['temporal']:
            # At the end of the file, which was not read. Whoever writes map
            # lines into such a file writes those of this region.
            return REGION
        return tuple((metadata or {}).get('map_region', self.region))

    def _below_root(self, path: str) -> Path:
        beside = Path(self.data_root or '', path)
        return beside if beside.is_file() else Path(path)

    # ---- one keyframe

    def _without_map(self, idx: int) -> dict:
        results = super().get_data_info(idx)
        if os.path.isfile(results.get('lidar_path') or ''):
            results.setdefault('num_pts_feats', NUM_PTS_FEATS)
        else:
            results.pop('lidar_path', None)
        return results

    def _add_map(self, results: dict) -> dict:
        if 'gt_map' in results:
            results.pop('gt_map_lines', None)
            return results
        pairs = self._map_lines(results)
        if pairs is None:
            return results
        shapes = [line for line, _ in pairs]
        targets = line_targets(
            shapes,
            [label for _, label in pairs],
            self.region,
            self.map_points,
            max_orders=self.map_points - 1,
        )
        if self.test_mode:
            targets['lines'] = shapes
        results['gt_map'] = targets
        return results

    def _map_lines(self, results: dict) -> list[tuple] | None:
        """Lines with their labels; None where no map is known."""
        lines = results.pop('gt_map_lines', None)
        if lines is None or not self._lines_fit:
            lines = self._cached_lines.get(results['token'])
        if lines is None:
            lines = self._lines_from_map(results)
        if lines is None:
            return None
        return [
            (np.asarray(line), label)
            for label, name in enumerate(self.map_classes)
            for line in lines.get(name, ())
        ]

    def _lines_from_map(self, results: dict) -> dict | None:
        known = {'map_location', 'ego2global', 'lidar2ego'} <= results.keys()
        if not known or not self._maps.exists():
            return None
        pose = results['ego2global'] @ results['lidar2ego']
        return self._maps[results['map_location']].lines(pose, self.region)

    # ---- training

    def _sequence(self, idx: int) -> dict | None:
        """The keyframe with the earlier ones; None without ground truth.

        The frames are run through the pipeline newest first, the last step
        (packing) apart.
        """
        steps = self.pipeline.transforms
        results = self._run(self.get_data_info(idx), steps[:-1])
        if results is None or self._lacks_ground_truth(results):
            return None
        frames, last = [results], idx
        for earlier in earlier_frames(idx, self.queue_length):
            frame = frames[-1]
            if earlier < last and self._same_scene(earlier, idx):
                frame = self._run(self._without_map(earlier), steps[:-1])
                if frame is None or self._is_bare(frame):
                    return None
                last = earlier
            frames.append(frame)
        frames = relative_frames(frames[::-1])
        sample = dict(frames[-1], history=frames[:-1])
        return steps[-1](sample) if steps else sample

    def _run(self, results: dict, steps: Sequence[Callable]) -> dict | None:
        pictures = results['img_path']
        for path in pictures:
            check_picture(path)
        try:
            for step in steps:
                results = step(results)
                if results is None:
                    return None
        except Exception:
            # Loaders fail with whatever an undecoded picture leads to.
            for path in pictures:
                decode_picture(path)
            raise
        return results

    def _lacks_ground_truth(self, results: dict) -> bool:
        if not self.filter_empty_gt:
            return False
        lines = results.get('gt_map', dict(labels=()))['labels']
        return not _has_box(results) or len(lines) == 0

    def _is_bare(self, frame: dict) -> bool:
        """Whether an earlier frame has neither box nor map line."""
        if not self.filter_empty_gt or _has_box(frame):
            return False
        if 'gt_map' in frame:
            return len(frame['gt_map']['labels']) == 0
        return not self._map_lines(frame)

    def _same_scene(self, first: int, second: int) -> bool:
        scenes = {self.record(i)['scene_token'] for i in (first, second)}
        return len(scenes) == 1

    def _warn(self, message: str, key: str | None = None) -> None:
        key = key or message
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f'{message}; it is left out.', stacklevel=2)


def _has_box(results: dict) -> bool:
    return bool((np.asarray(results['gt_labels_3d']) >= 0).any())


def _check_options(
    queue_length: int,
    pc_range: Sequence[float],
    map_classes: Sequence[str],
    corrupt: str,
) -> None:
    if queue_length < 1:
        raise ValueError(
            f'queue_length must be at least 1 frame, found {queue_length}.'
        )
    if (pc_range[0], pc_range[1]) != (-pc_range[3], -pc_range[4]):
        raise ValueError(
            f'pc_range must be symmetric in x and y, found {list(pc_range)}; '
            'map lines are cut around the LiDAR.'
        )
    unknown = [name for name in map_classes if name not in MAP_CLASSES]
    if unknown:
        raise ValueError(
            f'map_classes names {", ".join(unknown)}; VAD knows '
            f'{", ".join(MAP_CLASSES)}.'
        )
    if corrupt not in ('fatal', 'skip'):
        raise ValueError(
            f"corrupt must be 'fatal' or 'skip', found {corrupt!r}."
        )
