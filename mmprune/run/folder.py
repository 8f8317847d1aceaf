"""The folder of a run: checked before the work, written whole after it."""

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..atomic_file import write_whole
from ..checkpoints.model_folder import ARGS, save_model_folder
from ..checkpoints.writing import (
    name_imports,
    pruned_model_config,
    save_pruned,
)
from ..plan import PruningPlan
from .report import markdown, save_json
from .variants import VARIANTS

_BESIDE = '.writing-'
# A `checkpoint_format` of a config: models are folders of Hugging Face.
FOLDERS = 'huggingface'
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
    found = sorted(p.name for p in folder.glob('*') if _is_ours(p.name))
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
        models: Variant -> pruned model.
        plans: Variant -> its plan.
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
        for name, model in models.items():
            path = beside / names[name]
            if cfg.get('checkpoint_format') == FOLDERS:
                base = str(cfg.model.config)
                facts = dict(base_model=base, method=name)
                save_model_folder(model, plans[name], path, facts, base)
            else:
                save_pruned(model, plans[name], path, cfg, meta)
            if VARIANTS[name].plan:
                plans[name].save(beside / VARIANTS[name].plan)
                text = pruned_config(cfg, path.name)
                path.with_suffix('.py').write_text(text)
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
    folders = cfg.get('checkpoint_format') == FOLDERS
    return {
        name: f'{family}_{variant.ending}'.removesuffix(
            '.pth' if folders else ''
        )
        for name, variant in VARIANTS.items()
    }


def training_folder(recipe: str, variant: str, first: bool) -> str:
    """Returns where a variant is trained, inside the folder of the run.

    Args:
        recipe: ``fine_tuned`` or ``retrained``.
        variant: Its name.
        first: Whether it is the first that is trained.
    """
    return recipe if first else f'{recipe}_{variant}'


def _is_ours(name: str) -> bool:
    """Returns whether a run writes a file or folder of that name."""
    endings, plans, variants = [], [], '|'.join(map(re.escape, VARIANTS))
    for variant in VARIANTS.values():
        stem = re.escape(Path(variant.ending).stem)
        endings.append(f'(.+_)?{stem}(\\.(pth|py))?')
        plans += [re.escape(variant.plan)] * bool(variant.plan)
    pattern = '|'.join(
        [
            *endings,
            *plans,
            r'report\.(json|md|html)',
            rf'(fine_tuned|retrained)(_({variants}))?',
        ]
    )
    return re.fullmatch(pattern, name) is not None


def _remove_older(folder: Path) -> None:
    """Removes an older run, first the report that calls it finished."""
    (folder / 'report.json').unlink(missing_ok=True)
    for path in folder.glob('*'):
        if not _is_ours(path.name):
            continue
        if path.is_dir():
            if (path / 'start.pth').exists() or (path / ARGS).exists():
                shutil.rmtree(path)
        else:
            path.unlink()


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
    if cfg.get('checkpoint_format') == FOLDERS:
        # Such a folder says itself what model it holds.
        cfg.model.config, cfg.model.pretrained = None, beside
    else:
        cfg.model = pruned_model_config(
            cfg.model.to_dict(), beside, cfg.get('data_preprocessor')
        )
        cfg.load_from = beside
    cfg.custom_hooks = [
        *cfg.get('custom_hooks', []),
        dict(type='mmprune.PlanHook'),
    ]
    name_imports(cfg)
    cfg.pop('pruning', None)
    return cfg.pretty_text
