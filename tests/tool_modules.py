"""Scripts of tools/ as modules."""

import importlib.util
import sys

from conftest import ROOT


def command(name: str):
    """Loads a script of tools/ as a module."""
    path = ROOT / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
