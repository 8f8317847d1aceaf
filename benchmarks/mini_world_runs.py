"""Runs on the mini world: a dense model, trained as long, pruned, recovered.

What is finished is kept, so that each can be started again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.atomic_file import save_json  # noqa: E402

INFOS = 'vad_nuscenes_infos_temporal_{}.pkl'


def run(world: Path, *words: object) -> None:
    """Runs one of the commands of the project."""
    words = [str(word) for word in words]
    print('$ python', *words, flush=True)
    environment = {**os.environ, 'MMPRUNE_MINI_WORLD': f'{world}/'}
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, check=True
    )


def keep_settings(folder: Path, **asked: object) -> None:
    """Notes how the runs of a folder are made, the first time.

    Raises:
        SystemExit: If runs were made there in another way.
    """
    file = folder / 'settings.json'
    asked = {name: str(value) for name, value in asked.items()}
    made = json.loads(file.read_text()) if file.is_file() else asked
    if made != asked:
        sys.exit(
            f'{folder} was made with {made}, asked is {asked}; choose another '
            '--out'
        )
    save_json(asked, file)


def draw(world: Path, scenes: int) -> Path:
    """Returns the folder of the world, drawn and read as nuScenes."""
    if not world.is_dir():
        run(world, 'tools/make_mini_world.py', world, '--scenes', scenes)
    if not (world / INFOS.format('val')).is_file():
        run(
            *(world, 'tools/create_data.py', 'nuscenes'),
            *('--root-path', world),
        )
    return world


def dense_and_recovered(
    folder: Path,
    world: Path,
    config: str,
    seed: int,
    epochs: int,
    retrain_epochs: int,
    pruning_ratio: float,
    options: Sequence[object],
    settings: Sequence[str] = (),
) -> dict[str, dict]:
    """Returns the reports of ``longer``, ``recovered`` and ``distilled``.

    The dense model of each is the same; ``longer`` is a pruning of nothing.

    Args:
        folder: Where they go.
        world: From :func:`draw`.
        config: The dense model's, whose second scheduler is a cosine.
        seed: Of the trainings.
        epochs: Of the dense model.
        retrain_epochs: Of what follows it.
        pruning_ratio: What the two others lose.
        options: Further words of the pruning command.
        settings: Further config options of it, KEY=VALUE.
    """
    dense = folder / 'dense'
    options_of_all = (
        f'randomness.seed={seed}',
        # All are evaluated in the end.
        f'train_cfg.val_interval={max(epochs, retrain_epochs) + 1}',
    )
    if not (dense / f'epoch_{epochs}.pth').is_file():
        run(
            *(world, 'tools/train.py', config, '--work-dir', dense),
            *('--resume', '--cfg-options', *options_of_all),
            f'train_cfg.max_epochs={epochs}',
            f'param_scheduler.1.T_max={epochs}',
        )
    reports = {}
    for name, words in (
        ('longer', ('--pruning-ratio', 0)),
        ('recovered', ('--pruning-ratio', pruning_ratio)),
        ('distilled', ('--pruning-ratio', pruning_ratio, '--distill')),
    ):
        report = folder / name / 'report.json'
        if not report.is_file():
            run(
                *(world, 'tools/prune_and_retrain.py', config),
                *(dense / 'latest.pth', *words, '--mode', 'structured'),
                *(*options, '--fine-tune', '--retrain', '--seed', seed),
                *('--fine-tune-epochs', retrain_epochs),
                *('--output-dir', folder / name, '--resume'),
                *('--cfg-options', *options_of_all, *settings),
            )
        reports[name] = json.loads(report.read_text())
    return reports


def columns(reports: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Returns the metrics of each model in the reports."""
    metrics = {name: report['metrics'] for name, report in reports.items()}
    return {
        'dense': metrics['recovered']['dense'],
        'dense, longer': metrics['longer']['recovered'],
        'pruned': metrics['recovered']['structured'],
        'recovered': metrics['recovered']['recovered'],
        'distilled': metrics['distilled']['recovered'],
    }
