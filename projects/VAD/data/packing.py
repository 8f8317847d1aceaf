"""From the results of the pipeline to what the detector takes."""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import BaseDataElement, InstanceData

from .matrices import as_4x4

META_KEYS = (
    'img_path',
    'lidar2img',
    'img_shape',
    'ori_shape',
    'pad_shape',
    'img_norm_cfg',
    'scale_factor',
    'can_bus',
    'scene_token',
    'sample_idx',
    'token',
    'timestamp',
    'ego2global',
    'lidar2ego',
    'box_type_3d',
    'box_mode_3d',
)


@TRANSFORMS.register_module()
class PackVADInputs(BaseTransform):
    """Packs one sample as VAD takes it.

    ``inputs['img']`` is ``[cameras, 3, H, W]`` float32, or ``[Q, cameras, 3,
    H, W]`` where ``results['history']`` lists the results of the Q - 1
    earlier frames (each through the same transforms up to here). What ground
    truth there is goes into the data sample:

    - ``gt_instances_3d``: ``bboxes_3d``, ``labels_3d``, ``attr_labels``
    - ``gt_map`` from ``results['gt_map']``: ``labels [M]``, ``bboxes
      [M, 4]``, ``pts [M, 20, 2]``, ``shift_pts [M, 19, 20, 2]`` in metres;
      ``lines``, M arrays ``[k, 2]``, stays a list
    - ``gt_ego`` from ``results['gt_ego']``: ``fut_trajs [6, 2]``,
      ``fut_masks [6]``, ``fut_cmd [3]``, ``his_trajs [2, 2]``, ``lcf_feat
      [9]``, ``fut_valid_flag``

    Args:
        meta_keys: Keys of ``results`` that become metainfo where present.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Returns ``dict(inputs=..., data_samples=...)``.

        Raises:
            ValueError: If the pictures differ in size.
        """
        history = results.get('history', [])
        sample = Det3DDataSample(metainfo=self._meta(results))
        imgs = _stack_cameras(results['img'])
        if history:
            sample.set_metainfo(
                dict(history=[self._meta(frame) for frame in history])
            )
            earlier = [_stack_cameras(frame['img']) for frame in history]
            imgs = torch.stack([*earlier, imgs])
        self._add_objects(results, sample)
        if 'gt_map' in results:
            sample.gt_map = InstanceData(**_tensors(results['gt_map']))
        if 'gt_ego' in results:
            sample.gt_ego = BaseDataElement(**_tensors(results['gt_ego']))
        return dict(inputs=dict(img=imgs), data_samples=sample)

    def _meta(self, results: dict) -> dict:
        meta = {key: results[key] for key in self.meta_keys if key in results}
        if 'img_path' not in meta and 'filename' in results:
            meta['img_path'] = results['filename']
        meta['lidar2img'] = lidar2img_of(results)
        return meta

    @staticmethod
    def _add_objects(results: dict, sample: Det3DDataSample) -> None:
        if 'gt_bboxes_3d' not in results:
            return
        objects = InstanceData(bboxes_3d=results['gt_bboxes_3d'])
        objects.labels_3d = torch.as_tensor(
            np.asarray(results['gt_labels_3d'], dtype=np.int64)
        )
        if 'attr_labels' in results:
            objects.attr_labels = torch.as_tensor(
                np.asarray(results['attr_labels'], dtype=np.float32)
            )
        sample.gt_instances_3d = objects


def lidar2img_of(results: dict) -> np.ndarray:
    """Returns the projections of a sample, ``[cameras, 4, 4]`` float64.

    Args:
        results: A sample with ``lidar2img`` or, as stock mmdet3d infos have
            it, ``cam2img`` and ``lidar2cam`` (one matrix per camera).
    """
    matrices = results.get('lidar2img')
    if matrices is None:
        pairs = zip(results['cam2img'], results['lidar2cam'], strict=True)
        matrices = [as_4x4(lens) @ as_4x4(place) for lens, place in pairs]
    return np.stack([np.asarray(m, dtype=np.float64) for m in matrices])


def _stack_cameras(imgs: list[np.ndarray]) -> torch.Tensor:
    """Returns ``[cameras, 3, H, W]`` float32."""
    shapes = sorted({img.shape for img in imgs})
    if len(shapes) > 1:
        raise ValueError(
            f'the cameras of one sample have pictures of sizes {shapes}; '
            'resize or pad them to one size before PackVADInputs'
        )
    stacked = np.stack(imgs).astype(np.float32, copy=False)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _tensors(arrays: dict) -> dict:
    """Tensors of arrays and lists; whole numbers stay whole."""
    out = {}
    for key, value in arrays.items():
        if key == 'lines':
            out[key] = value
            continue
        tensor = torch.as_tensor(np.asarray(value))
        out[key] = tensor.float() if tensor.is_floating_point() else tensor
    return out
