"""The main job on an embedded default: draw a small world, train VAD-nano on
it, prune 30 %, retrain, evaluate on scenes that were held out, draw and
report. Prints the commands that it runs; run by `make demo`.

Everything goes to one folder. Started again, it keeps what is finished and
goes on with what is not.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import check_values, option, read  # noqa: E402

CONFIG = 'projects/configs/VAD/VAD_nano_mini_world.py'
# What the table at the end shows.
METRICS = (
    ('VAD/plan_L2_avg_3s', 'planning L2, mean over 3 s (m)'),
    ('VAD/plan_L2_at_3s', 'planning L2 at 3 s (m)'),
    ('VAD/bev_center_ap_car', 'detection, BEV centre AP of cars'),
    ('VAD/bev_center_ap', 'the same, all classes'),
    ('VAD/map_mAP', 'map, Chamfer mAP'),
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How large the demo is."""

    output_dir: str = option('demo_out', 'where everything goes')
    pruning_ratio: float = option(
        0.3, 'fraction of the units to remove', least=0, below=1
    )
    scenes: int = option(40, 'scenes of the world', least=2)
    epochs: int = option(2, 'of the dense model', least=1)
    retrain_epochs: int = option(1, 'of the pruned model', least=1)

    def __post_init__(self) -> None:
        check_values(self)


def run(stage: str, *words: object, world: Path) -> None:
    """Runs one of the project's commands and shows it."""
    words = [str(w) for w in words]
    print(f'\n{stage}\n$ python {shlex.join(words)}', flush=True)
    environment = {**os.environ, 'MMPRUNE_MINI_WORLD': f'{world}/'}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(
            f'error: {words[0]} ended with exit code {done.returncode}; what '
            'is finished is kept, start the demo again to go on'
        )


def summary(report: dict) -> str:
    """Returns dense, pruned and recovered side by side."""
    metrics = report['metrics']
    columns = [n for n in ('dense', 'structured', 'recovered') if n in metrics]
    lines = [
        '\nOn scenes that were held out from training:',
        f'{"":34}' + ''.join(f'{name:>12}' for name in columns),
    ]
    for key, name in METRICS:
        values = [metrics[column].get(key) for column in columns]
        if all(value is not None for value in values):
            lines.append(f'{name:34}' + ''.join(f'{v:12.3f}' for v in values))
    models = report['models']
    for key, name in (('params', 'parameters'), ('macs', 'MACs')):
        small = models['structured'][key]
        values = [models['dense'][key], small, small][: len(columns)]
        lines.append(f'{name:34}' + ''.join(f'{v:12,}' for v in values))
    for key, name in METRICS[:2]:
        still = metrics['dense'].get(
            key.replace('VAD/plan', 'VAD/constant_velocity')
        )
        if still is not None:
            lines.append(f'A constant-velocity planner: {name} {still:.3f}')
    ratio = models['dense']['latency_ms'] / models['structured']['latency_ms']
    lines.append(f'The pruned model is {ratio:.2f} times as fast.')
    return '\n'.join(lines)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the demo."""
    (args,) = read(__doc__, (DemoOptions,), argv)
    start = time.time()
    folder = Path(args.output_dir).resolve()
    world, dense = folder / 'mini_world', folder / 'dense'

    def step(number: int, stage: str, *words: object) -> None:
        run(f'[{number}/6] {stage}', *words, world=world)

    if not world.is_dir():
        step(
            *(1, 'drawing a small town', 'tools/make_mini_world.py'),
            *(world, '--scenes', args.scenes),
        )
    if not (world / 'vad_nuscenes_infos_temporal_val.pkl').is_file():
        step(
            *(2, 'reading it as nuScenes', 'tools/create_data.py'),
            *('nuscenes', '--root-path', world),
        )
    if not (dense / f'epoch_{args.epochs}.pth').is_file():
        step(
            *(3, 'training the dense model'),
            *('tools/train.py', CONFIG, '--work-dir', dense, '--resume'),
            '--cfg-options',
            f'train_cfg.max_epochs={args.epochs}',
            # Evaluated with the pruned ones.
            f'train_cfg.val_interval={args.epochs + 1}',
            f'param_scheduler.1.T_max={args.epochs}',
        )
    weights = dense / 'latest.pth'
    pruned = folder / 'pruned'
    step(
        *(4, 'pruning it, training the result, testing all three'),
        *('tools/prune_and_retrain.py', CONFIG, weights),
        *('--pruning-ratio', args.pruning_ratio, '--mode', 'structured'),
        # What the loss misses least; weights that are small say little here.
        *('--importance', 'kd_grad'),
        # Convolutions of odd widths are slow on a CPU.
        *('--round-to', 8, '--fine-tune', '--retrain'),
        *('--fine-tune-epochs', args.retrain_epochs, '--latency-runs', 20),
        *('--output-dir', pruned, '--resume'),
    )
    recovered = pruned / 'retrained' / 'latest.pth'
    picture = folder / 'held_out_scene.gif'
    step(
        *(5, 'drawing a drive'),
        *('tools/visualize.py', CONFIG, recovered, '--dense', weights),
        *('--scene', 0, '--frames', 20, '--compact', '--out', picture),
    )
    step(6, 'writing the page', 'tools/report.py', pruned, '--frames', picture)
    print(summary(json.loads((pruned / 'report.json').read_text())))
    print(
        f'\nDone in {(time.time() - start) / 60:.1f} minutes. Look at:\n'
        f'  {pruned / "report.html"}\n'
        f'  {picture}  (dense beside pruned and retrained)\n'
        'Next, with your own weights:\n'
        '  python tools/prune_and_retrain.py '
        'projects/configs/VAD/VAD_tiny_stage_2.py ckpts/VAD_tiny.pth '
        '--pruning-ratio 0.3 --output-dir ckpts/pruned'
    )


if __name__ == '__main__':
    main()
