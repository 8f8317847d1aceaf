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
        """Draws in the order brightness, contrast, saturation, hue, swap."""
        delta = self.brightness_delta
        img = img + np.float32(_sometimes(-delta, delta, 0))
        late = not _coin()
        if not late:
            img = img * np.float32(_sometimes(*self.contrast_range, 1))
        hsv = mmcv.bgr2hsv(img)
        hsv[..., 1] *= _sometimes(*self.saturation_range, 1)
        turn = _sometimes(-self.hue_delta, self.hue_delta, 0)
        if turn:
            hsv[..., 0] = (hsv[..., 0] + turn) % 360
        img = mmcv.hsv2bgr(hsv)
        if late:
            img *= np.float32(_sometimes(*self.contrast_range, 1))
        order = np.random.permutation(3) if _coin() else slice(None)
        return np.ascontiguousarray(img[..., order])


@TRANSFORMS.register_module()
class NormalizeMultiviewImage(BaseTransform):
    """Shifts and scales the grey levels, channel by channel.

    Channels are swapped, less their mean and over their deviation in one
    affine map of the numbers of a pixel.

    Args:
        mean: Grey level that becomes 0, of each channel as the network sees
            them.
        std: Grey levels that become 1.
        to_rgb: Whether the network sees RGB; pictures come as BGR.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        to_rgb: bool = True,
    ) -> None:
        self.settings = dict(
            mean=[float(level) for level in mean],
            std=[float(levels) for levels in std],
            to_rgb=bool(to_rgb),
        )
        order = np.eye(3)[::-1] if to_rgb else np.eye(3)
        shift = -np.asarray(mean, dtype=np.float64)[:, None]
        scale = np.asarray(std, dtype=np.float64)[:, None]
        self._map = np.hstack((order, shift)) / scale

    def transform(self, results: dict) -> dict:
        """Normalises ``results['img']`` and notes how in ``img_norm_cfg``."""
        pictures = (np.asarray(p, np.float32) for p in results['img'])
        return results | dict(
            img=[cv2.transform(picture, self._map) for picture in pictures],
            img_norm_cfg=self.settings,
        )


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
        self._fixed = None if size is None else tuple(size)
        self._multiple = size_divisor
        self._filling = (float(pad_val),) * 3

    def transform(self, results: dict) -> dict:
        """Pads ``results['img']`` and sets ``img_shape``, ``pad_shape``."""
        padded = [self._pad(picture) for picture in results['img']]
        shapes = [picture.shape for picture in padded]
        return results | dict(
            ori_shape=[picture.shape for picture in results['img']],
            img=padded,
            img_shape=shapes,
            pad_shape=shapes,
        )

    def _pad(self, img: np.ndarray) -> np.ndarray:
        size = img.shape[:2]
        target = self._fixed or [
            -(-length // self._multiple) * self._multiple for length in size
        ]
        bottom, right = np.subtract(target, size).tolist()
        if min(bottom, right) < 0:
            raise ValueError(
                f'asked to pad to {tuple(target)}, found a picture of '
                f'{size}; resize it first or pad to more'
            )
        edges = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
        return cv2.copyMakeBorder(img, *edges, value=self._filling)


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
        classes: Names of the classes to keep, in label order; those of the
            data set if none are named.
    """

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        self._end = np.inf if classes is None else len(classes)

    def transform(self, results: dict) -> dict:
        """Filters the boxes with their labels and attributes."""
        labels = np.asarray(results['gt_labels_3d'])
        _keep_objects(results, (labels >= 0) & (labels < self._end))
        return results


def _coin() -> bool:
    return bool(np.random.randint(2))


def _sometimes(low: float, high: float, otherwise: float) -> float:
    """Draws a number in half of the cases, after the coin."""
    return np.random.uniform(low, high) if _coin() else otherwise


def _keep_objects(results: dict, keep: np.ndarray) -> None:
    results['gt_bboxes_3d'] = results['gt_bboxes_3d'][torch.as_tensor(keep)]
    for key in ('gt_labels_3d', 'attr_labels'):
        if key in results:
            results[key] = np.asarray(results[key])[keep]
