"""The graphs of VAD, what is said about them, and how they are checked."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from mmprune.atomic_file import save_json
from mmprune.errors import blame
from mmprune.onnx_file import run_session, session
from mmprune.pruners.verify import TOLERANCE, relative_difference
from mmprune.tensor_path import Compared, Part, Run, TensorPath
from projects.VAD.model.vad import VAD
from projects.VAD.model.vad_head import VADHead

from . import driver
from .facts import OUTPUTS, about_tensors, facts_of
from .frames import chained, keyframes, write_frames
from .hand_over import Ran, write_hand_over
from .int8 import quantize_image
from .options import VADExportOptions
from .static_model import HeadPart, ImagePart

# Frames of the check: one begins, one reads a BEV, one reads that BEV's.
CHAIN = 3
# Of a probability or, in fractions of the region, of a distance.
_TIE = 1e-5
_LISTS = ('lanes', 'cells')


@dataclass(frozen=True)
class VADPath(TensorPath):
    """Pictures to features, and the head without and with a previous BEV.

    Attributes:
        model: The model.
        samples: Of one drive, as a pipeline gives them.
        family: Gives keyframes to lay beside, and to calibrate on.
        asked: What else is written.
    """

    model: VAD = field(kw_only=True)
    samples: Sequence[dict] = field(kw_only=True)
    family: Any = field(kw_only=True)
    asked: VADExportOptions = field(kw_only=True)

    def compare(self, run: Run) -> Iterator[Compared]:
        """Yields all outputs over a chain of frames, and what they decode to.

        Either side reads its own BEV of the frame before. What decides, as
        the order of two boxes of one score, is that of PyTorch.
        """
        if any(not part.runs for part in self.parts):
            return
        host = driver.Driver(self.facts, _on_arrays(run))
        self.model.forget()
        left = {
            (part, name) for part in ('head_first', 'head') for name in OUTPUTS
        }
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
                    yield Compared('image', name, own, unrounded(level, own))
                with self._reading(levels.values()):
                    outs = self.model.step(inputs, data['data_samples'])
            found = host.step(
                inputs['img'].numpy(), **_step_inputs(sample, meta)
            )
            self._check_room(found)
            compared = [
                Compared(part, name, value, torch.from_numpy(found[name]))
                for name, value in outs.items()
            ]
            compared += self._decoded(part, outs, found, host)
            if tied(outs, self.model.pts_bbox_head):
                compared = [each for each in compared if not turned(each)]
            yield from compared
            left -= {(part, each.output) for each in compared}
        self.model.forget()
        if left:
            raise ValueError(
                f'a lane at a threshold turned {sorted(left)[0]} in every '
                'frame of the check; choose other frames by --ann-file'
            )

    @contextmanager
    def _reading(self, levels: Iterable[Tensor]) -> Iterator[None]:
        """Gives the model the features of the files, where those are halves.

        Which way a value in the middle of two halves is rounded hangs on its
        last bit.
        """
        if self.asked.fp16_features:
            given = [level.float() for level in levels]
            self.model.extract_feat = lambda images: given
        try:
            yield
        finally:
            vars(self.model).pop('extract_feat', None)

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

    def write(self, folder: Path, run: Run) -> dict[str, Any]:
        """Writes the driver, frames to run it on, and what was asked for."""
        shutil.copyfile(driver.__file__, folder / 'run.py')
        family, more = self.family, {}
        with keyframes(
            family.cfg, self.asked.frames, family.picture_size
        ) as found:
            write_frames(*found, folder / 'frames')
        if self.asked.int8:
            more['int8'] = self._write_int8(folder, self.asked.int8)
        if self.asked.hand_over:
            write_hand_over(
                folder / 'hand_over',
                list(self._recorded(run)),
                np.stack(list(self._pictures(CHAIN))),
            )
        return more

    def _pictures(self, count: int) -> Iterator[np.ndarray]:
        """Yields prepared pictures to calibrate on."""
        self.family.num_batches = count
        for sample in self.family.calibration_samples[:count]:
            yield sample['inputs']['img'][None].numpy()

    def _write_int8(self, folder: Path, count: int) -> dict[str, Any]:
        """Writes ``int8/``, a deployment of its own with the same heads."""
        pictures = list(self._pictures(count))
        inner = folder / 'int8'
        inner.mkdir()
        with blame('the image part cannot be quantized'):
            quantize_image(
                folder / 'image.onnx', inner / 'image.onnx', pictures
            )
        about = json.loads((folder / 'deploy.json').read_text())
        for name, part in about['parts'].items():
            if name != 'image':
                part['file'] = f'../{part["file"]}'
            part.pop('differences', None)
        part = about['parts']['image']
        part['mb'] = round((inner / 'image.onnx').stat().st_size / 1e6, 3)
        about.pop('latency_ms', None)
        save_json(about, inner / 'deploy.json')
        shutil.copyfile(driver.__file__, inner / 'run.py')
        picture = torch.from_numpy(pictures[0])
        float_part, small = (
            run_session(session(place / 'image.onnx'), {'img': picture})
            for place in (folder, inner)
        )
        differences = {
            name: relative_difference(float_part[name], small[name])
            for name in float_part
        }
        return dict(
            keyframes=len(pictures), mb=part['mb'], differences=differences
        )

    def _recorded(self, run: Run) -> Iterator[list[Ran]]:
        """Yields what each part was given and gave, frame by frame."""
        runs: list[Ran] = []

        def recording(name: str, given: driver.Arrays) -> driver.Arrays:
            (part,) = (part for part in self.parts if part.name == name)
            found = _on_arrays(run)(name, given)
            runs.append((name, {n: given[n] for n in part.inputs}, found))
            # The driver adds to what it gets.
            return dict(found)

        host = driver.Driver(self.facts, recording)
        for sample in self.samples:
            data = self.model.data_preprocessor(
                pseudo_collate([sample]), False
            )
            meta = data['data_samples'][0].metainfo
            runs.clear()
            host.step(
                data['inputs']['img'].numpy(), **_step_inputs(sample, meta)
            )
            yield list(runs)


def unrounded(found: Tensor, own: Tensor) -> Tensor:
    """Returns features of a file as float32, without the rounding to halves.

    A half counts as the value that it is the nearest one to, of all that the
    computation may have given; so what differs is the computation.

    Args:
        found: Of the file, float32 or float16.
        own: The model's, float32.
    """
    if found.dtype == own.dtype:
        return found
    # Half of the distance between two halves, also of the smallest.
    room = torch.maximum(own.abs() * 2**-11, own.new_tensor(2.0**-25))
    off = found.float() - own
    return own + off.sign() * (off.abs() - room).clamp(min=0)


def tied(outs: dict[str, Tensor], head: VADHead) -> bool:
    """Returns whether rounding may decide which lanes an agent reads.

    A lane is read if it is probable enough and near enough; what is that by
    1e-7 more or less turns a whole trajectory.

    Args:
        outs: Raw outputs of one frame.
        head: That computed them.
    """
    score = outs['map_all_cls_scores'][-1, 0].sigmoid().amax(-1)
    points = outs['map_all_pts_preds'][-1, 0]
    nearest = points.norm(dim=-1).argmin(-1)
    lanes = points[torch.arange(len(points)), nearest]
    low, high = torch.tensor(head.pc_range).view(2, 3)[:, :2]
    agents = outs['all_bbox_preds'][-1, 0, :, :2]
    distance = torch.cdist((agents - low) / (high - low), lanes)
    margins = (
        (score - head.map_threshold).abs().min(),
        (distance - head.lane_distance).abs().min(),
    )
    return bool(min(margins) < _TIE)


def turned(each: Compared) -> bool:
    """Returns whether an output of motion is another trajectory."""
    motion = any(word in each.output for word in ('traj', 'fut', 'plans'))
    return motion and (
        relative_difference(each.expected, each.found) > TOLERANCE
    )


def vad_path(
    family: Any, model: VAD, asked: VADExportOptions | None = None
) -> VADPath:
    """Returns what of a VAD is exported.

    Raises:
        ValueError: If the options do not fit the model, or a step of the
            test pipeline is one that the driver does not know.
    """
    asked, cfg = asked or VADExportOptions(), family.cfg
    head = model.pts_bbox_head
    _check(asked, head)
    with keyframes(cfg, CHAIN, family.picture_size) as (dataset, indices):
        samples = chained([dataset[i] for i in indices], CHAIN)
    data = model.data_preprocessor(pseudo_collate([samples[0]]), False)
    img, sample = data['inputs']['img'], data['data_samples'][0]
    facts = facts_of(cfg, head, asked)
    facts['image_size'] = list(img.shape[-2:])
    half = torch.float16 if asked.fp16_features else torch.float32
    image = ImagePart(model, half).eval()
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
            about_tensors(features),
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
                about_tensors(features),
                static=True,
                runs=asked.form != 'plugin',
            )
        )
    return VADPath(
        parts,
        facts,
        model=model,
        samples=samples,
        family=family,
        asked=asked,
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
