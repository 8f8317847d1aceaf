"""mmengine without the import of transformers that it makes for one name.

mmengine's optimizer builder asks transformers, where it is installed, for
its Adafactor, which imports peft, torchao and torch's compiler: three
quarters of the time that ``import mmengine.runner`` takes.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_LIBRARY = 'transformers'


def adafactor(*args: Any, **kwargs: Any) -> Any:
    """Returns transformers' Adafactor, which is imported only now."""
    return importlib.import_module(_LIBRARY).Adafactor(*args, **kwargs)


class _StandIn(ModuleType):
    """Has Adafactor; whoever asks for another name gets the library's."""

    def __getattr__(self, name: str) -> Any:
        if name == 'Adafactor':
            return adafactor
        if name.startswith('__'):
            raise AttributeError(name)
        if sys.modules.get(_LIBRARY) is self:
            del sys.modules[_LIBRARY]
        return getattr(importlib.import_module(_LIBRARY), name)


@contextlib.contextmanager
def imported_late() -> Iterator[None]:
    """Puts the function above in the place of the library's class.

    Nothing happens where the library is imported already or not installed.
    """
    if _LIBRARY in sys.modules or not importlib.util.find_spec(_LIBRARY):
        yield
        return
    stand_in = sys.modules[_LIBRARY] = _StandIn(_LIBRARY)
    try:
        yield
    finally:
        if sys.modules.get(_LIBRARY) is stand_in:
            del sys.modules[_LIBRARY]
