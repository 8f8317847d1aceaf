"""nuScenes keyframes with six cameras, read from mmdet3d 1.x info files."""

import copy
import difflib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmdet3d.registry import DATASETS, TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes, get_box_type
from mmengine.dataset import BaseDataset, force_full_init

from projects.VAD.data.image_transforms import NormalizeMultiviewImage
from projects.VAD.data.info_file import (
    load_first_records,
    load_info_file,
    stream_keyframes,
)
from projects.VAD.data.matrices import as_4x4
from projects.VAD.data.packed_records import Packer, Records, shared_records

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
CAMERAS = (
    'CAM_FRONT',
    'CAM_FRONT_RIGHT',
    'CAM_FRONT_LEFT',
    'CAM_BACK',
    'CAM_BACK_LEFT',
    'CAM_BACK_RIGHT',
)
CAMERA_PREFIX = {name: f'samples/{name}' for name in CAMERAS}
# What a keyframe of mmdet3d 1.x may hold for VAD beyond the stock keys.
PASSED_ON = (
    'timestamp',
    'scene_name',
    'gt_map',
    'gt_ego',
    'gt_map_lines',
    'map_location',
)


@DATASETS.register_module()
class NuScenesKeyframeDataset(BaseDataset):
    """Six-camera keyframes of any info file in the mmdet3d 1.x layout.

    Cameras come in VAD's order and labels in VAD's class order, whatever
    the file's own orders are (classes are matched by name). Pictures are
    looked for next to the info file and under ``data_root``, each time with
    and without the camera's prefix.

    ``results`` handed to the pipeline: ``images`` (camera name ->
    ``img_path``, ``cam2img``, ``lidar2cam``), ``img_path``, ``lidar2img``
    ``[6, 4, 4]``, ``can_bus`` ``[18]``, ``scene_token``, ``token``,
    ``sample_idx``, ``timestamp``, ``lidar_path`` and ``num_pts_feats`` where
    the scan is there, ``gt_bboxes_3d`` (LiDARInstance3DBoxes
    with velocity, bottom centre, metres) and ``gt_labels_3d`` of the boxes
    that count in evaluation; ``all_gt_bboxes_3d`` and ``all_gt_labels_3d``
    of all boxes with a known class. An info may also hold ``gt_map`` and
    ``gt_ego`` (dicts of arrays), and its instances ``attr_labels`` ``[34]``;
    these are passed on.

    Args:
        ann_file: The info file, absolute or below ``data_root``.
        data_root: Folder of the pictures.
        data_prefix: Camera name -> folder below ``data_root``.
        pipeline: Transforms of the mmdet3d registry, or callables.
        use_valid_flag: Whether boxes count by ``bbox_3d_isvalid`` (any
            LiDAR or radar point, VAD's training) instead of by
            ``num_lidar_pts > 0`` (VAD's evaluation).
        head: How many keyframes are wanted, those that come first in the
            file; the others are not read. None for all.
        **kwargs: Further arguments of mmengine's ``BaseDataset``. Records
            are always packed, whatever ``serialize_data`` says.

    Raises:
        FileNotFoundError: The info file or a picture is not there.
        ValueError: The file has another layout, lacks a camera or a
            calibration, or names an unknown class.
    """

    METAINFO = dict(classes=CLASSES, map_classes=MAP_CLASSES, cameras=CAMERAS)

    def __init__(
        self,
        ann_file: str,
        data_root: str = '',
        data_prefix: dict = CAMERA_PREFIX,
        pipeline: Sequence[dict | Callable] = (),
        use_valid_flag: bool = False,
        head: int | None = None,
        **kwargs: Any,
    ) -> None:
        if head is not None and head < 1:
            raise ValueError(
                f'head must be at least 1 keyframe, found {head}; leave it '
                'out for all.'
            )
        self.use_valid_flag, self.head = use_valid_flag, head
        self.box_type_3d, self.box_mode_3d = get_box_type('LiDAR')
        steps = [
            TRANSFORMS.build(step) if isinstance(step, dict) else step
            for step in pipeline
        ]
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=data_prefix,
            pipeline=steps,
            **(kwargs | dict(serialize_data=True)),
        )
        for step in steps:
            if isinstance(step, NormalizeMultiviewImage):
                # A Runner writes it into its checkpoints.
                self._metainfo['img_norm_cfg'] = step.settings

    def full_init(self) -> None:
        """Reads the info file; every error of its content shows here.

        The data sets of a process share what was read.
        """
        if self._fully_initialized:
            return
        self._keep(self._records().chosen(self._indices))
        self._fully_initialized = True

    def _keep(self, records: Records) -> None:
        """Takes records as its own; mmengine counts and pickles by these."""
        self._kept = records
        self.data_bytes, self.data_address = records.data, records.ends

    @force_full_init
    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Keeps some of its keyframes, as mmengine's data sets do."""
        self._keep(self._kept.chosen(indices))

    @force_full_init
    def get_subset(
        self, indices: int | Sequence[int]
    ) -> 'NuScenesKeyframeDataset':
        """Returns a data set of some of its keyframes; they share bytes."""
        subset = copy.copy(self)
        subset.get_subset_(indices)
        return subset

    def _records(self) -> Records:
        if self.head is not None:
            return self._read_records()
        prefixes = tuple(sorted(self.data_prefix.items()))
        options = (type(self), self.data_root, prefixes, self.test_mode)
        return shared_records(self.ann_file, options, self._read_records)

    def _read_records(self) -> Records:
        packer = Packer()

        def take(infos: list[dict], metainfo: dict) -> None:
            labels = map_labels(self.ann_file, metainfo)
            for info in infos:
                packer.add(self.read_keyframe(info, labels, len(packer)))

        content = None
        if self.head is not None:
            content = load_first_records(self.ann_file, self.head)
        if content is not None and 'data_list' in content:
            take(content['data_list'][: self.head], content['metainfo'])
        elif self.head is not None or not stream_keyframes(
            self.ann_file, take
        ):
            # Which also says what is wrong with another layout.
            content = load_info_file(self.ann_file)
            take(content['data_list'][: self.head], content['metainfo'])
        return packer.records(by_time=False, found={})

    def record(self, idx: int) -> dict:
        """Returns what is kept of a keyframe, with its ``scene_token``."""
        place = range(len(self._kept))[idx]
        return dict(self._kept[place], sample_idx=place)

    def read_keyframe(
        self, info: dict, labels: dict[int, int], index: int
    ) -> dict:
        """Reads one entry of ``data_list``.

        Args:
            info: The entry.
            labels: The file's label numbers -> VAD's.
            index: Place of the entry in the file, for messages.

        Raises:
            FileNotFoundError: A picture is not there.
            ValueError: A camera or a calibration is missing.
        """
        where = f'keyframe {index} of {self.ann_file}'
        keyframe = self._read_sensors(info, where)
        keyframe.update(_read_objects(info, labels, where))
        token = info.get('token', f'{self.ann_file}:{index}')
        # Without a scene the frames must not share temporal memory.
        keyframe['scene_token'] = info.get('scene_token', token)
        keyframe['token'] = token
        for key in PASSED_ON:
            if key in info:
                keyframe[key] = info[key]
        return keyframe

    def get_data_info(self, idx: int) -> dict:
        """Returns what the pipeline gets for one keyframe."""
        results = self._keyframe(self.record(idx))
        boxes = LiDARInstance3DBoxes(
            results.pop('boxes'), box_dim=9, origin=(0.5, 0.5, 0.5)
        )
        labels = results.pop('labels')
        valid, seen = results.pop('valid'), results.pop('seen')
        keep = valid if self.use_valid_flag else seen
        results.update(
            box_type_3d=self.box_type_3d,
            box_mode_3d=self.box_mode_3d,
            all_gt_bboxes_3d=boxes,
            all_gt_labels_3d=labels,
            gt_bboxes_3d=boxes[np.flatnonzero(keep)],
            gt_labels_3d=labels[keep],
        )
        if 'attr_labels' in results:
            results['all_attr_labels'] = results['attr_labels']
            results['attr_labels'] = results['attr_labels'][keep]
        return results

    def _keyframe(self, record: dict) -> dict:
        """The keyframe that a record was packed from."""
        return record

    def _read_sensors(self, info: dict, where: str) -> dict:
        """Pictures, calibration and pose of one keyframe."""
        cameras = info.get('images') or {}
        missing = [name for name in CAMERAS if name not in cameras]
        if missing:
            raise ValueError(
                f'{where} has no {", ".join(missing)} among its cameras '
                f'({", ".join(cameras) or "none at all"}); VAD needs all '
                f'{len(CAMERAS)}.'
            )
        images = {
            name: self._read_camera(name, cameras[name], where)
            for name in CAMERAS
        }
        views = list(images.values())
        sensors = dict(
            images=images,
            img_path=[view['img_path'] for view in views],
            lidar2img=[v['cam2img'] @ v['lidar2cam'] for v in views],
            can_bus=complete_can_bus(
                info.get('can_bus'), info.get('ego2global')
            ),
        )
        if 'ego2global' in info:
            sensors['ego2global'] = as_4x4(info['ego2global'])
        lidar = info.get('lidar_points', {})
        if 'lidar2ego' in lidar:
            sensors['lidar2ego'] = as_4x4(lidar['lidar2ego'])
        scan = self._find('LIDAR_TOP', lidar.get('lidar_path', ''))
        if scan is not None:
            sensors['lidar_path'] = scan
            sensors['num_pts_feats'] = lidar.get('num_pts_feats', 5)
        return sensors

    def _read_camera(self, name: str, camera: dict, where: str) -> dict:
        absent = {'img_path', 'cam2img', 'lidar2cam'} - set(camera)
        if absent:
            raise ValueError(
                f'{where}: camera {name} lacks {", ".join(sorted(absent))}; '
                'make the info file again with the nuScenes converter of '
                'mmdet3d.'
            )
        return dict(
            img_path=self._find_image(name, camera['img_path'], where),
            cam2img=as_4x4(camera['cam2img']),
            lidar2cam=as_4x4(camera['lidar2cam']),
        )

    def _find_image(self, camera: str, name: str, where: str) -> str:
        path = self._find(camera, name)
        if path is None:
            raise FileNotFoundError(
                f'{where}: picture {name} of {camera} is neither next to the '
                f'info file nor below {self.data_prefix.get(camera, ".")}; '
                'put it there or set data_root.'
            )
        return path

    def _find(self, sensor: str, name: str) -> str | None:
        """Path of a sensor's file, or None where there is no such file."""
        beside = os.path.dirname(self.ann_file)
        folders = (
            beside,
            self.data_prefix.get(sensor, ''),
            os.path.join(beside, 'samples', sensor),
            self.data_root or '',
        )
        paths = (os.path.join(folder, name) for folder in folders)
        return next((path for path in paths if os.path.isfile(path)), None)


