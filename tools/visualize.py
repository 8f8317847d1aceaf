"""Draws what VAD sees and plans on one keyframe, as one PNG.

    python tools/visualize.py projects/configs/VAD/VAD_tiny_stage_2.py \\
        ckpts/pruned/vad_structured_pruned.pth --dense ckpts/VAD_tiny.pth

Six cameras with boxes, and the bird's-eye view with boxes, trajectories, map
lines and the plan; with --dense the dense model's row above the pruned one's.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.registry import DATASETS, init_default_scope  # noqa: E402
from mmengine.structures import BaseDataElement  # noqa: E402
from torch import nn  # noqa: E402

from mmprune.cli import fail_in_one_sentence, load_config  # noqa: E402
from mmprune.models.loading import load_model  # noqa: E402
from projects.VAD.drawing_layers import (  # noqa: E402
    Layer,
    prediction_layer,
    truth_layer,
)
from projects.VAD.keyframe_dataset import (  # noqa: E402
    NuScenesKeyframeDataset,
    set_info_file,
)
from projects.VAD.visualize import draw_keyframe  # noqa: E402

# Frames that the temporal memory is given before the one that is drawn.
MEMORY_FRAMES = 3


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
    parser = argparse.ArgumentParser(
        description="Draw a keyframe and VAD's output into one PNG."
    )
    add = parser.add_argument
    add('config', help='config with a test_dataloader')
    add('checkpoint', nargs='?', help='dense or pruned checkpoint')
    add('--dense', help='checkpoint of the dense model, for comparison')
    add('--ann-file', help="mmdet3d info file, instead of the config's")
    add('--out', default='vad.png', help='the PNG (default: %(default)s)')
    add('--index', type=int, default=0, help='which keyframe (default: 0)')
    add('--score-thr', type=float, default=0.3, help='default: %(default)s')
    add('--no-gt', action='store_true', help='leave out the ground truth')
    add('--gt-only', action='store_true', help='ground truth, no model')
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
    out = Path(args.out)
    if out.suffix.lower() != '.png' or out.is_dir():
        raise ValueError(f'--out must name a PNG file, found {out}.')
    if not os.access(out.resolve().parent, os.W_OK):
        raise ValueError(
            f'cannot write {out}: there is no writable folder '
            f'{out.resolve().parent}; make it or choose another.'
        )
    for path in (args.config, args.checkpoint, args.dense):
        if path and not Path(path).is_file():
            raise ValueError(f'{path} does not exist; check the path.')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(
            f'--device {args.device} was asked for, and there is no CUDA '
            'here; use --device cpu.'
        )


def _draw(cfg: Config, args: argparse.Namespace) -> None:
    dataset = _build_dataset(cfg, args)
    results = dataset.get_data_info(args.index)
    truth = [] if args.no_gt else [truth_layer(results)]
    panels = []
    for title, checkpoint in _models(args):
        model = load_model(
            cfg, checkpoint, args.device, trust=args.trust_checkpoint
        )
        predicted = prediction_layer(
            _predict(model, dataset, args.index), args.score_thr
        )
        panels.append((_title(title, predicted, args), [*truth, predicted]))
    draw_keyframe(results, panels or [('ground truth', truth)], args.out)


def _build_dataset(
    cfg: Config, args: argparse.Namespace
) -> NuScenesKeyframeDataset:
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    if not str(dataset.get('type')).endswith('NuScenesKeyframeDataset'):
        raise ValueError(
            f'{args.config} tests on {dataset.get("type")}, expected a '
            'NuScenesKeyframeDataset; use a config of VAD.'
        )
    init_default_scope(cfg.get('default_scope', 'mmdet3d'))
    dataset = DATASETS.build(dataset)
    if not 0 <= args.index < len(dataset):
        raise ValueError(
            f'--index {args.index} was asked for, and the info file has the '
            f'keyframes 0 to {len(dataset) - 1}.'
        )
    return dataset


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
def _predict(
    model: nn.Module, dataset: NuScenesKeyframeDataset, index: int
) -> BaseDataElement:
    """Runs the scene's frames up to the asked one, which is returned."""
    scene = dataset.get_data_info(index)['scene_token']
    first = index
    while (
        first > max(0, index - MEMORY_FRAMES)
        and dataset.get_data_info(first - 1)['scene_token'] == scene
    ):
        first -= 1
    for i in range(first, index + 1):
        samples = model.test_step(pseudo_collate([dataset[i]]))
    return samples[0]


if __name__ == '__main__':
    main()
