"""The checkpoint that a training starts from."""

import hashlib
import json
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import Tensor, nn

from ...checkpoints.comparing import checksum
from ...models import build_model
from ...plan import PruningPlan
from ...surgery import kept_index
from .length import Length

# Hyperparameters that tell one family of optimizers from another.
_TELLING = {'betas', 'momentum', 'alpha', 'rho', 'lr_decay'}


def start_checkpoint(
    pruned: dict, length: Length, dataset_meta: dict | None
) -> dict:
    """Returns a checkpoint with weights and plan, where to start from."""
    return dict(
        meta=dict(
            epoch=length.first if length.by_epoch else 0,
            iter=length.first_iteration,
            dataset_meta=dataset_meta,
            pruning_plan=pruned['meta']['pruning_plan'],
        ),
        state_dict=pruned['state_dict'],
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
    )


def add_optimizer(
    start: dict, cfg: Config, state: dict[str, dict], length: Length
) -> None:
    """Adds what a Runner resumes: optimizer and schedulers, in place.

    The learning rates and schedulers are those of the new run, at its first
    step: a Runner that resumes takes them from the checkpoint.
    """
    model = build_model(cfg)
    wrapper, schedulers = build_optimizer(model, cfg, length)
    saved = wrapper.state_dict()
    saved['state'] = {
        i: state[name]
        for i, name in enumerate(parameter_order(model, wrapper))
        if name in state
    }
    start['optimizer'] = saved
    start['param_schedulers'] = [s.state_dict() for s in schedulers]


def build_optimizer(
    model: nn.Module, cfg: Config, length: Length
) -> tuple[OptimWrapper, list]:
    """Returns the optimizer of a training config and its schedulers."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    args = dict(optimizer=wrapper, epoch_length=length.epoch_length)
    return wrapper, [
        PARAM_SCHEDULERS.build(dict(scheduler), default_args=args)
        for scheduler in cfg.param_scheduler
    ]


def parameter_order(model: nn.Module, wrapper: OptimWrapper) -> list[str]:
    """Returns the names of parameters as an optimizer counts them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        names[id(p)]
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    ]


def carried_state(
    dense: dict, cfg: Config, pruned: dict
) -> tuple[dict[str, dict], str]:
    """Returns the optimizer's state of a dense checkpoint, after surgery.

    Returns:
        Parameter name -> state of its kept units; and why it is empty.
    """
    model = build_model(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    order, reason = saved_order(dense, model, wrapper, cfg)
    if reason:
        return {}, reason
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    index = kept_index(PruningPlan.from_checkpoint(pruned), shapes)
    weights = pruned['state_dict']
    zeros = pruned['meta']['pruning_plan'].get('sparse', {})
    carried = {}
    for i, entry in dense['optimizer']['state'].items():
        name = order[i]
        mask = weights[name] != 0 if name in zeros else None
        carried[name] = {
            key: _kept(value, shapes[name], index.get(name, {}), mask)
            for key, value in entry.items()
        }
    return carried, ''


def saved_order(
    dense: dict, model: nn.Module, wrapper: OptimWrapper, cfg: Config
) -> tuple[list[str], str]:
    """Returns the names of the states of the optimizer in a checkpoint.

    Args:
        dense: The checkpoint.
        model: The dense model.
        wrapper: Its optimizer, as the config builds it.
        cfg: The config.

    Returns:
        The names in order, and why they are unknown.
    """
    saved = dense.get('optimizer')
    if saved is None:
        return [], 'the checkpoint has none'
    if not isinstance(saved, dict) or 'param_groups' not in saved:
        return [], 'the checkpoint holds several optimizers'
    ours = wrapper.optimizer.param_groups
    theirs = saved['param_groups']
    if _TELLING & set(ours[0]) != _TELLING & set(theirs[0]):
        return [], 'it is that of another kind of optimizer'
    params = dict(model.named_parameters())
    # The file lists its weights in the order in which its modules were made,
    # which counts for the optimizer too.
    listed = [name for name in dense['state_dict'] if name in params]
    # mmcv gives frozen parameters to the optimizer, mmengine may not.
    orders = [listed, [n for n in listed if params[n].requires_grad]]
    if cfg.optim_wrapper.get('constructor') not in (
        None,
        'DefaultOptimWrapperConstructor',
    ):
        if listed != list(params):
            return [], 'the order of its parameters is not known'
        orders = [parameter_order(model, wrapper)]
    count = sum(len(group['params']) for group in theirs)
    orders = [order for order in orders if len(order) == count]
    if not orders:
        return [], f'it has {count} parameters, the model {len(params)}'
    wrong = _misfit(saved['state'], orders[0], params)
    return orders[0], f'its shapes differ, first at {wrong}' if wrong else ''


def _misfit(
    state: dict, order: list[str], params: dict[str, nn.Parameter]
) -> str:
    """Returns the first parameter whose state has another shape."""
    for i, entry in state.items():
        for value in entry.values():
            large = isinstance(value, Tensor) and value.dim() > 0
            if large and value.shape != params[order[i]].shape:
                return order[i]
    return ''


def _kept(
    value: Any,
    shape: tuple[int, ...],
    index: dict[int, Tensor],
    mask: Tensor | None,
) -> Any:
    """Returns the part of a parameter's state that surgery leaves."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        return value
    value = value.cpu()
    for dim, kept in index.items():
        value = value.index_select(dim, kept)
    return value if mask is None else value * mask


def digest(checkpoint: dict) -> str:
    """Returns a hash of the plan and the weights of a pruned checkpoint."""
    plan = json.dumps(checkpoint['meta']['pruning_plan'], sort_keys=True)
    both = plan + checksum(checkpoint['state_dict'])
    return hashlib.sha256(both.encode()).hexdigest()
