"""Any detector of mmdet or mmdet3d, from its stock config."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..discovery import discovered_groups
from ..discovery.labels import tensors_in
from ..family import Family, seeded
from ..groups import PruneGroup
from ..registry import TASK_UTILS
from ..tensor_path import TensorPath, traced_part
from .drawn_picture import drawn_batch, trained_size
from .drawn_scene import drawn_scene

# Sides of the pictures on which groups are found and checked; a model that
# does not run on the first gets the next. Only the coupling is read.
_SIDES = (128, 256, 512)


@TASK_UTILS.register_module()
class DetectorFamily(Family):
    """What a config of mmdet or mmdet3d says without a word about pruning.

    Groups are discovered from one prediction and one loss. The example is
    the first picture of the config's data where it is at hand, and a drawn
    one of the size that the config works on where it is not.

    Args:
        cfg: Config of the model.
        num_batches: Batches of the training data for calibration.
    """

    def __init__(self, cfg: Config, num_batches: int = 8) -> None:
        super().__init__(cfg, (), num_batches)
        self._side: int | None = None
        self._raw: bool | None = None

    def groups(self, model: nn.Module) -> Iterator[PruneGroup]:
        """Yields what can be removed.

        Raises:
            ValueError: If the model does not run on a drawn picture.
        """
        _fill_message_hub()
        yield from discovered_groups(model, self._everything)

    @property
    def source(self) -> str:
        """Where the example comes from, in words."""
        return super().source if self._has_data else 'a drawn picture'

    def forward(self, model: nn.Module) -> Any:
        """Returns predictions and raw outputs for a small picture."""
        batch = self.small_batch(model)
        outputs = [self._run(model, batch, 'predict')]
        if self._raw is None:
            self._raw = self.has_raw_outputs(model, batch)
        if self._raw:
            outputs.append(self._run(model, batch, 'tensor'))
        return list(tensors_in(outputs))

    def single_frame(self, model: nn.Module) -> Any:
        """Runs the model once at its own size, to count its cost."""
        batch = self._example
        return list(tensors_in(self._run(model, batch, 'predict')))

    def tensor_path(self, model: nn.Module) -> TensorPath:
        """Returns backbone, neck and raw outputs of the dense heads.

        Of a detector in two stages these are the features and the proposals'
        scores and boxes; what is cut out of the features is chosen by
        values.

        Raises:
            ValueError: If the model does not take pictures.
        """
        data = model.data_preprocessor(copy.deepcopy(self._example), False)
        whole, samples = data['inputs'], data['data_samples']
        named = whole if isinstance(whole, dict) else dict(inputs=whole)
        pictures = {
            name: value
            for name, value in named.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        if not pictures:
            raise ValueError(
                f'{type(model).__name__} reads points, whose number differs '
                'from scan to scan, and a static graph cannot'
            )

        def call(model: nn.Module, given: dict[str, Tensor]) -> Any:
            both = isinstance(whole, dict)
            inputs = {**whole, **given} if both else given['inputs']
            if raw:
                return model(inputs, samples, mode='tensor')
            features = model.extract_feat(inputs)
            heads = ('bbox_head', 'mask_head')
            if hasattr(model, 'roi_head'):
                heads = ('rpn_head',)
            found = dict(features=features)
            for name in heads:
                if getattr(model, name, None) is not None:
                    found[name] = getattr(model, name)(features)
            return found

        # `_forward` of some detectors is not kept up.
        raw = not hasattr(model, 'roi_head') and self.has_raw_outputs(
            model, self._example
        )
        return TensorPath([traced_part('model', model, call, pictures)])

    def batches(self) -> list[Any]:
        """Returns the first batches of the training data.

        Raises:
            ValueError: If the config's training data is not at hand.
        """
        try:
            return super().batches()
        except FileNotFoundError as error:
            raise ValueError(
                f'{self.cfg.filename}: the training data is not at hand '
                f'({error}); put it there, set train_dataloader.dataset by '
                '--cfg-options, or choose a criterion that needs no data'
            ) from error

    @cached_property
    def _has_data(self) -> bool:
        try:
            dataset = self.cfg[self._example_key].dataset
        except ValueError:
            return False
        while 'dataset' in dataset:
            dataset = dataset.dataset
        if not isinstance(dataset, dict) or not dataset.get('ann_file'):
            return False
        root = Path(dataset.get('data_root') or '')
        return (root / dataset.ann_file).is_file()

    @cached_property
    def _example(self) -> Any:
        if self._has_data:
            return super()._example
        return drawn(self.cfg, *trained_size(self.cfg))

    def small_batch(self, model: nn.Module, training: bool = False) -> dict:
        """Returns a drawn picture, as small as the model runs on.

        Args:
            model: The model.
            training: Whether it is as the training gives it.

        Raises:
            ValueError: If it runs on none.
        """
        if self._side is None:
            self._side = self._smallest_side(model)
        return drawn(self.cfg, self._side, self._side, training)

    def _smallest_side(self, model: nn.Module) -> int:
        for side in _SIDES:
            batch = drawn(self.cfg, side, side)
            try:
                with torch.no_grad():
                    self._run(model, batch, 'predict')
            except Exception as error:  # whatever a model's own code raises
                fault = f'{type(error).__name__}: {error}'
                continue
            return side
        raise ValueError(
            f'{self.cfg.filename}: the model does not run on a drawn picture '
            f'({fault[:200]}); name its groups as in docs/add_a_family.md'
        )

    def _everything(self, model: nn.Module) -> Any:
        """Prediction, raw outputs and the loss, so that no branch is missed.

        Raises:
            ValueError: If the loss does not run.
        """
        outputs = self.forward(model)
        batch = self.small_batch(model, training=True)
        try:
            with _in_training(model):
                losses = self._run(model, batch, 'loss')
        except Exception as error:
            raise ValueError(
                f'{self.cfg.filename}: the loss does not run on a drawn '
                f'picture ({type(error).__name__}: {str(error)[:200]}), so '
                'that branches of training alone cannot be seen'
            ) from error
        return [outputs, list(tensors_in(losses))]

    def has_raw_outputs(self, model: nn.Module, batch: Any) -> bool:
        """Returns whether ``mode='tensor'`` gives tensors."""
        try:
            with torch.no_grad():
                return bool(
                    list(tensors_in(self._run(model, batch, 'tensor')))
                )
        except Exception:
            # Whatever its own `_forward` raises: some are not kept up, and
            # then predictions are compared instead.
            return False

    def _run(self, model: nn.Module, batch: Any, mode: str) -> Any:
        data = copy.deepcopy(batch)
        data = model.data_preprocessor(data, mode == 'loss')
        # A segmentor of rooms draws the points that it looks at.
        with seeded(0):
            return model(**data, mode=mode)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the model's own loss on a batch."""
        _fill_message_hub()
        with _in_training(model):
            return super().loss(model, batch)


