"""A drawn picture with what a detector's training reads of it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

# Where things stand in a picture of width and height 1: x1, y1, x2, y2.
_BOXES = (
    (0.08, 0.1, 0.55, 0.62),
    (0.35, 0.3, 0.95, 0.9),
    (0.6, 0.05, 0.8, 0.3),
)


def drawn_batch(cfg: Config, height: int, width: int) -> dict[str, list]:
    """Returns a batch of one picture, as a dataloader of the config gives it.

    Three rectangles stand before a gradient. Of them the sample holds what
    the config's training pipeline packs: boxes and labels, masks, a semantic
    map, proposals.

    Args:
        cfg: A config of mmdet.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor(_BOXES) * torch.tensor([width, height] * 2)
    masks = _masks(height, width)
    classes = max(found_values(cfg.model, 'num_classes', int), default=80)
    labels = torch.arange(len(_BOXES)) % classes
    loads = _annotations(cfg)
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='a drawn picture',
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=np.array([0, height, 0, width]),
        )
    )
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    if loads & {'with_mask', 'panoptic'}:
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
        sample.ignored_instances.masks = BitmapMasks(masks[:0], height, width)
    if loads & {'with_seg', 'panoptic'}:
        things = torch.zeros(1, height, width, dtype=torch.long)
        for mask, label in zip(masks, labels, strict=True):
            things[0][torch.from_numpy(mask).bool()] = label
        sample.gt_sem_seg = PixelData(sem_seg=things)
    if not cfg.model.get('rpn_head'):
        sample.proposals = InstanceData(
            bboxes=boxes + 2.0, scores=torch.linspace(0.9, 0.5, len(boxes))
        )
    return dict(inputs=[picture(height, width)], data_samples=[sample])


def trained_size(cfg: Config) -> tuple[int, int]:
    """Returns height and width of the pictures that a config works on."""
    for loader in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        for step in steps_of(cfg.get(loader) or {}):
            scale = step.get('scale') or step.get('img_scale')
            sides = scale if isinstance(scale, tuple | list) else ()
            if [type(side) for side in sides] == [int, int]:
                return min(sides), max(sides)
    return 800, 1333


def _masks(height: int, width: int) -> np.ndarray:
    """``[3, H, W]``, 1 where a thing is."""
    masks = np.zeros((len(_BOXES), height, width), np.uint8)
    scale = np.array([width, height] * 2)
    for mask, box in zip(masks, _BOXES, strict=True):
        x1, y1, x2, y2 = (np.array(box) * scale).astype(int)
        mask[y1:y2, x1:x2] = 1
    return masks


def picture(height: int, width: int) -> Tensor:
    """Returns three rectangles before a gradient, ``[3, H, W]``, uint8."""
    masks = _masks(height, width)
    y, x = np.mgrid[:height, :width]
    drawn = np.stack([x / width, y / height, (x + y) / (width + height)])
    for i, mask in enumerate(masks):
        color = np.array([0.9, 0.5, 0.1])[(np.arange(3) + i) % 3]
        stripes = 0.8 + 0.2 * ((x // 4 + y // 4) % 2)
        drawn = np.where(mask, color[:, None, None] * stripes, drawn)
    return torch.from_numpy((drawn * 255).astype(np.uint8))


def _annotations(cfg: Config) -> set[str]:
    """What the training pipeline loads: ``with_mask``, ``panoptic``, ..."""
    loads = set()
    for step in steps_of(cfg.get('train_dataloader') or {}):
        if 'Panoptic' in str(step.get('type')):
            loads.add('panoptic')
        loads |= {key for key in step if key.startswith('with_') and step[key]}
    return loads


def steps_of(node: Any) -> Iterator[dict]:
    """Yields the steps of all pipelines in a part of a config, in order."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'pipeline':
                yield from _flat(value)
            else:
                yield from steps_of(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from steps_of(value)


def _flat(steps: Any) -> Iterator[dict]:
    """The steps, and those that a step chooses from or repeats."""
    for step in steps if isinstance(steps, list | tuple) else ():
        if isinstance(step, dict):
            yield step
            yield from _flat(step.get('transforms'))
        else:
            yield from _flat(step)


def found_values(node: Any, key: str, kind: Any) -> Iterator[Any]:
    """Yields what is called ``key`` in a config and is of a kind, in order."""
    if isinstance(node, dict):
        if isinstance(node.get(key), kind):
            yield node[key]
        for value in node.values():
            yield from found_values(value, key, kind)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from found_values(value, key, kind)
