"""The folder of a run: checked before the work, written whole after it."""

import contextlib
import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..atomic_file import save_json, write_whole
from ..checkpoints.model_folder import ARGS, save_model_folder
from ..checkpoints.writing import (
    name_imports,
    pruned_model_config,
    save_pruned,
)
from ..errors import UserError, blame, sentence
from ..plan import PruningPlan
from .port import is_first
from .report import markdown, markdown_table
from .variants import VARIANTS

_BESIDE = '.writing-'
# The weights that a training starts from and rewinds to, and what a Runner
# calls the folder of its logs.
_START, _REWIND = 'start.pth', 'rewind_point.pth'
_LOGS = r'\d{8}_\d{6}'
_CHECKPOINT = r'(epoch|iter)_\d+\.pth|best_.+\.pth'
# What a training writes, of itself or as rounds of iterative pruning.
_TRAINING_FILES = (
    rf'{_CHECKPOINT}|latest\.pth|last_checkpoint|rounds\.json|pruned\.pth|'
    r'plan\.json|report\.(json|html)'
)
# A `checkpoint_format` of a config: models are folders of Hugging Face.
FOLDERS = 'huggingface'
# Options that change how a run is done and not what comes out.
_FREE = ('device', 'latency_runs', 'trust_checkpoint')


def check_output(
    folder: Path, flag: str, allowed: bool, kind: str = 'pruning'
) -> None:
    """Refuses a folder that cannot be written or holds another run.

    Args:
        folder: The folder, which need not exist.
        flag: The flag that names it, for the error.
        allowed: Whether another run may be there.
        kind: ``pruning`` or ``training``: what it is a folder of.

    Raises:
        ValueError: If so; nothing is created here.
    """
    existing = folder.absolute()
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f'{existing} is a file; give a folder to write to')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f'{folder} cannot be written: {existing} is read-only for this '
            f'user; choose another {flag}'
        )
    found = [p.name for p in files_of_run(folder, kind)]
    if found and not allowed:
        raise ValueError(
            f'{folder} holds another run ({", ".join(found[:3])}); go on '
            'with it by --resume, overwrite it by --force, or choose another '
            f'{flag}'
        )


def files_of_run(folder: Path, kind: str) -> list[Path]:
    """Returns what a run has written, of what is in its folder.

    Args:
        folder: The folder, which need not exist.
        kind: ``pruning`` or ``training``.
    """
    pattern = _pruning_files() if kind == 'pruning' else _TRAINING_FILES
    return sorted(p for p in folder.glob('*') if re.fullmatch(pattern, p.name))


def forget_training(folder: Path) -> None:
    """Removes the checkpoints and results of an older training.

    What it left must not be taken for this one's.
    """
    for path in files_of_run(folder, 'training'):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def begun(folder: Path, *names: str, good: str = '') -> Iterator[None]:
    """Removes what a block began in a folder, if the block fails.

    A folder that the block made goes as a whole; of one that was there, logs
    of a Runner and files of the given names. Where the block has written a
    checkpoint all stays.

    Args:
        folder: Where the block writes.
        names: What it writes there.
        good: What was finished before, for the error.

    Raises:
        Exception: What the block raised; with what is good to go on from.
    """
    before = set(folder.glob('*'))
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        yield
    except Exception as error:
        new = [p for p in folder.glob('*') if p not in before]
        if any(re.fullmatch(_CHECKPOINT, p.name) for p in new):
            good = f'the checkpoints in {folder}'
        elif is_first():
            for path in new:
                own = path.name in (*names, _START, _REWIND)
                if made or own or re.fullmatch(_LOGS, path.name):
                    _remove(path)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
        if not good or not isinstance(error, ValueError | OSError):
            raise
        raise UserError(
            f'{sentence(error)}; {good} are good, go on with --resume'
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def finished_run(folder: Path, asked: dict) -> bool:
    """Returns whether a pruning is there that was done as asked for now.

    Args:
        folder: Where it was written.
        asked: What is asked for now, as entries of the report.

    Raises:
        ValueError: If the run there was done with other options.
    """
    path = folder / 'report.json'
    if not path.exists():
        return False
    report = read_report(folder)
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
                f'the run in {folder} was done otherwise '
                f'({"; ".join(differ[:3])}); give its options again, '
                'overwrite it by --force, or choose another --output-dir'
            )
    return True


def read_report(folder: Path) -> dict:
    """Returns the report of a run.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / 'report.json'
    with blame(f'{path} cannot be read as JSON'):
        report = json.loads(path.read_text())
    if not isinstance(report, dict):
        raise ValueError(
            f'{path} is no report of a run; prune again with --force'
        )
    return report


def earlier_metrics(folder: Path, recipe: str) -> dict[str, dict]:
    """Returns the metrics that a run has, to which others are added.

    Args:
        folder: Of the run.
        recipe: ``fine_tuned`` or ``retrained``, what is evaluated next. A
            model that was trained so before is evaluated again; one of the
            other training takes that as its name.
    """
    report = read_report(folder)
    metrics, before = report.get('metrics') or {}, report.get('recipe')
    if before in (recipe, None):
        return {k: v for k, v in metrics.items() if 'recovered' not in k}
    return {k.replace('recovered', before): v for k, v in metrics.items()}


def add_to_report(folder: Path, **entries: Any) -> dict:
    """Adds entries to the report of a run, in both of its files.

    Returns:
        The report.
    """
    report = read_report(folder)
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
    rows = []
    for name in names:
        values = [found.get(name) for found in metrics.values()]
        cells = ['-' if v is None else f'{v:.4g}' for v in values]
        rows.append([name, *cells])
    return markdown_table(['metric', *metrics], rows)


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


def _pruning_files() -> str:
    """Returns a pattern of the names that a pruning writes."""
    endings, plans, variants = [], [], '|'.join(map(re.escape, VARIANTS))
    for variant in VARIANTS.values():
        stem = re.escape(Path(variant.ending).stem)
        endings.append(f'(.+_)?{stem}(\\.(pth|py))?')
        plans += [re.escape(variant.plan)] * bool(variant.plan)
    return '|'.join(
        [
            *endings,
            *plans,
            r'report\.(json|md|html)',
            rf'(fine_tuned|retrained)(_({variants}))?',
        ]
    )


def _remove_older(folder: Path) -> None:
    """Removes an older run, first the report that calls it finished."""
    (folder / 'report.json').unlink(missing_ok=True)
    for path in files_of_run(folder, 'pruning'):
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
