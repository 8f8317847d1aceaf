"""Moves samples to the device and stacks their images."""

from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseDataPreprocessor
from torch import Tensor


@MODELS.register_module()
class VADDataPreprocessor(BaseDataPreprocessor):
    """Batches what the pipeline has already normalised and padded.

    The images are normalised before they are resized and padded, as the
    released weights expect; nothing of that is left to do here.
    """

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """Returns ``inputs`` with a stacked ``img`` and ``data_samples``.

        Args:
            data: ``inputs``: dict with ``img``, a tensor or a list of one
                tensor per sample; ``data_samples``: list or absent.
            training: Not used; the transforms differ already.

        Raises:
            ValueError: If the images of the samples differ in size.
        """
        data = self.cast_data(data)
        inputs = dict(data['inputs'])
        images = inputs['img']
        if not isinstance(images, Tensor):
            shapes = {tuple(image.shape) for image in images}
            if len(shapes) > 1:
                raise ValueError(
                    f'the images of a batch have the sizes {sorted(shapes)}; '
                    'pad them to one size in the pipeline.'
                )
            images = torch.stack(list(images))
        inputs['img'] = images
        return dict(inputs=inputs, data_samples=data.get('data_samples'))
