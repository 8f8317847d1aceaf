"""Runs VAD on the golden sets and measures how far it is from upstream."""

import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.optimize import linear_sum_assignment

from projects.VAD import VAD
from projects.VAD.model.transformer import FrameGeometry

ROOT = Path(__file__).resolve().parents[2]
KINDS = ('eval', 'intermediate')
# Scores closer than this may be ordered either way.
_SCORE_TIE = 5e-4


@dataclass(frozen=True)
class GoldenSet:
    """The files ``<name>_{eval,intermediate}.npz``, one of which may lack."""

    folder: Path
    name: str

    @property
    def size(self) -> str:
        """``tiny`` or ``base``."""
        return self.name.split('_')[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width), from a name like ``tiny_192x320``."""
        height, width = self.name.split('_')[1].split('x')
        return int(height), int(width)

    @property
    def tag(self) -> str:
        """The seed of weights and inputs."""
        return str(next(iter(self.arrays.values()))['tag'])

    @property
    def arrays(self) -> dict[str, np.lib.npyio.NpzFile]:
        """Kind of file to its arrays."""
        paths = {kind: self._path(kind) for kind in KINDS}
        return {k: np.load(p) for k, p in paths.items() if p.exists()}

    def _path(self, kind: str) -> Path:
        return self.folder / f'{self.name}_{kind}.npz'


def golden_sets(shared: Path, size: str) -> list[GoldenSet]:
    """All sets of a model size in ``shared/vad/golden``."""
    folder = shared / 'vad' / 'golden'
    names = {
        path.name.removesuffix(f'_{kind}.npz')
        for kind in KINDS
        for path in folder.glob(f'{size}_*_{kind}.npz')
    }
    return [GoldenSet(folder, name) for name in sorted(names)]


@cache
def recipe(shared: Path) -> ModuleType:
    """The module that rebuilds weights and inputs."""
    path = shared / 'vad' / 'golden' / 'weights.py'
    spec = importlib.util.spec_from_file_location('golden_weights', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(shared: Path, size: str) -> dict[str, list[int]]:
    """Name to shape of every entry of the official state dict, in order."""
    path = shared / 'vad' / f'state_dict_vad_{size}.json'
    return json.loads(path.read_text())


def build_vad(size: str, stage: str = 'stage_2') -> VAD:
    """The model of a shipped config, with untrained weights."""
    init_default_scope('mmdet3d')
    folder = ROOT / 'projects' / 'configs' / 'VAD'
    config = Config.fromfile(folder / f'VAD_{size}_{stage}.py')
    return MODELS.build(config.model)


def golden_vad(shared: Path, size: str, tag: str) -> VAD:
    """The model with the weights of a golden set, strictly loaded."""
    model = build_vad(size).eval()
    arrays = recipe(shared).build_state_dict(tag, manifest(shared, size))
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in arrays.items()},
        strict=True,
    )
    return model


def golden_frames(
    shared: Path, tag: str, image_size: tuple[int, int]
) -> list[tuple[dict, list[Det3DDataSample]]]:
    """``inputs`` and ``data_samples`` of each frame, in order."""
    frames = recipe(shared).build_frames(tag, *image_size)
    keys = ('lidar2img', 'can_bus', 'img_shape', 'scene_token')
    return [
        (
            dict(img=torch.from_numpy(frame['img'])[None]),
            [Det3DDataSample(metainfo={key: frame[key] for key in keys})],
        )
        for frame in frames
    ]


@torch.no_grad()
def run(
    shared: Path,
    golden: GoldenSet,
    change: Callable[[VAD], None] = lambda model: None,
) -> dict[str, np.ndarray]:
    """Everything that the set has, computed; ``f{t}_<name>`` to array.

    All have one sample, so batch-first and batch-second are the same once
    flattened.

    Args:
        shared: The shared folder.
        golden: The set.
        change: What is done to the model first.
    """
    model = golden_vad(shared, golden.size, golden.tag)
    change(model)
    found: dict[str, np.ndarray] = {}
    hooks = _record(model, found)
    result = {}
    frames = golden_frames(shared, golden.tag, golden.image_size)
    for t, (inputs, samples) in enumerate(frames):
        found.clear()
        outs = model.step(inputs, samples)
        found.update({name: x.numpy() for name, x in outs.items()})
        found.update(_decoded(model, outs))
        found.update(_projected(model, samples))
        # upstream encodes the lanes a second time for the plan
        found['lane_encoder_2nd'] = found['lane_encoder']
        result.update({f'f{t}_{name}': x for name, x in found.items()})
    for hook in hooks:
        hook.remove()
    return result


def _record(model: VAD, found: dict[str, np.ndarray]) -> list:
    """Hooks that keep the outputs of the modules of the golden sets."""
    head, transformer = model.pts_bbox_head, model.pts_bbox_head.transformer
    modules = {
        f'backbone_layer{i}': getattr(model.img_backbone, f'layer{i}')
        for i in range(1, 5)
    }
    for i, layer in enumerate(transformer.encoder.layers):
        modules[f'encoder_layer{i}'] = layer
        modules[f'encoder_layer{i}_tsa'] = layer.attentions[0]
        modules[f'encoder_layer{i}_sca'] = layer.attentions[1]
    for name in ('decoder', 'map_decoder'):
        for i, layer in enumerate(getattr(transformer, name).layers):
            modules[f'{name}_layer{i}'] = layer
    modules['can_bus_mlp'] = transformer.can_bus_mlp
    for name in (
        'motion_decoder',
        'lane_encoder',
        'motion_map_decoder',
        'agent_fus_mlp',
        'ego_agent_decoder',
        'ego_map_decoder',
    ):
        modules[name] = getattr(head, name)

    def keep(name):
        def hook(module, args, output):
            found[name] = output.numpy()

        return hook

    def keep_levels(module, args, output):
        found.update({f'fpn{k}': x.numpy() for k, x in enumerate(output)})

    def keep_positions(module, args, output):
        found['bev_pos'] = output.t().contiguous().numpy()

    hooks = [m.register_forward_hook(keep(n)) for n, m in modules.items()]
    return [
        *hooks,
        model.img_neck.register_forward_hook(keep_levels),
        head.positional_encoding.register_forward_hook(keep_positions),
    ]


def _projected(
    model: VAD, samples: list[Det3DDataSample]
) -> dict[str, np.ndarray]:
    head = model.pts_bbox_head
    geometry = FrameGeometry.from_metas(
        [sample.metainfo for sample in samples], torch.device('cpu')
    )
    points, seen = head.transformer.encoder.project(
        head.bev_shape, geometry.lidar2img, geometry.image_size
    )
    return dict(
        reference_points_cam=points.numpy(),
        bev_mask=seen.float().numpy(),
        bev_mask_count=seen.any(-1).sum((1, 2)).numpy(),
    )


def _decoded(
    model: VAD, outs: dict[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    boxes, lines = model.pts_bbox_head.decode(outs)[0]
    return dict(
        dec_boxes=boxes['boxes'].numpy(),
        dec_scores=boxes['scores'].numpy(),
        dec_labels=boxes['labels'].numpy(),
        dec_trajs=boxes['trajs'].numpy(),
        dec_map_boxes=lines['bboxes'].numpy(),
        dec_map_scores=lines['scores'].numpy(),
        dec_map_labels=lines['labels'].numpy(),
        dec_map_pts=lines['pts'].numpy(),
    )


@dataclass(frozen=True)
class Difference:
    """Between an array of ours and upstream's.

    Attributes:
        absolute: Largest absolute difference.
        relative: The same over the largest magnitude of the array.
        mean: Mean absolute difference.
    """

    absolute: float
    relative: float
    mean: float

    @classmethod
    def of(cls, ours: np.ndarray, theirs: np.ndarray) -> 'Difference':
        if ours.shape != theirs.shape:
            raise ValueError(f'shape {ours.shape}, not {theirs.shape}')
        gap = np.abs(ours.astype(np.float64) - theirs)
        scale = max(np.abs(theirs).max(), 1e-12)
        return cls(gap.max(), gap.max() / scale, gap.mean())


def differences(
    golden: GoldenSet, kind: str, result: dict[str, np.ndarray]
) -> Iterator[tuple[str, Difference]]:
    """Yields every array of a file with its difference to ``result``."""
    arrays = golden.arrays[kind]
    for key in arrays.files:
        frame, _, name = key.partition('_')
        if frame not in ('f0', 'f1') or name.startswith('dec_'):
            continue
        if key not in result or name.endswith(('_stride', '_shape')):
            continue
        theirs, ours = arrays[key], result[key]
        if name.startswith('all_traj'):
            ours = ours[:1]  # upstream's copies for the layers are not kept
        if f'{key}_stride' in arrays:
            stride = int(arrays[f'{key}_stride'])
            ours = ours.reshape(-1)[::stride]
            if name == 'reference_points_cam':
                seen = result[f'{frame}_bev_mask'].repeat(2, axis=-1)
                seen = seen.reshape(-1)[::stride] > 0
                ours, theirs = ours[seen], theirs[seen]
        yield key, Difference.of(ours, theirs)
    if kind == 'eval':
        for frame in ('f0', 'f1'):
            yield from _decoded_differences(arrays, result, frame)


def _decoded_differences(
    arrays: np.lib.npyio.NpzFile, result: dict[str, np.ndarray], frame: str
) -> Iterator[tuple[str, Difference]]:
    """Compares detections and polylines as sets."""
    for part, names in (
        ('dec_', ('boxes', 'scores', 'labels', 'trajs')),
        ('dec_map_', ('boxes', 'scores', 'labels', 'pts')),
    ):
        keys = {name: f'{frame}_{part}{name}' for name in names}
        theirs = {n: arrays[k].astype(np.float64) for n, k in keys.items()}
        ours = {n: result[k].astype(np.float64) for n, k in keys.items()}
        if part == 'dec_':
            for x in (ours, theirs):  # a turn is no difference
                yaw = x['boxes'][:, 6:7]
                x['boxes'] = np.concatenate(
                    (x['boxes'], np.sin(yaw), np.cos(yaw)), 1
                )
                x['boxes'] = np.delete(x['boxes'], 6, 1)
        lengths = [len(x['scores']) for x in (ours, theirs)]
        if lengths[0] != lengths[1]:
            raise ValueError(f'{keys["scores"]}: {lengths} rows')
        # Which of two near-ties is the last one chosen is left open.
        sure = theirs['scores'] > theirs['scores'].min() + _SCORE_TIE
        theirs = {name: x[sure] for name, x in theirs.items()}
        flat = [
            np.concatenate([x[n].reshape(len(x[n]), -1) for n in names], 1)
            for x in (ours, theirs)
        ]
        gap = np.abs(flat[0][:, None] - flat[1][None]).max(-1)
        rows, columns = linear_sum_assignment(gap)
        for name in names:
            found = Difference.of(ours[name][rows], theirs[name][columns])
            yield keys[name], found


def missing(
    golden: GoldenSet, kind: str, result: dict[str, np.ndarray]
) -> set[str]:
    """Names of golden arrays that ``differences`` says nothing about."""
    inputs = defaultdict(list)
    known = {
        'can_bus_abs',
        'can_bus_used',
        'ego_his_trajs',
        'ego_lcf_feat',
        'img_crc32',
        'lidar2img',
        'metric_names',
        'metric_values',
    }
    for key in golden.arrays[kind].files:
        frame, _, name = key.partition('_')
        if frame in ('f0', 'f1') and not name.endswith(('_stride', '_shape')):
            inputs[name].append(key)
    return set(inputs) - known - {key.partition('_')[2] for key in result}
