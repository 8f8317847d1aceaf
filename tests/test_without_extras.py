"""Who installs mmprune alone, without an extra, gets what a Runner builds."""

import subprocess
import sys

import pytest
import torch

from mmprune.quantization import scales

EXTRAS = (
    'accelerate peft safetensors torchao transformers timm sklearn onnx '
    'onnxruntime nuscenes mmdet mmdet3d shapely'
)
BUILD_ALL = f"""
import sys

sys.modules.update(dict.fromkeys({EXTRAS!r}.split()))
import mmprune
from mmengine.registry import Registry
from mmprune import registry

found = [r for r in vars(registry).values() if isinstance(r, Registry)]
for each in found:
    each.import_from_location()
print(len(found))
"""


def test_every_registry_is_filled():
    done = subprocess.run(
        [sys.executable, '-c', BUILD_ALL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 9


class Missing:
    """Finds no torchao."""

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchao':
            raise ModuleNotFoundError(f'No module named {name}', name=name)


def test_bits_ask_for_the_package_that_they_need(monkeypatch):
    for name in [n for n in sys.modules if n.split('.')[0] == 'torchao']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'meta_path', [Missing(), *sys.meta_path])
    with pytest.raises(ValueError, match=r"pip install 'mmprune\[llm\]'"):
        scales(torch.ones(2, 32), 32)