def drawn(
    cfg: Config, height: int, width: int, training: bool = False
) -> dict[str, Any]:
    """Returns a batch of one drawn picture or scene for a config."""
    if cfg.default_scope == 'mmdet3d':
        return drawn_scene(cfg, height, width, training)
    return drawn_batch(cfg, height, width)


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Sets detector and heads in training; norms and dropout stay as they are.

    Of many detectors half of what their losses read is missing otherwise.
    Layers and what is torch's own stay in evaluation, so that statistics are
    kept and every run gives the same. Modules that a run hangs into others
    (DDQ does) are taken off again, as a state dict would list them twice.
    """
    parts = [
        (module, module.training, set(module._modules))
        for module in model.modules()
        if _is_a_part(module)
    ]
    for module, *_ in parts:
        module.training = True
    try:
        yield
    finally:
        for module, before, names in parts:
            module.training = before
            for name in module._modules.keys() - names:
                del module._modules[name]


def _is_a_part(module: nn.Module) -> bool:
    """Whether a module is the detector's own code, and not a layer."""
    kind = type(module)
    if isinstance(module, _NormBase) or 'Drop' in kind.__name__:
        return False
    if module._modules:
        return not kind.__module__.startswith('torch.')
    return not kind.__module__.startswith(('torch.', 'mmcv.', 'timm.'))


def _fill_message_hub() -> None:
    """What losses read of a running Runner, as at its first iteration."""
    hub = MessageHub.get_current_instance()
    for key in ('epoch', 'iter'):
        if key not in hub.runtime_info:
            hub.update_info(key, 0)
    for key in ('max_epochs', 'max_iters'):
        if key not in hub.runtime_info:
            hub.update_info(key, 1)
