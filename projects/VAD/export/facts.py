"""What ``deploy.json`` says about a VAD."""

from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config

from projects.VAD.data.config_datasets import leaf_datasets
from projects.VAD.data.keyframe_dataset import CAMERAS, CLASSES, MAP_CLASSES
from projects.VAD.model.vad_head import VADHead

from .options import VADExportOptions

COMMANDS = ('turn right', 'turn left', 'go straight')
# Of VADHead, in order.
OUTPUTS = (
    'bev_embed',
    'all_cls_scores',
    'all_bbox_preds',
    'all_traj_preds',
    'all_traj_cls_scores',
    'map_all_cls_scores',
    'map_all_bbox_preds',
    'map_all_pts_preds',
    'ego_fut_preds',
)
ABOUT = dict(
    img='pictures of the cameras in order, prepared by picture_steps',
    can_bus='0:3 metres and 17 degrees since the frame before, 0 in a first '
    'frame; 16 heading in radians; the others as the vehicle gives them',
    shift='motion since the frame before as fractions of the region, x and y',
    lidar2img='from metres to pixels of the prepared pictures, by camera',
    ego_status='columns ego_columns of the ego status',
    prev_bev='bev_embed of the frame before',
    turn_index='which cell of prev_bev each BEV cell is, after the turn',
    turn_inside='1 where that cell is inside, else 0',
    bev_embed='the BEV, prev_bev of the next frame',
    all_cls_scores='logits by decoder layer; the last counts, as below',
    all_bbox_preds='x, y (m), log w, log l, z (m), log h, sin, cos of the '
    'heading, velocity x, y (m/s)',
    all_traj_preds='offsets per step of 0.5 s in metres: x, y, x, y, ...',
    all_traj_cls_scores='logits of the modes',
    map_all_cls_scores='logits',
    map_all_bbox_preds='cx, cy, w, h as fractions of the region',
    map_all_pts_preds='x, y as fractions of the region',
    ego_fut_preds='offsets per step of 0.5 s in metres, one plan per command',
    lanes_found='lanes whose class is probable enough',
    cells_found='BEV cells that each camera sees',
    overflow='lanes, and cells of the worst camera, that did not fit; 0 0 '
    'where the outputs are exact',
)


def about_tensors(features: Iterable[str]) -> dict[str, str]:
    """Returns what each input and output is, and its unit."""
    text = 'features of the pictures, from the fine to the coarse level'
    return {**ABOUT, **dict.fromkeys(features, text)}


def facts_of(
    cfg: Config, head: VADHead, asked: VADExportOptions
) -> dict[str, Any]:
    """Returns what the driver has to know, as entries of ``deploy.json``.

    Raises:
        ValueError: If the test pipeline has a step that it does not know.
    """
    transformer = head.transformer
    return dict(
        form=asked.form,
        fp16_features=asked.fp16_features,
        lanes=asked.lanes,
        cells=asked.cells,
        cameras=list(CAMERAS),
        classes=list(CLASSES),
        map_classes=list(MAP_CLASSES),
        commands=list(COMMANDS),
        pc_range=list(head.pc_range),
        bev_shape=list(head.bev_shape),
        rotate_center=list(transformer.rotate_center),
        ego_columns=list(head.ego_columns),
        most_boxes=head.bbox_coder.max_num,
        box_centre_range=list(head.bbox_coder.post_center_range),
        most_lines=head.map_coder.max_num,
        line_corner_range=list(head.map_coder.post_center_range),
        picture_steps=list(_picture_steps(cfg)),
    )


_IGNORED = (
    'LoadMultiViewImageFromFiles',
    'CustomObjectRangeFilter',
    'CustomObjectNameFilter',
    'PackVADInputs',
)


def _picture_steps(cfg: Config) -> Iterator[dict]:
    """The test pipeline as the driver does it.

    Raises:
        ValueError: If it has a step that the driver does not know.
    """
    loader = cfg.get('test_dataloader') or {}
    dataset = next(leaf_datasets(loader.get('dataset')))
    for step in dataset.get('pipeline', []):
        kind = step['type']
        if kind == 'NormalizeMultiviewImage':
            yield dict(
                do='normalize',
                mean=list(step['mean']),
                std=list(step['std']),
                to_rgb=bool(step.get('to_rgb', True)),
            )
        elif kind == 'RandomScaleImageMultiViewImage' and (
            len(step['scales']) == 1
        ):
            yield dict(do='scale', factor=step['scales'][0])
        elif kind == 'CropTopMultiViewImage':
            yield dict(do='crop_top', rows=step['rows'])
        elif kind == 'PadMultiViewImage' and step.get('size_divisor'):
            yield dict(do='pad', multiple=step['size_divisor'])
        elif kind not in _IGNORED:
            raise ValueError(
                f'the test pipeline of {cfg.filename} has {dict(step)}, which '
                'the exported driver cannot do; it normalises, scales by one '
                'factor, crops the top and pads to a multiple'
            )
