"""What ``tools/visualize.py`` does, with its options."""

import copy
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch import nn

from mmprune.atomic_file import write_whole
from mmprune.checkpoints.loading import load_model
from mmprune.errors import blame
from mmprune.run.cli import ProgressBar, load_config
from mmprune.run.folder import begun
from mmprune.run.launch import check_device
from projects.VAD.data.config_datasets import set_info_file
from projects.VAD.data.keyframe_dataset import NuScenesKeyframeDataset
from projects.VAD.drawing.hero import draw_side_by_side
from projects.VAD.drawing.keyframe import draw_keyframe, render_keyframe
from projects.VAD.drawing.layers import Layer, prediction_layer, truth_layer
from projects.VAD.drawing.sequence import sequence_kind, write_sequence

# Frames that the temporal memory is given before the first that is drawn.
MEMORY_FRAMES = 3
# Of a sequence, dots per inch: 1908 pixels wide, a GIF smaller.
SEQUENCE_DPI = {'mp4': 90, 'folder': 90, 'gif': 60}
Panels = list[tuple[str, list[Layer]]]


def draw(args: Any) -> None:
    """Draws what was asked for.

    Args:
        args: The ``PictureOptions`` of the command.

    Raises:
        ValueError: If it cannot be drawn.
    """
    _check(args)
    cfg = load_config(args.config)
    if args.ann_file:
        set_info_file(cfg, args.ann_file)
    _draw(cfg, args)


def _check(args: Any) -> None:
    """Refuses what cannot work before anything is loaded."""
    several = args.scene is not None or (args.frames or 1) > 1
    if sequence_kind(args.out) == 'png' and several:
        raise ValueError(
            f'{args.out} holds one keyframe, and several were asked for; '
            'name a GIF, an MP4 or a folder with --out.'
        )
    parent = Path(args.out).resolve().parent
    if not os.access(parent, os.W_OK):
        raise ValueError(
            f'cannot write {args.out}: there is no writable folder '
            f'{parent}; make it or choose another.'
        )
    for path in (args.config, args.checkpoint, args.dense):
        if path and not Path(path).is_file():
            raise ValueError(f'{path} does not exist; check the path.')
    check_device(args.device)


def _draw(cfg: Config, args: Any) -> None:
    with blame(f'the test data of {args.config} cannot be read', cfg):
        dataset = _build_dataset(cfg, args)
    indices = _indices(dataset, args)
    models = [
        (
            title,
            load_model(
                cfg, checkpoint, args.device, trust=args.trust_checkpoint
            ),
        )
        for title, checkpoint in _models(args)
    ]
    with (
        begun(Path(args.out)),
        blame(f'the keyframes of {args.config} cannot be drawn'),
    ):
        _write(dataset, models, indices, args)


def _write(
    dataset: NuScenesKeyframeDataset,
    models: Sequence[tuple[str, nn.Module]],
    indices: Sequence[int],
    args: Any,
) -> None:
    if sequence_kind(args.out) == 'png':
        ((results, panels),) = _keyframes(dataset, models, indices, args)
        if args.compact:
            stream = io.BytesIO()
            Image.fromarray(_compact(results, panels)).save(stream, 'PNG')
            write_whole(args.out, stream.getvalue())
        else:
            draw_keyframe(results, panels, args.out)
        return
    with ProgressBar(len(indices), timed=True) as progress:
        write_sequence(
            _frames(dataset, models, indices, args, progress),
            args.out,
            args.fps,
            f'{len(indices)} keyframes in order: six cameras and the '
            "bird's-eye view" + ''.join(f', {title}' for title, _ in models),
        )


def _frames(
    dataset: NuScenesKeyframeDataset,
    models: Sequence[tuple[str, nn.Module]],
    indices: Sequence[int],
    args: Any,
    progress: ProgressBar,
) -> Iterator[np.ndarray]:
    dpi = SEQUENCE_DPI[sequence_kind(args.out)]
    for number, (results, panels) in enumerate(
        _keyframes(dataset, models, indices, args), 1
    ):
        progress(f'keyframe {indices[number - 1]}')
        if args.compact:
            yield _compact(results, panels)
            continue
        place = f'{number} of {len(indices)}: '
        panels = [(place + title, layers) for title, layers in panels]
        yield render_keyframe(results, panels, dpi)


