"""Cuts the sky off the pictures."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS

from .packing import lidar2img_of


@TRANSFORMS.register_module()
class CropTopMultiViewImage(BaseTransform):
    """Drops the upper rows of all pictures, and moves ``lidar2img`` with them.

    Args:
        rows: How many, in pixels of the pictures as they come in.

    Raises:
        ValueError: If the number is negative.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        if rows < 0:
            raise ValueError(
                f'rows says how much of the top to drop, found {rows}; give '
                'a number that is not negative'
            )

    def transform(self, results: dict) -> dict:
        """Crops ``results['img']``; updates ``lidar2img``, ``img_shape``.

        Raises:
            ValueError: If nothing of a picture would be left.
        """
        lowest = min(img.shape[0] for img in results['img'])
        if self.rows >= lowest:
            raise ValueError(
                f'asked to drop {self.rows} rows of a picture that has '
                f'{lowest}; drop fewer, or resize after the crop'
            )
        results['img'] = [img[self.rows :] for img in results['img']]
        to_cropped = np.eye(4)
        # Homogeneous: the row is divided by the depth afterwards.
        to_cropped[1, 2] = -self.rows
        results['lidar2img'] = to_cropped @ lidar2img_of(results)
        results['img_shape'] = [img.shape for img in results['img']]
        return results
