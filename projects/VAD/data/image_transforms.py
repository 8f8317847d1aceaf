"""Image pipeline of VAD for several cameras per frame.

The pictures are loaded by ``LoadMultiViewImageFromFiles(to_float32=True,
num_views=6)`` of mmdet3d, which reads ``results['images']`` (camera name ->
``img_path``, ``cam2img``, ``lidar2cam``, in camera order) and writes
``results['img']``, a list of ``[H, W, 3]`` BGR arrays. From there on:

==============  =========================================================
key             content
==============  =========================================================
img             list of ``[H, W, 3]`` float32, one per camera
lidar2img       ``[cameras, 4, 4]`` float64, follows every resize; made
                from ``cam2img`` and ``lidar2cam`` where absent
img_shape       list of ``(H, W, 3)``, the padded size
gt_bboxes_3d    LiDARInstance3DBoxes; with ``gt_labels_3d`` and, where
                known, ``attr_labels`` ``[n, 34]``
gt_map, gt_ego  dicts of arrays, see ``PackVADInputs``
==============  =========================================================
"""

from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from .packing import lidar2img_of


@TRANSFORMS.register_module()
class PhotoMetricDistortionMultiViewImage(BaseTransform):
    """Changes the colours of each camera's picture on its own.

    Brightness, contrast (before or after the change of colour), saturation,
    hue and a permutation of the channels, each with probability 1/2.

    Args:
        brightness_delta: Largest shift, in grey levels.
        contrast_range: Smallest and largest factor.
        saturation_range: Smallest and largest factor.
        hue_delta: Largest shift, in degrees.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: Sequence[float] = (0.5, 1.5),
        saturation_range: Sequence[float] = (0.5, 1.5),
        hue_delta: float = 18,
    ) -> None:
        self.brightness_delta = brightness_delta
        self.contrast_range = tuple(contrast_range)
        self.saturation_range = tuple(saturation_range)
        self.hue_delta = hue_delta

    def transform(self, results: dict) -> dict:
        """Distorts every picture of ``results['img']``.

        Raises:
            TypeError: If a picture is not float32; the distorted values
                leave [0, 255] and an integer would wrap around.
        """
        for img in results['img']:
            if img.dtype != np.float32:
                raise TypeError(
                    'photometric distortion needs float32 pictures, found '
                    f'{img.dtype}; load them with to_float32=True'
                )
        results['img'] = [self._distort(img) for img in results['img']]
        return results

    def _distort(self, img: np.ndarray) -> np.ndarray:
        if _coin():
            delta = self.brightness_delta
            img = img + np.float32(np.random.uniform(-delta, delta))
        contrast_first = _coin()
        if contrast_first:
            img = self._contrast(img)
        img = self._saturation_and_hue(img)
        if not contrast_first:
            img = self._contrast(img)
        if _coin():
            img = img[..., np.random.permutation(3)]
        return np.ascontiguousarray(img)

    def _contrast(self, img: np.ndarray) -> np.ndarray:
        if _coin():
            return img * np.float32(np.random.uniform(*self.contrast_range))
        return img

    def _saturation_and_hue(self, img: np.ndarray) -> np.ndarray:
        hsv = mmcv.bgr2hsv(img)
        if _coin():
            hsv[..., 1] *= np.random.uniform(*self.saturation_range)
        if _coin():
            hsv[..., 0] += np.random.uniform(-self.hue_delta, self.hue_delta)
            hsv[..., 0] %= 360
        return mmcv.hsv2bgr(hsv)


@TRANSFORMS.register_module()
class NormalizeMultiviewImage(BaseTransform):
    """Subtracts the mean and divides by the deviation, per channel.

    Args:
        mean: Three numbers, in the channel order after ``to_rgb``.
        std: Three numbers.
        to_rgb: Whether the BGR picture is turned into RGB first.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        to_rgb: bool = True,
    ) -> None:
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb
        self.settings = dict(
            mean=list(map(float, mean)),
            std=list(map(float, std)),
            to_rgb=bool(to_rgb),
        )

    def transform(self, results: dict) -> dict:
        """Normalises every picture of ``results['img']``."""
        results['img'] = [
            mmcv.imnormalize(img, self.mean, self.std, self.to_rgb)
            for img in results['img']
        ]
        results['img_norm_cfg'] = self.settings
        return results


