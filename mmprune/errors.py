"""What a user caused, in one sentence that names the file and the key."""

import contextlib
import errno
import json
import re
import traceback
from collections.abc import Iterator
from typing import Any

# What is said of an error of the system, where its own words are not enough.
_SYSTEM = {
    errno.ENOSPC: 'the disk is full; free some space',
    errno.EDQUOT: 'the quota of the disk is used up; free some space',
    errno.EFBIG: 'the file would be larger than is allowed',
    errno.EROFS: 'the file system is read-only; choose another place',
    errno.ENAMETOOLONG: 'the name is too long; choose a shorter one',
    errno.EEXIST: 'something else has that name; choose another',
    errno.ENOTDIR: 'a part of this path is a file; choose another place',
    errno.EISDIR: 'this is a folder; name a file',
    errno.EACCES: 'this user is not allowed to; choose another place',
    errno.EPERM: 'this user is not allowed to; choose another place',
    errno.ENOENT: 'there is no such file or folder',
}
_LONGEST = 400
# Where mmengine goes on with advice about its own insides.
_ADVICE = re.compile(
    r'[.,] (?:Please check|the current sys\.path|You may set `_delete_)'
)
# Their texts say little without the type.
_TERSE = (
    AssertionError,
    AttributeError,
    IndexError,
    SyntaxError,
    TypeError,
)


class UserError(ValueError):
    """An error of foreign code, in words of ours; see :func:`blame`."""


@contextlib.contextmanager
def blame(what: str, cfg: Any = None) -> Iterator[None]:
    """Makes any error of a block one sentence that begins with ``what``.

    For blocks in which the code or the data of a user is run: what is raised
    there, of whatever type, was caused by them.

    Args:
        what: What cannot be done, with the file that it is about.
        cfg: The config that the block builds from, to name the key.

    Raises:
        UserError: In place of the error, which is its cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = _key(error, cfg) or _module(error)
        at = f', at {place}' if place else ''
        raise UserError(f'{what}{at}: {sentence(error)}') from error


def sentence(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        text = _SYSTEM.get(error.errno, error.strerror)
        name = str(error.filename or '')
        name = f'{name[:40]} ... {name[-20:]}' if len(name) > 200 else name
        text = f'{name}: {text}' if name else text
    elif isinstance(error, json.JSONDecodeError):
        text = f'{_json_file(error)}is no JSON: {error}'
    elif isinstance(error, SyntaxError) and error.msg:
        text = error.msg
    elif isinstance(error, KeyError):
        text = str(*error.args[:1])  # str(error) quotes it
    else:
        text = str(error)
    text = ' '.join(_ADVICE.split(text)[0].split())
    if ' ' not in text or isinstance(error, _TERSE):
        text = f'{type(error).__name__}: {text}'.removesuffix(': ')
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'


def entries(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yields the entries of a config and all within them.

    Args:
        value: The config, or a part of it.
        key: Of the part; dotted, as ``--cfg-options`` takes it.
    """
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if hasattr(value, 'items'):
        for name, inner in value.items():
            path = f'{key}.{name}' if key else str(name)
            yield path, inner
            yield from entries(inner, path)


def _json_file(error: Exception) -> str:
    """Returns the file that ``json.load`` was given, which it does not say."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = getattr(frame.f_locals.get('fp'), 'name', None)
        if name and frame.f_code.co_name == 'load':
            return f'{name} '
    return 'what was read '


def _key(error: Exception, cfg: Any) -> str:
    """Returns the key of what a registry was building, '' if it was not."""
    built = [
        frame.f_locals['cfg']
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == 'build_from_cfg' and 'cfg' in frame.f_locals
    ]
    if cfg is None or not built:
        return ''
    known = list(entries(cfg))
    for entry in reversed(built):
        for same in (lambda a, b: a is b or a == b, _same_type):
            keys = [key for key, value in known if same(value, entry)]
            if keys:
                return keys[0]
    return ''


def _same_type(one: Any, other: Any) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(other, dict)
        and one.get('type') == other.get('type')
    )


def _module(error: Exception) -> str:
    """Returns the path of the module in which a model failed, '' if none."""
    found = [
        frame.f_locals.get('self')
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    modules = [m for m in found if hasattr(type(m), 'named_modules')]
    with contextlib.suppress(AttributeError):  # not yet initialised
        names = {id(m): n for m in modules[:1] for n, m in m.named_modules()}
        paths = (names.get(id(m), '') for m in reversed(modules))
        return next(filter(None, paths), '')
    return ''
