"""A model whose parameters are split over the ranks by FSDP2."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from torch import Tensor, nn
from torch.optim import Optimizer

from ..registry import MODEL_WRAPPERS
from ..shards import gathered, is_sharded, split_like


@MODEL_WRAPPERS.register_module()
class FullyShardedModel(nn.Module):
    """Splits parameters, gradients and optimizer state over the ranks.

    What DDP keeps whole on every rank is kept once: each rank holds a part
    of every parameter, and gathers the parameters of a block while it runs
    (``torch.distributed.fsdp.fully_shard``). Names stay those of the model.
    Use it as ``model_wrapper_cfg=dict(type='mmprune.FullyShardedModel')``,
    with ``mmprune.SafeCheckpointHook``: its checkpoints hold whole tensors
    and resume on any number of ranks.

    Args:
        module: The model, the same on every rank, on any device.
        dtype: Of parameters in forward and backward, such as ``bfloat16``;
            the optimizer works on the model's own. By default that one.
        offload: Whether parameters and optimizer state stay on the CPU.

    Raises:
        ValueError: If the ranks have different weights, or the dtype is
            none of PyTorch's.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: str | None = None,
        offload: bool = False,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            MixedPrecisionPolicy,
            fully_shard,
        )

        super().__init__()
        _check_equal(module)
        device = torch.device(get_device()).type
        options: dict[str, Any] = dict(
            mesh=init_device_mesh(device, (dist.get_world_size(),))
        )
        if dtype is not None:
            options['mp_policy'] = MixedPrecisionPolicy(_dtype(dtype))
        if offload:
            options['offload_policy'] = CPUOffloadPolicy()
        for block in _blocks(module):
            fully_shard(block, **options)
        fully_shard(module, **options)
        kind = type(module)
        module.__class__ = type(kind.__name__, (_Sharded, kind), {})
        for part in module.modules():
            part.register_load_state_dict_pre_hook(_split)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        return self.module(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """Trains the model on a batch, as mmengine's models do."""
        return self.module.train_step(*args, **kwargs)

    def val_step(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the predictions of a batch."""
        return self.module.val_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the predictions of a batch."""
        return self.module.test_step(*args, **kwargs)

    def gathered(self) -> dict[str, Tensor]:
        """Returns the whole parameters by name; all ranks call it.

        On rank 0 they are on the CPU, on the others there are none.
        """
        found = {
            name: _for_first(tensor)
            for name, tensor in self.module.named_parameters(
                remove_duplicate=False
            )
        }
        return {n: t for n, t in found.items() if t is not None}


class _Sharded:
    """Put before the class of a model that is sharded."""

    @property
    def init_weights(self) -> Any:
        """Absent: mmengine would broadcast one rank's part to the others."""
        raise AttributeError('the weights of a sharded model are there')


def gathered_state(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Returns an optimizer's state with whole tensors; all ranks call it.

    Returns:
        Position of the parameter -> its state, as in the state dict; on
        other ranks than 0 without the tensors that were split.
    """
    return {
        index: {
            key: _for_first(value) if isinstance(value, Tensor) else value
            for key, value in entry.items()
        }
        for index, entry in optimizer.state_dict()['state'].items()
    }


def split_state(
    state: dict[int, dict[str, Any]], optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """Returns a saved state of an optimizer, split as its parameters are."""
    params = [p for g in optimizer.param_groups for p in g['params']]

    def part(index: int, value: Any) -> Any:
        whole = isinstance(value, Tensor) and not is_sharded(value)
        if whole and value.shape == params[index].shape:
            return split_like(value, params[index])
        return value

    return {
        index: {key: part(index, value) for key, value in entry.items()}
        for index, entry in state.items()
    }


def _for_first(tensor: Tensor) -> Tensor | None:
    """Gathers a tensor; the other ranks do not keep it."""
    whole = gathered(tensor)
    return whole.cpu() if dist.get_rank() == 0 else None


def _split(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Splits whole tensors before they are loaded."""
    for name, param in module.named_parameters(recurse=False):
        value = state.get(prefix + name)
        if value is None or is_sharded(value) or not is_sharded(param):
            continue
        if value.shape == param.shape:
            state[prefix + name] = split_like(value, param)


def _blocks(module: nn.Module) -> Iterable[nn.Module]:
    """Yields what is gathered at a time: the items of the longest list."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=())


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(
            f'FullyShardedModel: dtype is one of PyTorch, as bfloat16, found '
            f'{name!r}'
        )
    return found


def _check_equal(module: nn.Module) -> None:
    mine = [p.detach().double().sum().item() for p in module.parameters()]
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    if any(other != found[0] for other in found):
        raise ValueError(
            'FullyShardedModel: the ranks were built with different weights; '
            'load them from a file, or set randomness = dict(seed=...)'
        )
