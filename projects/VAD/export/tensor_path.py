"""The graphs of VAD, what is said about them, and how they are checked."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor

from mmprune.tensor_path import Compared, Part, Run, TensorPath
from projects.VAD.data.config_datasets import leaf_datasets
from projects.VAD.data.keyframe_dataset import CAMERAS, CLASSES, MAP_CLASSES
from projects.VAD.model.vad import VAD

from . import driver
from .frames import chained, keyframes, write_frames
from .options import VADExportOptions
from .static_model import HeadPart, ImagePart

# Frames of the check: one begins, one reads a BEV, one reads that BEV's.
CHAIN = 3
_LISTS = ('lanes', 'cells')
COMMANDS = ('turn right', 'turn left', 'go straight')
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


@dataclass(frozen=True)
class VADPath(TensorPath):
    """Pictures to features, and the head without and with a previous BEV.

    Attributes:
        model: The model.
        samples: Of one drive, as a pipeline gives them.
        cfg: The config of the data.
        picture_size: Of a drawn picture.
        frames: Frames that are written beside the graphs.
    """

    model: VAD = field(kw_only=True)
    samples: Sequence[dict] = field(kw_only=True)
    cfg: Config = field(kw_only=True)
    picture_size: tuple[int, int] = field(kw_only=True)
    frames: int = field(kw_only=True)

    def compare(self, run: Run) -> Iterator[Compared]:
        """Yields all outputs over a chain of frames, and what they decode to.

        Either side reads its own BEV of the frame before. What decides, as
        the order of two boxes of one score, is that of PyTorch.
        """
        if any(not part.runs for part in self.parts):
            return
        host = driver.Driver(self.facts, _on_arrays(run))
        self.model.forget()
        for number, sample in enumerate(self.samples):
            data = self.model.data_preprocessor(
                pseudo_collate([sample]), False
            )
            inputs, meta = data['inputs'], data['data_samples'][0].metainfo
            part = 'head' if number else 'head_first'
            levels = run('image', {'img': inputs['img']})
            with torch.no_grad():
                expected = self.model.extract_feat(inputs['img'])
                for (name, level), own in zip(
                    levels.items(), expected, strict=True
                ):
                    yield Compared('image', name, own, level)
                outs = self.model.step(inputs, data['data_samples'])
            found = host.step(
                inputs['img'].numpy(), **_step_inputs(sample, meta)
            )
            for name, value in outs.items():
                yield Compared(
                    part, name, value, torch.from_numpy(found[name])
                )
            yield from self._decoded(part, outs, found, host)
        self.model.forget()

    def _check_room(self, found: driver.Arrays) -> None:
        if 'overflow' not in found or not found['overflow'].any():
            return
        asked = [
            f'--{name} {self.facts[name]}'
            for name, over in zip(_LISTS, found['overflow'], strict=True)
            if over
        ]
        lanes, cells = (int(found[f'{n}_found'].max()) for n in _LISTS)
        raise ValueError(
            f'{" and ".join(asked)} are too few for the frames of the check, '
            f'which have {lanes} lanes and {cells} cells of one camera; give '
            'more'
        )

    def _decoded(
        self, part: str, outs: dict, found: driver.Arrays, host: driver.Driver
    ) -> Iterator[Compared]:
        arrays = {name: x.detach().numpy() for name, x in outs.items()}
        expected, seen = host.decode(arrays), host.decode(found)
        own, other = (
            {
                pair: i
                for i, pair in enumerate(
                    zip(d['queries'], d['labels'], strict=True)
                )
            }
            for d in (expected, seen)
        )
        both = [pair for pair in own if pair in other]
        # The last of the list may be another one of the same score.
        lost = max(len(own), len(other)) - len(both)
        if lost > max(1, len(own) // 50):
            raise ValueError(
                f'{lost} of {len(own)} decoded boxes are other ones'
            )
        for name in ('boxes', 'scores', 'trajs'):
            if both:
                yield Compared(
                    part,
                    f'decoded {name}',
                    torch.from_numpy(expected[name][[own[p] for p in both]]),
                    torch.from_numpy(seen[name][[other[p] for p in both]]),
                )
        yield Compared(
            part,
            'decoded plans',
            torch.from_numpy(expected['plans']),
            torch.from_numpy(seen['plans']),
        )

    def write(self, folder: Path, run: Run) -> None:
        """Writes the driver and frames to run it on."""
        shutil.copyfile(driver.__file__, folder / 'run.py')
        with keyframes(self.cfg, self.frames, self.picture_size) as found:
            write_frames(*found, folder / 'frames')


def vad_path(
    cfg: Config,
    model: VAD,
    asked: VADExportOptions | None,
    picture_size: tuple[int, int],
) -> VADPath:
    """Returns what of a VAD is exported.

    Raises:
        ValueError: If the options do not fit the model, or a step of the
            test pipeline is one that the driver does not know.
    """
    asked = asked or VADExportOptions()
    head = model.pts_bbox_head
    _check(asked, head)
    with keyframes(cfg, CHAIN, picture_size) as (dataset, indices):
        samples = chained([dataset[i] for i in indices], CHAIN)
    data = model.data_preprocessor(pseudo_collate([samples[0]]), False)
    img, sample = data['inputs']['img'], data['data_samples'][0]
    facts = _facts(cfg, head, asked)
    facts['image_size'] = list(img.shape[-2:])
    image = ImagePart(model).eval()
    with torch.no_grad():
        levels = image(img)
    features = {f'features_{i}': level for i, level in enumerate(levels)}
    inputs = {
        **features,
        **_tensors(
            _head_inputs(facts, **_step_inputs(samples[0], sample.metainfo))
        ),
    }
    bev = torch.zeros(facts['bev_shape'][0] * facts['bev_shape'][1], 1, 1)
    bev = bev.expand(-1, 1, head.bev_embedding.weight.shape[1]).contiguous()
    index, inside = driver.turn(
        1.0, facts['bev_shape'], facts['rotate_center']
    )
    further = inputs | dict(
        prev_bev=bev,
        turn_index=torch.from_numpy(index),
        turn_inside=torch.from_numpy(inside),
    )
    parts = [
        Part(
            'image',
            image,
            {'img': img},
            tuple(features),
            _about(features),
            static=True,
        )
    ]
    for name, given in (('head_first', inputs), ('head', further)):
        module = HeadPart(
            head,
            asked.form,
            tuple(facts['image_size']),
            list(given),
            asked.lanes,
            asked.cells,
        )
        outputs = [*OUTPUTS, 'lanes_found', 'cells_found']
        if asked.lanes or asked.cells:
            outputs.append('overflow')
        parts.append(
            Part(
                name,
                module,
                given,
                tuple(outputs),
                _about(features),
                static=True,
                runs=asked.form != 'plugin',
            )
        )
    return VADPath(
        parts,
        facts,
        model=model,
        samples=samples,
        cfg=cfg,
        picture_size=picture_size,
        frames=asked.frames,
    )


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


def _check(asked: VADExportOptions, head: Any) -> None:
    lanes, cells = head.map_shape[0], head.bev_shape[0] * head.bev_shape[1]
    for flag, given, most in (
        ('--lanes', asked.lanes, lanes),
        ('--cells', asked.cells, cells),
    ):
        if given is not None and given > most:
            raise ValueError(
                f'{flag} {given} was asked for, and the model has {most}; '
                'give fewer, or leave it out for all'
            )


def _about(features: dict[str, Tensor]) -> dict[str, str]:
    text = 'features of the pictures, from the fine to the coarse level'
    return {**ABOUT, **dict.fromkeys(features, text)}


def _facts(cfg: Config, head: Any, asked: VADExportOptions) -> dict[str, Any]:
    transformer = head.transformer
    return dict(
        form=asked.form,
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


def _step_inputs(sample: dict, meta: dict) -> dict[str, Any]:
    ego = sample['data_samples'].get('gt_ego', {}).get('lcf_feat')
    return dict(
        lidar2img=np.asarray(meta['lidar2img']),
        can_bus=np.asarray(meta['can_bus']),
        scene_token=meta['scene_token'],
        ego_status=None if ego is None else np.asarray(ego),
    )


def _head_inputs(facts: dict, **step: Any) -> driver.Arrays:
    """What the driver hands to the head in a first frame."""
    handed = {}

    def run(name: str, given: driver.Arrays) -> driver.Arrays:
        if name == 'image':
            return {}
        handed.update(given)
        return {'bev_embed': np.zeros(0)}

    driver.Driver(facts, run).step(np.zeros(0), **step)
    return handed


def _on_arrays(run: Run) -> Any:
    def on_arrays(name: str, given: driver.Arrays) -> driver.Arrays:
        found = run(name, _tensors(given))
        return {name: value.numpy() for name, value in found.items()}

    return on_arrays


def _tensors(arrays: driver.Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x) for name, x in arrays.items()}