def _compact(results: dict, panels: Panels) -> np.ndarray:
    truth = [la for _, layers in panels for la in layers if la.dashed]
    return draw_side_by_side(
        results,
        truth[0] if truth else None,
        [(title.split(':')[0], layers[-1]) for title, layers in panels],
    )


def _build_dataset(cfg: Config, args: Any) -> NuScenesKeyframeDataset:
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(str(dataset.get('type')))
    if not (
        isinstance(kind, type) and issubclass(kind, NuScenesKeyframeDataset)
    ):
        raise ValueError(
            f'{args.config} tests on {dataset.get("type")}, expected a '
            'NuScenesKeyframeDataset or one derived from it; use a config '
            'of VAD.'
        )
    return DATASETS.build(dataset)


def _indices(dataset: NuScenesKeyframeDataset, args: Any) -> list[int]:
    """The keyframes to draw; those of a sequence in one scene or several."""
    if args.scene is not None:
        return _scene_indices(dataset, args.scene)[: args.frames]
    first = args.index or 0
    if not 0 <= first < len(dataset):
        raise ValueError(
            f'--index {first} was asked for, and the info file has the '
            f'keyframes 0 to {len(dataset) - 1}.'
        )
    last = first + (args.frames or 1)
    if last > len(dataset):
        raise ValueError(
            f'--frames {args.frames} from keyframe {first} on were asked '
            f'for, and the info file ends with {len(dataset) - 1}; ask for '
            f'at most {len(dataset) - first}.'
        )
    return list(range(first, last))


def _scene_indices(dataset: NuScenesKeyframeDataset, asked: str) -> list[int]:
    scenes: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        scenes.setdefault(info['scene_token'], []).append(index)
        names[info.get('scene_name', info['scene_token'])] = info[
            'scene_token'
        ]
    token = names.get(asked, asked)
    if token not in scenes and asked.isdigit() and int(asked) < len(scenes):
        token = list(scenes)[int(asked)]
    if token not in scenes:
        raise ValueError(
            f'--scene {asked} was asked for, and the info file has '
            f'{len(scenes)} scenes: {", ".join(list(names)[:5])}'
            f'{", ..." if len(names) > 5 else ""}; name one of them or give '
            f'a number from 0 to {len(scenes) - 1}.'
        )
    return scenes[token]


def _models(args: Any) -> list[tuple[str, str]]:
    if args.gt_only:
        return []
    if args.dense:
        return [('dense', args.dense), ('pruned', args.checkpoint)]
    return [(Path(args.checkpoint).name, args.checkpoint)]


def _title(name: str, layer: Layer, args: Any) -> str:
    return (
        f'{name}: {len(layer.corners)} boxes and {len(layer.lines)} map '
        f'lines with a score of at least {args.score_thr:g}'
    )


@torch.no_grad()
def _keyframes(
    dataset: NuScenesKeyframeDataset,
    models: Sequence[tuple[str, nn.Module]],
    indices: Sequence[int],
    args: Any,
) -> Iterator[tuple[dict, Panels]]:
    """Yields each keyframe with its rows.

    The models see the frames once and in order, so that their memory is
    that of a drive; before the first one those that lead up to it.
    """
    for index in _leading(dataset, indices[0]) if models else ():
        data = dataset[index]
        for _, model in models:
            model.test_step(pseudo_collate([copy.deepcopy(data)]))
    for index in indices:
        results = dataset.get_data_info(index)
        truth = [] if args.no_gt else [truth_layer(results)]
        panels = []
        data = dataset[index] if models else None
        for title, model in models:
            (sample,) = model.test_step(pseudo_collate([copy.deepcopy(data)]))
            predicted = prediction_layer(sample, args.score_thr)
            panels.append(
                (_title(title, predicted, args), [*truth, predicted])
            )
        yield results, panels or [('ground truth', truth)]


def _leading(dataset: NuScenesKeyframeDataset, index: int) -> range:
    """Up to ``MEMORY_FRAMES`` keyframes of the scene before this one."""
    scene = dataset.get_data_info(index)['scene_token']
    first = index
    while (
        first > max(0, index - MEMORY_FRAMES)
        and dataset.get_data_info(first - 1)['scene_token'] == scene
    ):
        first -= 1
    return range(first, index)
