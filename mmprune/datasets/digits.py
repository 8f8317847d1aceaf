"""The handwritten digits that scikit-learn carries along."""

from collections.abc import Sequence

import numpy as np

from ..registry import DATASETS
from .images import ImageArrays, cut


@DATASETS.register_module()
class Digits(ImageArrays):
    """1,797 grey digits of 8 x 8, without any file to fetch.

    The last ones were written by other people than the first (Alpaydin and
    Kaynak, 1998), so ``val`` is a fair test set.

    Args:
        split: ``train``, ``val`` or ``trainval``.
        pipeline: Transforms.
        num_val: Size of ``val``, or a fraction below 1.
        num_images: Only the first so many; ``None`` takes all.

    Raises:
        ValueError: If scikit-learn is absent or the split unknown.
    """

    def __init__(
        self,
        split: str,
        pipeline: Sequence[dict] = (),
        num_val: int | float = 0.2,
        num_images: int | None = None,
    ) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError(
                'the digits come with scikit-learn; pip install scikit-learn'
            ) from error
        digits = load_digits()
        start, stop = cut(split, len(digits.target), num_val)
        # Sixteen grey levels are stored as 0 to 16.
        images = np.clip(digits.images * 16, 0, 255).astype(np.uint8)
        super().__init__(
            images[start:stop, :, :, None][:num_images],
            digits.target[start:stop][:num_images],
            [str(i) for i in range(10)],
            pipeline,
        )
