"""OpenMMLab on a current PyTorch, without a compiler.

Importing mmprune calls :func:`install`, which only hooks into the import
system and costs nothing until somebody imports mmcv or mmengine's Runner:

- ``mmcv._ext`` is served from :mod:`mmprune.ops` where no compiled one is;
- mmengine's checkpoint loader reads through :func:`load_checkpoint_file`;
- a checkpoint that does not fit the model's pruning plan is refused.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_EXTENSION = 'mmcv._ext'
_trusted = False


class CheckpointError(ValueError):
    """A checkpoint that cannot or must not be read; says which and why."""


# ----------------------------------------------------------- checkpoint files


def load_checkpoint_file(
    path: str | Path,
    map_location: Any = 'cpu',
    trust: bool = False,
    mmap: bool = True,
) -> dict:
    """Returns the checkpoint in a file without running code from it.

    Reads what ``torch.save`` writes (also the format before torch 1.6) and
    ``.safetensors`` (as ``{'state_dict': ...}``). Besides tensors and plain
    containers only the types in :mod:`mmprune.allowlist` are built.

    Args:
        path: The file.
        map_location: As for ``torch.load``.
        trust: Unpickle everything, and so run whatever code is in the file.
        mmap: Map the tensors instead of reading them. Do not overwrite the
            file while such a tensor lives.

    Raises:
        CheckpointError: If the file is missing, damaged, no checkpoint, or
            needs more than the allow-list.
    """
    path = Path(path).expanduser()
    kind = _file_kind(path)
    if kind == 'safetensors':
        return {'state_dict': _load_safetensors(path, map_location)}
    options = dict(mmap=True) if mmap and kind == 'zip' else {}
    return _unpickle(path, str(path), map_location, trust, **options)


def trust_checkpoints(trust: bool = True) -> None:
    """Switches the allow-list off for every load of this process.

    This is what ``--trust-checkpoint`` calls: a checkpoint may then run code.
    """
    global _trusted
    _trusted = trust


def _file_kind(path: Path) -> str:
    if path.is_dir():
        raise CheckpointError(
            f'{path} is a directory; name the checkpoint file inside it'
        )
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint at {path}')
    try:
        with path.open('rb') as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read: {error.strerror}'
        ) from error
    if path.suffix == '.safetensors':
        return 'safetensors'
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    if head.startswith(b'\x80'):
        return 'legacy'
    if head.startswith(b'version https:/'):
        raise CheckpointError(
            f'{path} is a git-lfs pointer, not the checkpoint; run `git lfs '
            'pull`'
        )
    raise CheckpointError(
        f'{path} is not a checkpoint: it is empty'
        if not head
        else f'{path} is not a checkpoint: it begins with {head[:8]!r}, not '
        'as torch.save or safetensors begin'
    )


def _load_safetensors(path: Path, map_location: Any) -> dict:
    import torch

    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f'{path} needs the package safetensors; pip install safetensors'
        ) from error
    on_device = isinstance(map_location, (str, torch.device))
    try:
        return load_file(path, str(map_location) if on_device else 'cpu')
    except Exception as error:
        raise CheckpointError(
            f'{path} is truncated or no safetensors file: {error}'
        ) from error


def _unpickle(
    file: Any, name: str, map_location: Any, trust: bool, **options: Any
) -> dict:
    """Returns the dict in ``file``, a path or a binary stream."""
    import torch

    from mmprune import allowlist

    options.update(map_location=map_location)
    try:
        if trust or _trusted:
            found = torch.load(file, weights_only=False, **options)
        else:
            with allowlist.active():
                found = torch.load(file, weights_only=True, **options)
    except Exception as error:
        raise CheckpointError(allowlist.explain(name, error)) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f'{name} is not a checkpoint: it holds a '
            f'{type(found).__name__}, not a dict of weights'
        )
    return found


# ------------------------------------------------------- plan and model agree


def check_plan_matches(model: Any, checkpoint: Mapping) -> None:
    """Checks that a checkpoint was pruned as the model is.

    Compared is what decides on shapes: the kept units of the groups in
    ``checkpoint['meta']['pruning_plan']`` and in ``model.pruning_plan``.
    A plan that removes no unit fits every dense model.

    Args:
        model: The model about to be loaded, also in a data-parallel wrapper.
        checkpoint: A loaded checkpoint, or a bare state dict.

    Raises:
        ValueError: If they do not agree; says how to build the model.
    """
    model = _unwrap(model)
    meta = checkpoint.get('meta')
    data = meta.get('pruning_plan') if isinstance(meta, Mapping) else None
    plan = getattr(model, 'pruning_plan', None)
    theirs = _removed(data)
    ours = _removed(plan.to_dict() if plan is not None else None)
    if not theirs:
        if ours:
            _check_shapes(model, checkpoint)
        return
    if theirs == ours:
        return
    differing = sorted(
        name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)
    )
    raise ValueError(
        f'the checkpoint is pruned and the model is '
        f'{"pruned differently" if ours else "dense"}: groups '
        f'{differing[:5]} differ ({len(differing)} in all); build the model '
        "with type='mmprune.PrunedModel' and this checkpoint as its plan, or "
        'use tools/test.py, which reads the plan from the checkpoint'
    )


def _removed(plan: Mapping | None) -> dict[str, list[int]]:
    """Returns the kept units of each group that loses some."""
    if plan is None:
        return {}
    sizes = {g['name']: g.get('size') for g in plan.get('groups', ())}
    return {
        name: list(keep)
        for name, keep in plan.get('keep', {}).items()
        if len(keep) != sizes.get(name)
    }


def _check_shapes(model: Any, checkpoint: Mapping) -> None:
    state = checkpoint.get('state_dict', checkpoint)
    own = model.state_dict()
    differing = []
    for key, value in state.items():
        mine = own.get(key.removeprefix('module.'))
        if mine is not None and mine.shape != value.shape:
            differing.append(
                f'{key} {tuple(value.shape)} against {tuple(mine.shape)}'
            )
    if differing:
        raise ValueError(
            'the checkpoint carries no pruning plan and the model is pruned: '
            f'{len(differing)} shapes differ ({"; ".join(differing[:5])}); '
            'load the pruned checkpoint, or build the dense model'
        )


def _unwrap(model: Any) -> Any:
    from mmengine.model import BaseTTAModel, is_model_wrapper

    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


# ------------------------------------------------------------ import machinery


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
        return ModuleSpec(fullname, _ExtensionLoader(), origin='mmprune.ops')


class _ExtensionLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from mmprune.ops import serve

        serve(module)


class _RepairFinder(MetaPathFinder):
    """Repairs a module right after its own code has run."""

    def find_spec(self, fullname, path=None, target=None):
        repair = _REPAIRS.get(fullname)
        if repair is None:
            return None
        others = (f for f in sys.meta_path if f is not self)
        specs = (f.find_spec(fullname, path, target) for f in others)
        spec = next((s for s in specs if s is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
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
        return _unpickle(stream, filename, map_location, trust=False)


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
    if module.ext_module.__spec__.origin != 'mmprune.ops':
        return
    from mmprune.ops import points

    module.points_in_boxes_part = points.points_in_boxes_part
    module.points_in_boxes_all = points.points_in_boxes_all


_REPAIRS: dict[str, Callable[[ModuleType], None]] = {
    'mmengine.runner.checkpoint': _repair_checkpoint_module,
    'mmcv.ops.points_in_boxes': _repair_points_in_boxes,
}
