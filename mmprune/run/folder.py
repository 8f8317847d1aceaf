"""The folder of a run: checked before the work, written whole after it."""

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..atomic_file import write_whole
from ..checkpoints.loading import name_imports
from ..plan import PruningPlan
from ..version import __version__
from .report import markdown, save_json

# What a run writes; with --force all of an older run goes.
_RUN = re.compile(
    r'(.+_)?pruned\.(pth|py)|plan\.json|report\.(json|md|html)'
    r'|(fine_tuned|retrained)(_unstructured)?'
)
_BESIDE = '.writing-'
# Options that change how a run is done and not what comes out.
_FREE = ('device', 'latency_runs', 'trust_checkpoint')


def check_output(folder: Path, force: bool) -> None:
    """Refuses a folder that cannot be written or holds another run.

    Raises:
        ValueError: If so; nothing is created here.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f'{existing} is a file; give a folder to write to')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f'{folder} cannot be written: {existing} is read-only for this '
            'user; choose another --output-dir'
        )
    found = sorted(p.name for p in folder.glob('*') if _RUN.fullmatch(p.name))
    if found and not force:
        raise ValueError(
            f'{folder} holds another run ({", ".join(found[:3])}); choose '
            'another --output-dir or overwrite it with --force'
        )


def finished_run(folder: Path, asked: dict) -> dict | None:
    """Returns the report of a finished pruning, ``None`` if there is none.

    Args:
        folder: Where it was written.
        asked: What is asked for now, as entries of the report.

    Raises:
        ValueError: If the run there was done with other options.
    """
    path = folder / 'report.json'
    if not path.exists():
        return None
    report = json.loads(path.read_text())
    asked = json.loads(json.dumps(asked))
    for key, wanted in asked.items():
        found = report.get(key)
        if isinstance(wanted, dict) and isinstance(found, dict):
            differ = [
                f'{k} {found.get(k)!r} there, {v!r} now'
                for k, v in wanted.items()
                if k not in _FREE and found.get(k) != v
            ]
        else:
            differ = [f'{key} {found!r} there, {wanted!r} now']
            differ = differ if found != wanted else []
        if differ:
            raise ValueError(
                f'--resume: the run in {folder} was done otherwise '
                f'({"; ".join(differ[:3])}); give its options again, or '
                'another --output-dir'
            )
    return report


def add_to_report(folder: Path, **entries: Any) -> dict:
    """Adds entries to the report of a run, in both of its files.

    Returns:
        The report.
    """
    report = json.loads((folder / 'report.json').read_text())
    report.update(entries)
    text = json.dumps(report, indent=2).encode()
    page = markdown(report)
    if report.get('metrics'):
        page += f'\n## Metrics\n\n{metrics_table(report["metrics"])}\n'
    write_whole(folder / 'report.md', page.encode())
    write_whole(folder / 'report.json', text)
    return report


def metrics_table(metrics: dict[str, dict[str, float]]) -> str:
    """Returns a Markdown table: a row per metric, a column per model."""
    names = sorted({name for found in metrics.values() for name in found})
    lines = ['| metric | ' + ' | '.join(metrics) + ' |']
    lines.append('|---' * (len(metrics) + 1) + '|')
    for name in names:
        cells = [
            f'{found[name]:.4g}' if name in found else '-'
            for found in metrics.values()
        ]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def write(
    models: dict[str, nn.Module],
    plans: dict[str, PruningPlan],
    report: dict,
    cfg: Config,
    meta: dict,
    folder: Path,
) -> dict[str, Path]:
    """Writes all files of a run; they appear together or not at all.

    Args:
        models: Pruned models, ``structured`` and ``unstructured``.
        plans: Their plans, under the same names.
        report: What was measured.
        cfg: Config of the dense model.
        meta: Meta of the dense checkpoint; plain entries are carried on.
        folder: Where to write.

    Returns:
        What it is -> path.
    """
    names = checkpoint_names(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    for killed in folder.glob(f'{_BESIDE}*'):
        shutil.rmtree(killed, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=_BESIDE, dir=folder))
    try:
        for kind, model in models.items():
            plan = plans[kind]
            checkpoint = dict(
                meta=_meta(meta, cfg, plan), state_dict=_weights(model)
            )
            torch.save(checkpoint, beside / names[kind])
        if 'structured' in plans:
            plans['structured'].save(beside / 'plan.json')
            stem = Path(names['structured']).stem
            (beside / f'{stem}.py').write_text(
                pruned_config(cfg, names['structured'])
            )
        save_json(report, beside / 'report.json')
        (beside / 'report.md').write_text(markdown(report))
        _remove_older(folder)
        written = {}
        # The report marks a finished run, so it comes last.
        for path in sorted(
            beside.iterdir(), key=lambda p: p.name == 'report.json'
        ):
            os.replace(path, folder / path.name)
            written[path.name] = folder / path.name
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return written


def checkpoint_names(cfg: Config) -> dict[str, str]:
    """Returns how the checkpoints of a config's model are called."""
    family = cfg.get('family', Path(cfg.filename).stem)
    return dict(
        unstructured=f'{family}_pruned.pth',
        structured=f'{family}_structured_pruned.pth',
    )


def _remove_older(folder: Path) -> None:
    """Removes an older run, first the report that calls it finished."""
    (folder / 'report.json').unlink(missing_ok=True)
    for path in folder.glob('*'):
        if not _RUN.fullmatch(path.name):
            continue
        if path.is_dir():
            if (path / 'start.pth').exists():
                shutil.rmtree(path)
        else:
            path.unlink()


def _meta(meta: dict, cfg: Config, plan: PruningPlan) -> dict:
    plain = {
        k: v
        for k, v in (meta.items() if isinstance(meta, dict) else ())
        if isinstance(v, str | int | float | bool) or k == 'dataset_meta'
    }
    return {
        **plain,
        'cfg': cfg.pretty_text,
        'mmprune_version': __version__,
        'pruning_plan': plan.to_dict(),
    }


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }


def pruned_config(cfg: Config, checkpoint: str) -> str:
    """Returns the text of a config that a stock Runner builds from.

    It stands alone; plan and weights are looked for beside it, so the folder
    can be moved.

    Args:
        cfg: Config of the dense model.
        checkpoint: File name of the pruned checkpoint.
    """
    cfg = copy.deepcopy(cfg)
    beside = '{{ fileDirname }}/' + checkpoint
    data_preprocessor = cfg.get('data_preprocessor')
    cfg.model = dict(
        type='mmprune.PrunedModel', model=cfg.model.to_dict(), plan=beside
    )
    if data_preprocessor is not None:
        cfg.model['data_preprocessor'] = data_preprocessor
    cfg.load_from = beside
    cfg.custom_hooks = [
        *cfg.get('custom_hooks', []),
        dict(type='mmprune.PlanHook'),
    ]
    name_imports(cfg)
    cfg.pop('pruning', None)
    return cfg.pretty_text
