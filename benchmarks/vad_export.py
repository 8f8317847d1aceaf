"""VAD as ONNX files: differences, sizes, seconds, latency, lanes and cells.

Exports VAD dense and pruned at half of its multiply-adds, with the weights of
the golden sets (tiny, base) or of a checkpoint (nano), and prints per output
the largest difference of onnxruntime to PyTorch over three chained frames,
relative to the output's scale; then medians of both in turns.

    python benchmarks/vad_export.py [--sizes nano tiny base] [--form gather]
    python benchmarks/vad_export.py --sizes nano --checkpoint nano.pth

Exits with 1 if an export is refused.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'projects')]

import mmprune  # noqa: E402, F401, I001  (first: serves mmcv's ops)

from golden import golden_frames, golden_sets, golden_vad  # noqa: E402

from mmprune.checkpoints.loading import build_model, load_model  # noqa: E402
from mmprune.cost import measure_latencies  # noqa: E402
from mmprune.family import build_family  # noqa: E402
from mmprune.memory import keep_freed  # noqa: E402
from mmprune.onnx_file import run_session, session  # noqa: E402
from mmprune.run.cli import load_config  # noqa: E402
from mmprune.run.export import export  # noqa: E402
from mmprune.run.options import PruningOptions  # noqa: E402
from mmprune.run.workflow import prune  # noqa: E402
from projects.VAD.pruning.samples import example_dataset  # noqa: E402

CONFIGS = ROOT / 'projects' / 'configs' / 'VAD'
FILES = dict(
    nano='VAD_nano_mini_world.py',
    tiny='VAD_tiny_stage_2.py',
    base='VAD_base_stage_2.py',
)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--shared',
        type=Path,
        default=os.environ.get('MMPRUNE_SHARED', ROOT.parent / 'shared'),
        help='folder that holds vad/golden',
    )
    parser.add_argument(
        '--sizes', nargs='+', choices=tuple(FILES), default=['nano', 'tiny']
    )
    parser.add_argument('--checkpoint', help='weights of nano')
    parser.add_argument('--form', default='gridsample')
    parser.add_argument('--lanes', type=int)
    parser.add_argument('--cells', type=int)
    parser.add_argument(
        '--int8', type=int, help='keyframes to calibrate eight bits on'
    )
    parser.add_argument('--runs', type=int, default=5, help='0 for no latency')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument(
        '--count',
        type=int,
        default=0,
        help='frames of the mini world whose lanes and cells are counted',
    )
    names = ['dense', 'pruned']
    parser.add_argument('--only', nargs='+', choices=names, default=names)
    parser.add_argument('--json', type=Path, help='where results are added')
    return parser.parse_args()


def dense_model(size: str, cfg: Any, args: argparse.Namespace) -> nn.Module:
    """Returns the model with weights that do something."""
    if size == 'nano':
        if args.checkpoint:
            return load_model(cfg, args.checkpoint)
        torch.manual_seed(0)
        model = build_model(cfg)
        model.init_weights()
        return model.eval()
    return golden_vad(
        args.shared, size, golden_sets(args.shared, size)[-1].tag
    )


def measure(
    size: str, name: str, model: nn.Module, cfg: Any, args: argparse.Namespace
) -> dict:
    """Exports one model; returns and prints what was measured."""
    family = build_family(cfg)
    asked = family.EXPORT_OPTIONS(
        form=args.form, lanes=args.lanes, cells=args.cells, int8=args.int8
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        summary = export(
            cfg,
            model,
            Path(folder) / 'deploy',
            options=asked,
            family=family,
            latency_runs=0,
            log=partial(print, file=sys.stderr, flush=True),
        )
        seconds = time.perf_counter() - start
        print(f'\n## {size}, {name}: {seconds:.0f} s in all')
        print('| output | image | head_first | head |\n|---|---|---|---|')
        parts = summary['parts']
        names = dict.fromkeys(
            n for p in parts.values() for n in p.get('differences', {})
        )
        for output in names:
            row = [
                p.get('differences', {}).get(output) for p in parts.values()
            ]
            cells = ' | '.join('' if d is None else f'{d:.1e}' for d in row)
            print(f'| {output} | {cells} |')
        if args.int8:
            print(f'int8: {summary["int8"]}')
        for part, each in parts.items():
            print(f'{part}: {each["mb"]} MB, {each["seconds"]} s to write')
        found = dict(size=size, model=name, seconds=seconds, **summary)
        if args.runs and args.form != 'plugin':
            found['latency_ms'] = latencies(
                cfg, family, model, Path(folder) / 'deploy', parts, args
            )
        return found


def latencies(
    cfg: Any,
    family: Any,
    model: nn.Module,
    folder: Path,
    parts: dict,
    args: argparse.Namespace,
) -> dict:
    """Medians of each part by onnxruntime and by PyTorch, in turns."""
    path = family.tensor_path(model)
    inputs = {part.name: part.inputs for part in path.parts}
    # PyTorch runs its own model: two frames, of which the second is timed.
    data = model.data_preprocessor(pseudo_collate([path.samples[0]]), False)
    further = model.data_preprocessor(pseudo_collate([path.samples[1]]), False)
    model.forget()
    with torch.no_grad():
        features = model.extract_feat(inputs['image']['img'])
        model.step(data['inputs'], data['data_samples'])
    memory, extract = model._memory, model.extract_feat

    def torch_head() -> None:
        model._memory = memory
        model.extract_feat = lambda _: features
        model.step(further['inputs'], further['data_samples'])
        model.extract_feat = extract

    found = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        image, head = (
            session(folder / parts[name]['file'], threads)
            for name in ('image', 'head')
        )
        calls = {
            'image onnxruntime': partial(run_session, image, inputs['image']),
            'image torch': partial(extract, inputs['image']['img']),
            'head onnxruntime': partial(run_session, head, inputs['head']),
            'head torch': torch_head,
        }
        if args.int8:
            small = session(folder / 'int8' / 'image.onnx', threads)
            call = partial(run_session, small, inputs['image'])
            calls['image onnxruntime, int8'] = call
        found[str(threads)] = measure_latencies(calls, args.runs)
        row = found[str(threads)]
        texts = [f'{name} {ms:.1f} ms' for name, ms in row.items()]
        print(f'{threads} thread{"s"[: threads > 1]}: {", ".join(texts)}')
    model.forget()
    return found


def counted(
    model: nn.Module, inputs: dict, samples: list
) -> tuple[int, list[int]]:
    """Returns the lanes that a frame has, and the cells of each camera."""
    head = model.pts_bbox_head
    with torch.no_grad():
        outs = model.step(inputs, samples)
    score = outs['map_all_cls_scores'][-1].sigmoid().amax(-1)
    lidar2img = torch.tensor(np.array(samples[0].metainfo['lidar2img']))
    _, seen = head.transformer.encoder.project(
        head.bev_shape, lidar2img[None].float(), inputs['img'].shape[-2:]
    )
    lanes = int((score > head.map_threshold).sum())
    return lanes, seen.any(-1).sum((1, 2)).tolist()


def golden_counts(size: str, args: argparse.Namespace) -> None:
    """Prints lanes and cells of the golden frames."""
    for golden in golden_sets(args.shared, size):
        model = golden_vad(args.shared, size, golden.tag)
        frames = golden_frames(args.shared, golden.tag, golden.image_size)
        for number, frame in enumerate(frames):
            lanes, cells = counted(model, *frame)
            print(
                f'{golden.name}, frame {number}: {lanes} lanes, cells by '
                f'camera {cells}'
            )


def data_counts(cfg: Any, model: nn.Module, most: int) -> None:
    """Prints lanes and cells over the config's test data."""
    from mmdet3d.registry import DATASETS

    dataset = DATASETS.build(example_dataset(cfg))
    found = []
    for i in range(min(most, len(dataset))):
        data = pseudo_collate([dataset[i]])
        found.append(counted(model, *model.data_preprocessor(data).values()))
    model.forget()
    lanes = np.array([lanes for lanes, _ in found])
    cells = np.array([max(cells) for _, cells in found])
    for name, values in (('lanes', lanes), ('cells of a camera', cells)):
        middle, high = np.percentile(values, [50, 95])
        print(
            f'{len(found)} frames: {name} least {values.min()}, median '
            f'{middle:.0f}, 95 % {high:.0f}, most {values.max()}'
        )


def main() -> None:
    """Prints a section per model."""
    args = parse_args()
    if args.runs:  # as the commands do; it also keeps more memory
        keep_freed()
    results = []
    for size in args.sizes:
        cfg = load_config(str(CONFIGS / FILES[size]))
        build_family(cfg)
        model = dense_model(size, cfg, args)
        if size != 'nano':
            golden_counts(size, args)
        elif args.count:
            data_counts(cfg, model, args.count)
        for name in args.only:
            if name == 'pruned':
                options = PruningOptions(
                    sparsity=0.5,
                    target='macs',
                    mode='structured',
                    latency_runs=0,
                    prune_frozen=True,
                )
                model = prune(cfg, model, options).models['structured']
            results.append(measure(size, name, model, cfg, args))
            gc.collect()
            if args.json:
                text = json.dumps(results, indent=1, default=str)
                args.json.write_text(text)


if __name__ == '__main__':
    main()