@TRANSFORMS.register_module()
class RandomScaleImageMultiViewImage(BaseTransform):
    """Resizes all pictures by one factor, and ``lidar2img`` with them.

    Bilinear, on float pictures when it comes after the normalisation, as
    the released weights expect it.

    Args:
        scales: Factors to draw from; one factor is no draw at all.

    Raises:
        ValueError: If there is no factor, or one is not positive.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = tuple(scales)
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(
                f'scales must hold positive factors, found {list(scales)}; '
                'VAD-tiny uses [0.4], VAD-base [0.8]'
            )

    def transform(self, results: dict) -> dict:
        """Resizes ``results['img']`` and scales ``results['lidar2img']``."""
        scale = self.scales[np.random.randint(len(self.scales))]
        results['img'] = [
            mmcv.imresize(
                img, (int(img.shape[1] * scale), int(img.shape[0] * scale))
            )
            for img in results['img']
        ]
        to_scaled = np.diag([scale, scale, 1.0, 1.0])
        results['lidar2img'] = to_scaled @ lidar2img_of(results)
        results['scale_factor'] = scale
        results['img_shape'] = [img.shape for img in results['img']]
        return results


@TRANSFORMS.register_module()
class PadMultiViewImage(BaseTransform):
    """Pads the pictures at the right and at the bottom.

    Exactly one of the two sizes must be given.

    Args:
        size: ``(height, width)`` to reach.
        size_divisor: Height and width become multiples of this number.
        pad_val: Value of the added pixels.

    Raises:
        ValueError: If both sizes are given, or none.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        size_divisor: int | None = None,
        pad_val: float = 0,
    ) -> None:
        if (size is None) == (size_divisor is None):
            raise ValueError(
                f'PadMultiViewImage got size={size} and size_divisor='
                f'{size_divisor}; give exactly one of the two'
            )
        self.size = size
        self.size_divisor = size_divisor
        self.pad_val = pad_val

    def transform(self, results: dict) -> dict:
        """Pads ``results['img']`` and sets ``img_shape``, ``pad_shape``."""
        results['ori_shape'] = [img.shape for img in results['img']]
        results['img'] = [self._pad(img) for img in results['img']]
        shapes = [img.shape for img in results['img']]
        results['img_shape'] = results['pad_shape'] = shapes
        return results

    def _pad(self, img: np.ndarray) -> np.ndarray:
        height, width = img.shape[:2]
        if self.size is not None:
            target = self.size
        else:
            divisor = self.size_divisor
            target = (
                -(-height // divisor) * divisor,
                -(-width // divisor) * divisor,
            )
        if target[0] < height or target[1] < width:
            raise ValueError(
                f'asked to pad to {tuple(target)}, found a picture of '
                f'{(height, width)}; resize it first or pad to more'
            )
        return cv2.copyMakeBorder(
            img,
            0,
            target[0] - height,
            0,
            target[1] - width,
            cv2.BORDER_CONSTANT,
            value=(self.pad_val,) * 3,
        )


@TRANSFORMS.register_module()
class CustomObjectRangeFilter(BaseTransform):
    """Drops the boxes whose centre is not strictly inside the region.

    The yaw of the others is moved to [-pi, pi).

    Args:
        point_cloud_range: ``(x, y, z, x, y, z)`` in metres; z is not used.
    """

    def __init__(self, point_cloud_range: Sequence[float]) -> None:
        self.bev_range = [point_cloud_range[i] for i in (0, 1, 3, 4)]

    def transform(self, results: dict) -> dict:
        """Filters the boxes with their labels and attributes."""
        keep = results['gt_bboxes_3d'].in_range_bev(self.bev_range)
        _keep_objects(results, keep.numpy())
        results['gt_bboxes_3d'].limit_yaw(offset=0.5, period=2 * np.pi)
        return results


@TRANSFORMS.register_module()
class CustomObjectNameFilter(BaseTransform):
    """Drops the boxes of other classes (label -1 or above the last class).

    Args:
        classes: Names of the classes to keep, in label order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.num_classes = len(classes)

    def transform(self, results: dict) -> dict:
        """Filters the boxes with their labels and attributes."""
        labels = np.asarray(results['gt_labels_3d'])
        _keep_objects(results, (labels >= 0) & (labels < self.num_classes))
        return results


def _coin() -> bool:
    return bool(np.random.randint(2))


def _keep_objects(results: dict, keep: np.ndarray) -> None:
    results['gt_bboxes_3d'] = results['gt_bboxes_3d'][torch.as_tensor(keep)]
    for key in ('gt_labels_3d', 'attr_labels'):
        if key in results:
            results[key] = np.asarray(results[key])[keep]
