"""OpenMMLab on a current PyTorch, without a compiler.

Importing mmprune calls :func:`install`, which only hooks into the import
system and costs nothing until somebody imports mmcv or mmengine's Runner:

- ``mmcv._ext`` is served from :mod:`mmprune.compat.ops` where no compiled one
  is;
- mmengine's checkpoint loader reads through :func:`load_checkpoint_file`;
- a checkpoint that does not fit the model's pruning plan is refused;
- wrappers of mmcv's ops that ask for CUDA run where their points are, and
  norms with ``eps=0`` and mmdet's SSD run;
- transformers is not imported until its optimizer is used.
"""

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from mmprune.checkpoints.guard import check_plan_matches
from mmprune.checkpoints.reading import load_checkpoint_file, unpickle
from mmprune.compat.adafactor import imported_late

_EXTENSION = 'mmcv._ext'
_ORIGIN = 'mmprune.compat.ops'


def install() -> None:
    """Hooks the repairs into the import system; a second call does nothing."""
    ours = (_ExtensionFinder, _RepairFinder)
    if not all(any(type(f) is kind for f in sys.meta_path) for kind in ours):
        # Finders of an earlier import of this module (a reload, or coverage,
        # which imports a package twice) would find each other for ever.
        names = {(k.__module__, k.__name__) for k in ours}
        sys.meta_path[:] = [
            f
            for f in sys.meta_path
            if (type(f).__module__, type(f).__name__) not in names
        ]
        # At the end, so that a compiled extension is found first.
        sys.meta_path.append(_ExtensionFinder())
        sys.meta_path.insert(0, _RepairFinder())
    for name, repair in _REPAIRS.items():
        if name in sys.modules:
            repair(sys.modules[name])


class _ExtensionFinder(MetaPathFinder):
    """Finds ``mmcv._ext`` when nobody else did."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _EXTENSION:
            return None
        return ModuleSpec(
            fullname, _ExtensionLoader(), origin='mmprune.compat.ops'
        )


class _ExtensionLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from mmprune.compat.ops import serve

        serve(module)


class _RepairFinder(MetaPathFinder):
    """Repairs a module around or right after the run of its own code."""

    def find_spec(self, fullname, path=None, target=None):
        repair = _REPAIRS.get(fullname)
        around = _AROUND.get(fullname, contextlib.nullcontext)
        if fullname not in _REPAIRS.keys() | _AROUND.keys():
            return None
        others = (f for f in sys.meta_path if f is not self)
        specs = (f.find_spec(fullname, path, target) for f in others)
        spec = next((s for s in specs if s is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with around():
                run(module)
            if repair is not None:
                repair(module)

        # On the instance: the loader keeps its class and all it can do else.
        spec.loader.exec_module = exec_module
        return spec


def _repair_checkpoint_module(module: ModuleType) -> None:
    """Makes mmengine read safely, and refuse plans that do not match."""
    if getattr(module, '_mmprune_repair', None) is _repair_checkpoint_module:
        return
    module._mmprune_repair = _repair_checkpoint_module
    loader = module.CheckpointLoader
    loader.register_scheme('', _load_from_local, force=True)
    loader.register_scheme(
        [r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], _load_from_ceph, force=True
    )
    # The http, torchvision and openmmlab schemes end in this function, which
    # in torch.hub unpickles everything by default.
    module.load_url = _load_url
    _replace_everywhere(module, 'load_from_local', _load_from_local)
    _replace_everywhere(
        module,
        '_load_checkpoint_to_model',
        _guarded(inspect.unwrap(module._load_checkpoint_to_model)),
    )


def _guarded(load: Callable) -> Callable:
    # Not a hook: mmengine.runner.load_checkpoint and the inferencers run no
    # hooks, and a stock config need not list ours. Here every path passes.
    @functools.wraps(load)
    def load_checkpoint_to_model(model, checkpoint, *args, **kwargs):
        check_plan_matches(model, checkpoint)
        return load(model, checkpoint, *args, **kwargs)

    return load_checkpoint_to_model


def _replace_everywhere(module: ModuleType, name: str, new: Callable) -> None:
    """Replaces a function in its module and where it was imported from it."""
    old = getattr(module, name)
    for other in list(sys.modules.values()):
        if getattr(other, '__dict__', {}).get(name) is old:
            setattr(other, name, new)


def _load_from_local(filename: str, map_location: Any = None) -> dict:
    # Not mapped: the Runner keeps optimizer tensors of the file it resumed
    # from, and may write its next checkpoint over that very file.
    return load_checkpoint_file(filename, map_location, mmap=False)


def _load_from_ceph(
    filename: str, map_location: Any = None, backend: str = 'petrel'
) -> dict:
    import io

    from mmengine.fileio import get_file_backend

    storage = get_file_backend(filename, backend_args=dict(backend=backend))
    with io.BytesIO(storage.get(filename)) as stream:
        return unpickle(stream, filename, map_location, trust=False)


def _load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    **kwargs: Any,
) -> dict:
    """Returns the checkpoint at ``url``, kept in torch.hub's cache."""
    from urllib.parse import urlparse

    from torch import hub

    folder = Path(model_dir or os.path.join(hub.get_dir(), 'checkpoints'))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urlparse(url).path).name
    if not path.exists():
        hub.download_url_to_file(url, str(path), progress=progress)
    return load_checkpoint_file(path, map_location, mmap=False)


