"""Fields of dataclasses as flags of a command.

The options of a command are frozen dataclasses. A field that :func:`option`
makes is a flag; :func:`add_flags` gives it to argparse and :func:`build`
makes the dataclass from what argparse found, so that name, default, check
and help of a value are written once, also for those who make the dataclass
in Python.

Nothing here imports PyTorch: ``--help`` is quick.
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, NoReturn, TypeVar

T = TypeVar('T')


def option(
    default: Any,
    help: str,
    *,
    flag: str = '',
    also: Sequence[str] = (),
    shown: str = '',
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    **how: Any,
) -> Any:
    """Returns a field of a dataclass that is a flag of a command.

    Args:
        default: What holds without the flag; its type is the flag's.
        help: One line for ``--help``.
        flag: Its name, by default that of the field with hyphens; ``'_'`` for
            that of the field as it is.
        also: Further names.
        shown: What ``--help`` gives as the default, where the value itself
            says little.
        least: The smallest number that is allowed.
        below: The number that it has to stay below.
        most: The largest number that is allowed.
        how: As argparse's ``add_argument`` takes it.
    """
    about = dict(
        help=help,
        flag=flag,
        also=tuple(also),
        shown=shown,
        least=least,
        below=below,
        most=most,
        how=how,
    )
    return field(default=default, metadata=about)


def argument(
    help: str, default: Any = MISSING, *, shown: str = '', **how: Any
) -> Any:
    """Returns a field of a dataclass that is an argument without a flag.

    Args:
        help: One line for ``--help``.
        default: What holds without it; needed unless it has one.
        shown: As in :func:`option`.
        how: As argparse's ``add_argument`` takes it.
    """
    about = dict(help=help, positional=True, shown=shown, how=how)
    if default is MISSING:
        return field(metadata=about)
    return field(default=default, metadata=about)


class ShowDefaults(argparse.RawDescriptionHelpFormatter):
    """Ends the help of every flag with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ''
        optional = action.option_strings or action.nargs in ('?', '*')
        if not optional or 'default:' in text or action.dest == 'help':
            return text
        return f'{text} (default: {shown_default(action.default)})'


def shown_default(value: Any) -> str:
    """Returns a default in words."""
    if value is False:
        return 'off'
    if value is None or value in ((), []):
        return 'none'
    if isinstance(value, list | tuple):
        return ' '.join(map(str, value))
    return str(value).replace('%', '%%')


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without all the flags."""

    def error(self, message: str) -> NoReturn:
        """Raises ``ValueError`` in place of printing the usage."""
        message = message.removeprefix('argument ')
        raise ValueError(f'{message}; --help shows all flags')


def make_parser(description: str, *kinds: type) -> argparse.ArgumentParser:
    """Returns a parser of the flags of dataclasses."""
    parser = Parser(description=description, formatter_class=ShowDefaults)
    for kind in kinds:
        add_flags(parser, kind)
    parser.add_argument(
        '--debug',
        action='store_true',
        help='show the traceback of an error (default: off)',
    )
    return parser


def add_flags(parser: Any, kind: type) -> None:
    """Adds the fields of a dataclass to a parser or a group of one."""
    for each in fields(kind):
        about, how = each.metadata, dict(each.metadata['how'])
        how['help'] = about['help']
        if about['shown']:
            how['help'] += f' (default: {about["shown"]})'
        if about.get('positional'):
            if each.default is not MISSING:
                how['default'] = each.default
            parser.add_argument(each.name, **how)
            continue
        default = each.default
        if isinstance(default, tuple):
            default = list(default)  # what action='append' can add to
        elif default is False:
            how.setdefault('action', 'store_true')
        elif isinstance(default, int | float) and 'action' not in how:
            how.setdefault('type', type(default))
        name = _flag(each)
        if 'action' not in how and 'choices' not in how:
            how.setdefault('metavar', name[2:].upper().replace('-', '_'))
        parser.add_argument(
            name, *about['also'], dest=each.name, default=default, **how
        )


def build(kind: type[T], found: argparse.Namespace) -> T:
    """Returns the dataclass of what argparse found.

    Raises:
        ValueError: If a value is not allowed.
    """
    values = {each.name: getattr(found, each.name) for each in fields(kind)}
    return kind(**{name: _given(value) for name, value in values.items()})


def _given(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    # The shell does so after a blank, and not after a `=`.
    return os.path.expanduser(value) if isinstance(value, str) else value


def read(
    description: str, kinds: Sequence[type], argv: Sequence[str] | None = None
) -> list[Any]:
    """Returns the dataclasses of a command line, in the order of ``kinds``.

    Raises:
        ValueError: If a value is not allowed.
    """
    found = make_parser(description, *kinds).parse_intermixed_args(argv)
    return [build(kind, found) for kind in kinds]


def check_values(options: Any) -> None:
    """Refuses values outside their range or choices.

    Raises:
        ValueError: If there is one.
    """
    for each in fields(options):
        about, value = each.metadata, getattr(options, each.name)
        if value is None or about.get('positional'):
            continue
        name = _flag(each)
        choices = about['how'].get('choices')
        if choices and value not in choices:
            raise ValueError(
                f'{name} is one of {", ".join(choices)}, found {value!r}'
            )
        problem = _range_problem(value, about)
        if problem:
            raise ValueError(f'{name} {problem}, found {value}')
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{name} is finite, found {value}')


def _range_problem(value: Any, about: Mapping[str, Any]) -> str:
    least, below, most = (about[key] for key in ('least', 'below', 'most'))
    low = least is not None and not value >= least
    high = below is not None and not value < below
    high = high or (most is not None and not value <= most)
    if not (low or high):
        return ''
    if most is not None:
        return f'must lie in [{least:g}, {most:g}]'
    if below is not None and below <= 1:
        return f'must lie in [{least:g}, {below:g})'
    if high and not low:
        return f'must be below {below:g}'
    return f'is at least {least:g}' if least else 'must not be negative'


def _flag(each: Any) -> str:
    if each.metadata['flag'] == '_':
        return f'--{each.name}'
    return each.metadata['flag'] or f'--{each.name.replace("_", "-")}'
