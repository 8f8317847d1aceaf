"""VAD for mmdet3d 1.x; importing it registers its modules."""

import mmprune  # noqa: F401, I001  (first: it makes mmcv-lite usable)

from . import (  # noqa: F401
    groups,
    image_transforms,
    keyframe_dataset,
    metrics,
    packing,
    pruning,
    scene_sampler,
    vad_dataset,
)
from .coders import VADBoxCoder, VADMapCoder
from .data_preprocessor import VADDataPreprocessor
from .losses import VADLoss
from .transformer import VADPerceptionTransformer
from .vad import VAD
from .vad_head import VADHead

__all__ = [
    'VAD',
    'VADBoxCoder',
    'VADDataPreprocessor',
    'VADHead',
    'VADLoss',
    'VADMapCoder',
    'VADPerceptionTransformer',
]
