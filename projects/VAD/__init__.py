"""VAD for mmdet3d 1.x; importing it registers its modules."""

import mmprune  # noqa: F401, I001  (first: it makes mmcv-lite usable)

from . import metrics  # noqa: F401
from .data import (  # noqa: F401
    image_transforms,
    keyframe_dataset,
    packing,
    picture_crop,
    scene_sampler,
    vad_dataset,
)
from .model.bev_hints import HintedVAD
from .model.coders import VADBoxCoder, VADMapCoder
from .model.data_preprocessor import VADDataPreprocessor
from .model.losses import VADLoss
from .model.transformer import VADPerceptionTransformer
from .model.vad import VAD
from .model.vad_head import VADHead
from .pruning import family, groups  # noqa: F401

__all__ = [
    'HintedVAD',
    'VAD',
    'VADBoxCoder',
    'VADDataPreprocessor',
    'VADHead',
    'VADLoss',
    'VADMapCoder',
    'VADPerceptionTransformer',
]