def complete_can_bus(
    can_bus: Sequence[float] | None, ego2global: Sequence | None
) -> np.ndarray:
    """Returns the 18 CAN-bus numbers with the pose written into them.

    Entries 0:3 are the position in metres, 16 and 17 the heading in [0, 2
    pi) and [0, 360). Entries 3:7 all hold the real part of the rotation's
    quaternion: the released weights were trained that way. What no source
    gives is zero.

    Args:
        can_bus: ``[18]`` as the info file has it, if it does.
        ego2global: ``[4, 4]`` pose of the vehicle, if known.

    Raises:
        ValueError: If ``can_bus`` does not hold 18 numbers.
    """
    out = np.zeros(18) if can_bus is None else np.array(can_bus, dtype=float)
    if out.shape != (18,):
        raise ValueError(
            f'can_bus must hold 18 numbers, found shape {out.shape}; leave '
            'it out of the info file if it is not known.'
        )
    if ego2global is None:
        return out
    pose = as_4x4(ego2global)
    heading = math.degrees(math.atan2(pose[1, 0], pose[0, 0])) % 360
    out[0:3] = pose[:3, 3]
    out[3:7] = math.sqrt(max(0.0, 1 + np.trace(pose[:3, :3]))) / 2
    out[16] = math.radians(heading)
    out[17] = heading
    return out


