"""Draws what VAD sees and plans: one keyframe, or a drive as GIF or MP4.

    python tools/visualize.py projects/configs/VAD/VAD_tiny_stage_2.py \\
        ckpts/pruned/vad_structured_pruned.pth --dense ckpts/VAD_tiny.pth
    python tools/visualize.py ... --scene 0 --out drive.gif

Six cameras with boxes, and the bird's-eye view with boxes, trajectories, map
lines and the plan; with --dense the dense model's row above the pruned one's.
With --compact the front camera alone, the models side by side.
"""

import argparse
import copy
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.registry import DATASETS, init_default_scope  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

from mmprune.atomic_file import write_whole  # noqa: E402
from mmprune.checkpoints.loading import load_model  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    ProgressBar,
    fail_in_one_sentence,
    load_config,
)
from mmprune.run.flags import make_parser  # noqa: E402
from projects.VAD.data.config_datasets import set_info_file  # noqa: E402
from projects.VAD.data.keyframe_dataset import (  # noqa: E402
    NuScenesKeyframeDataset,
)
from projects.VAD.drawing.hero import draw_side_by_side  # noqa: E402
from projects.VAD.drawing.keyframe import (  # noqa: E402
    draw_keyframe,
    render_keyframe,
)
from projects.VAD.drawing.layers import (  # noqa: E402
    Layer,
    prediction_layer,
    truth_layer,
)
from projects.VAD.drawing.sequence import sequence_kind, write_sequence  # noqa: E402

# Frames that the temporal memory is given before the first that is drawn.
MEMORY_FRAMES = 3
# Of a sequence, dots per inch: 1908 pixels wide, a GIF smaller.
SEQUENCE_DPI = {'mp4': 90, 'folder': 90, 'gif': 60}
Panels = list[tuple[str, list[Layer]]]


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command; prints the path of the picture."""
    args = _parse(argv)
    _check(args)
    cfg = load_config(args.config)
    if args.ann_file:
        set_info_file(cfg, args.ann_file)
    _draw(cfg, args)
    print(args.out)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser("Draw keyframes and VAD's output: PNG, GIF or MP4.")
    add = parser.add_argument
    add('config', help='config with a test_dataloader')
    add('checkpoint', nargs='?', help='dense or pruned checkpoint')
    add('--dense', help='checkpoint of the dense model, for comparison')
    add('--ann-file', help="info file instead of the config's")
    add(
        '--out',
        default='vad.png',
        help='a PNG for one keyframe; a GIF, an MP4 or a folder of PNGs for '
        'a sequence (default: %(default)s)',
    )
    add('--index', type=int, help='which keyframe, or the first (default: 0)')
    add('--frames', type=int, help='how many keyframes to draw, in order')
    add('--scene', help='draw a scene: its token, name or number from 0')
    add('--fps', type=float, default=2.0, help='frames per second')
    add('--score-thr', type=float, default=0.3, help='least score of a box')
    add('--no-gt', action='store_true', help='leave out the ground truth')
    add('--gt-only', action='store_true', help='ground truth, no model')
    add(
        '--compact',
        action='store_true',
        help='front camera and view from above, models side by side: '
        'readable at the width of a README',
    )
    add('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    add(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle whatever the checkpoints hold',
    )
    # Intermixed: the optional checkpoint may come after a flag.
    return parser.parse_intermixed_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot work before anything is loaded."""
    if args.gt_only and (args.checkpoint or args.dense or args.no_gt):
        raise ValueError(
            '--gt-only draws no model and only ground truth; leave out the '
            'checkpoints and --no-gt.'
        )
    if not args.gt_only and not args.checkpoint:
        raise ValueError('no checkpoint is given; name one or use --gt-only.')
    if not 0 <= args.score_thr <= 1:
        raise ValueError(
            f'--score-thr must lie in [0, 1], found {args.score_thr}.'
        )
    _check_sequence(args)
    parent = Path(args.out).resolve().parent
    if not os.access(parent, os.W_OK):
        raise ValueError(
            f'cannot write {args.out}: there is no writable folder '
            f'{parent}; make it or choose another.'
        )
    for path in (args.config, args.checkpoint, args.dense):
        if path and not Path(path).is_file():
            raise ValueError(f'{path} does not exist; check the path.')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(
            f'--device {args.device} was asked for, and there is no CUDA '
            'here; use --device cpu.'
        )


def _check_sequence(args: argparse.Namespace) -> None:
    kind = sequence_kind(args.out)
    if args.frames is not None and args.frames < 1:
        raise ValueError(f'--frames must be at least 1, found {args.frames}.')
    if not 0.1 <= args.fps <= 50:
        raise ValueError(f'--fps must lie in [0.1, 50], found {args.fps:g}.')
    if args.scene is not None and args.index is not None:
        raise ValueError(
            '--scene begins with its first keyframe; leave out --index or '
            '--scene.'
        )
    several = args.scene is not None or (args.frames or 1) > 1
    if kind == 'png' and several:
        raise ValueError(
            f'{args.out} holds one keyframe, and several were asked for; '
            'name a GIF, an MP4 or a folder with --out.'
        )


def _draw(cfg: Config, args: argparse.Namespace) -> None:
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
    kind = sequence_kind(args.out)
    if kind == 'png':
        ((results, panels),) = _keyframes(dataset, models, indices, args)
        if args.compact:
            stream = io.BytesIO()
            Image.fromarray(_compact(results, panels)).save(stream, 'PNG')
            write_whole(args.out, stream.getvalue())
        else:
            draw_keyframe(results, panels, args.out)
        return
    with ProgressBar(len(indices)) as progress:
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
    args: argparse.Namespace,
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


def _build_dataset(
    cfg: Config, args: argparse.Namespace
) -> NuScenesKeyframeDataset:
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
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


def _indices(
    dataset: NuScenesKeyframeDataset, args: argparse.Namespace
) -> list[int]:
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


def _models(args: argparse.Namespace) -> list[tuple[str, str]]:
    if args.gt_only:
        return []
    if args.dense:
        return [('dense', args.dense), ('pruned', args.checkpoint)]
    return [(Path(args.checkpoint).name, args.checkpoint)]


def _title(name: str, layer: Layer, args: argparse.Namespace) -> str:
    return (
        f'{name}: {len(layer.corners)} boxes and {len(layer.lines)} map '
        f'lines with a score of at least {args.score_thr:g}'
    )


@torch.no_grad()
def _keyframes(
    dataset: NuScenesKeyframeDataset,
    models: Sequence[tuple[str, nn.Module]],
    indices: Sequence[int],
    args: argparse.Namespace,
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


if __name__ == '__main__':
    main()