def _repair_points_in_boxes(module: ModuleType) -> None:
    """Lets the wrappers, which ask CUDA for its device, run on the CPU."""
    if module.ext_module.__spec__.origin != _ORIGIN:
        return
    from mmprune.compat.ops import points

    module.points_in_boxes_part = points.points_in_boxes_part
    module.points_in_boxes_all = points.points_in_boxes_all


def _repair_furthest_points(module: ModuleType) -> None:
    """Allocates where the points are, not always on CUDA."""
    if module.ext_module.__spec__.origin == _ORIGIN:
        from mmprune.compat.ops import point_sets

        forward = staticmethod(point_sets.furthest_points)
        module.FurthestPointSampling.forward = forward


def _repair_nearest_points(module: ModuleType) -> None:
    """Lets the wrapper, which asks CUDA for its device, run on the CPU."""
    if module.ext_module.__spec__.origin == _ORIGIN:
        from mmprune.compat.ops import point_sets

        module.KNN.forward = staticmethod(point_sets.nearest_points)


def _repair_norms(module: ModuleType) -> None:
    """Lets configs say ``eps=0``, which a current PyTorch refuses."""
    build = inspect.unwrap(module.build_norm_layer)

    @functools.wraps(build)
    def build_norm_layer(cfg: dict, *args: Any, **kwargs: Any) -> Any:
        if cfg.get('eps', 1) == 0:
            # Added to any variance above 1e-22 this changes no bit.
            cfg = {**cfg, 'eps': 1e-30}
        return build(cfg, *args, **kwargs)

    module.build_norm_layer = build_norm_layer


def _repair_ssd(module: ModuleType) -> None:
    """Lets SSD of mmdet 3.3 predict, which asks its head for a loss layer."""
    if not hasattr(module.SSDHead, 'loss_cls'):
        module.SSDHead.loss_cls = None


_REPAIRS: dict[str, Callable[[ModuleType], None]] = {
    'mmengine.runner.checkpoint': _repair_checkpoint_module,
    'mmcv.cnn.bricks.norm': _repair_norms,
    'mmcv.ops.furthest_point_sample': _repair_furthest_points,
    'mmcv.ops.knn': _repair_nearest_points,
    'mmcv.ops.points_in_boxes': _repair_points_in_boxes,
    'mmdet.models.dense_heads.ssd_head': _repair_ssd,
}
_AROUND = {'mmengine.optim.optimizer.builder': imported_late}
