"""Config files: read, changed by ``KEY=VALUE``, their outline checked."""

import difflib
import fnmatch
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, blame, entries, sentence
from .port import is_first

if TYPE_CHECKING:
    from mmengine.config import Config

# What entries have to be, where they are given, and patterns of their keys.
_OUTLINE: dict[str, tuple[Callable[[Any], bool], str]] = {
    'a dict': (
        lambda value: isinstance(value, dict),
        'model pruning data_preprocessor *_dataloader *_dataloader.dataset '
        'train_cfg val_cfg test_cfg optim_wrapper optim_wrapper.optimizer '
        'env_cfg env_cfg.*_cfg default_hooks default_hooks.* randomness '
        'log_processor visualizer auto_scale_lr model_wrapper_cfg '
        'custom_imports custom_hooks.* distillation.* param_scheduler.[0-9]* '
        '*_evaluator.[0-9]*',
    ),
    'a list of dicts': (
        lambda value: isinstance(value, list | tuple),
        'custom_hooks distillation',
    ),
    'a dict or a list of dicts': (
        lambda value: isinstance(value, dict | list | tuple),
        'param_scheduler *_evaluator',
    ),
    'a text': (
        lambda value: isinstance(value, str),
        'work_dir default_scope experiment_name load_from main_metric',
    ),
    'a name without slashes': (lambda value: '/' not in str(value), 'family'),
    'a whole number of at least 1': (
        lambda value: isinstance(value, int) and value >= 1,
        'train_cfg.max_epochs train_cfg.max_iters train_cfg.val_interval',
    ),
    'a whole number': (
        lambda value: isinstance(value, int),
        'randomness.seed resume',
    ),
    'a level of logging, as INFO': (
        lambda value: isinstance(value, int) or value in _LEVELS,
        'log_level',
    ),
}
_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')


def config_path(name: str) -> Path:
    """Returns the file of a config: ``PACKAGE::NAME`` is a stock one.

    Raises:
        ValueError: If the package has no stock configs, or none of the name.
    """
    package, stock, file = name.partition('::')
    if not stock:
        return Path(name)
    # Not imported: that takes seconds, and reading a config needs none of it.
    spec = find_spec(package) if package.isidentifier() else None
    place = Path(spec.origin or '').parent if spec else Path()
    folder = place / '.mim' / 'configs'
    if spec is None or not folder.is_dir():
        raise ValueError(
            f'{name} asks for a stock config of {package}, which '
            f'{"has none" if spec else "is not installed"}; give the path of '
            'a config'
        )
    path = folder / (file if file.endswith('.py') else f'{file}.py')
    if not path.is_file():
        names = [
            f.relative_to(folder).as_posix() for f in folder.rglob('*.py')
        ]
        near = difflib.get_close_matches(file, names, 1, 0)
        raise ValueError(
            f'{package} has no stock config {file}; the nearest is '
            f'{package}::{near[0] if near else ""}'
        )
    return path


def load_config(path: str, options: Sequence[str] = ()) -> 'Config':
    """Returns the config of a file with ``KEY=VALUE`` options merged in.

    Args:
        path: The file; or as in ``mmengine.hub`` a package and a stock config
            of it, ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.
        options: The options.

    Raises:
        ValueError: If the file is missing, is no config, fails when it is
            run or has no model, or an entry is of another kind than it is in
            every config.
    """
    # A second that --help does without.
    from mmengine.config import Config

    path = str(config_path(path))
    if not Path(path).is_file():
        raise ValueError(f'no config at {path}')
    try:
        cfg = Config.fromfile(path)
    # A config is a program: it may end in whatever way it likes.
    except (Exception, SystemExit) as error:
        raise UserError(
            f'{path} cannot be read as an mmengine config: '
            f'{_place(error, path)}{sentence(error)}'
        ) from error
    merge_options(cfg, options)
    if cfg.get('model') is None:
        raise ValueError(f'{path} has no `model`; give the config of a model')
    return cfg


def merge_options(cfg: 'Config', options: Sequence[str] | None) -> None:
    """Merges ``KEY=VALUE`` options into a config, in place.

    A key that the config does not have is added, with a warning.

    Raises:
        ValueError: If one is no such pair or does not fit the config.
    """
    from mmengine.config import DictAction

    for option in options or ():
        key, equals, value = option.partition('=')
        if not (equals and all(key.split('.')) and _balanced(value)):
            raise ValueError(
                f'--cfg-options takes KEY=VALUE, found {option!r}'
                + (': its brackets do not match' if key and equals else '')
            )
        known = [name for name, _ in entries(cfg)]
        if key not in known and is_first():
            near = difflib.get_close_matches(key, known, 1)
            print(
                f'warning: --cfg-options {key}: the config has no such key, '
                'it is added' + ''.join(f'; the nearest is {n}' for n in near),
                file=sys.stderr,
            )
        with blame(f'--cfg-options {option} does not fit the config'):
            cfg.merge_from_dict({key: DictAction._parse_iterable(value)})
    _check_outline(cfg)


def _balanced(text: str) -> bool:
    return all(text.count(a) == text.count(b) for a, b in ('[]', '()'))


def _check_outline(cfg: 'Config') -> None:
    for key, value in entries(cfg):
        problem = ''
        if isinstance(value, float) and math.isnan(value):
            problem = 'has to be a number'
        for name, (fits, patterns) in _OUTLINE.items():
            hit = any(
                fnmatch.fnmatchcase(key, p)
                for p in patterns.split()
                if p.count('.') == key.count('.')
            )
            if hit and value is not None and not fits(value):
                problem = f'has to be {name}'
        if problem:
            raise ValueError(
                f'`{key}` of {cfg.filename} {problem}, found {value!r}'
            )


def _place(error: BaseException, path: str) -> str:
    """Returns in which file and line the reading of a config ended."""
    file, line = str(Path(path).absolute()), getattr(error, 'lineno', None)
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_name in ('_file2dict', '_parse_lazy_import'):
            file = str(frame.f_locals.get('filename', file))
        elif code.co_name == '<module>' and code.co_filename == file:
            line = number
    own = Path(file) == Path(path).absolute()
    parts = [] if own else [file]
    parts += [f'line {line}'] if line else []
    return ', '.join(parts) + ': ' if parts else ''