def map_labels(path: str, metainfo: dict) -> dict[int, int]:
    """Returns the file's label numbers -> VAD's; -1 stays -1.

    Args:
        path: The info file, for messages.
        metainfo: Its ``metainfo``.

    Raises:
        ValueError: It names no classes, or one that VAD does not know.
    """
    categories = metainfo.get('categories')
    if categories is None and 'classes' in metainfo:
        categories = {name: i for i, name in enumerate(metainfo['classes'])}
    if not categories:
        raise ValueError(
            f"info file {path} does not name its classes; its 'metainfo' "
            "needs 'categories' (name -> label) or 'classes' (names)."
        )
    unknown = sorted(set(categories) - set(CLASSES))
    if unknown:
        close = difflib.get_close_matches(unknown[0].lower(), CLASSES, 1)
        hint = f' (did you mean {close[0]}?)' if close else ''
        raise ValueError(
            f'info file {path} has the unknown class '
            f'{", ".join(unknown)}{hint}; VAD knows {", ".join(CLASSES)}.'
        )
    mapping = {
        label: CLASSES.index(name) for name, label in categories.items()
    }
    return {-1: -1, **mapping}


def _read_objects(info: dict, labels: dict[int, int], where: str) -> dict:
    """Boxes with a known class: geometry, labels and what counts.

    Returns:
        ``boxes`` ``[n, 9]`` with the gravity centre, ``labels``, ``seen``
        (has LiDAR points) and ``valid`` ``[n]``; ``attr_labels`` ``[n, 34]``
        if every instance has them.
    """
    objects = []
    for instance in info.get('instances', []):
        label = int(instance['bbox_label_3d'])
        if label not in labels:
            raise ValueError(
                f'{where}: a box has label {label}, and the file names '
                f'classes for {sorted(labels)} only; make the file again.'
            )
        if labels[label] >= 0:
            objects.append((instance, labels[label]))
    boxes = [
        [*instance['bbox_3d'], *instance.get('velocity', (0.0, 0.0))]
        for instance, _ in objects
    ]
    points = [instance.get('num_lidar_pts', 1) for instance, _ in objects]
    valid = [instance.get('bbox_3d_isvalid', True) for instance, _ in objects]
    out = dict(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 9),
        labels=np.array([label for _, label in objects], dtype=np.int64),
        seen=np.array(points, dtype=np.int64) > 0,
        valid=np.array(valid, dtype=bool),
    )
    out['boxes'][:, 7:] = np.nan_to_num(out['boxes'][:, 7:])
    if objects and all('attr_labels' in item for item, _ in objects):
        out['attr_labels'] = np.array(
            [item['attr_labels'] for item, _ in objects], dtype=np.float32
        )
    return out
