"""Removes units from a model: the only code that changes shapes."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from .attention import SlimMultiheadAttention, SlimWindowAttention
from .checkpoints.unfilled import empty_like_slice, is_unfilled
from .groups import named_tensors
from .layers import is_conv1d
from .plan import PruningPlan


def apply_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Removes the units that ``plan`` drops, in place.

    Every tensor is sliced once, whatever number of groups it belongs to.
    Afterwards ``model.pruning_plan`` is the plan, so that hooks can write it
    into checkpoints.

    Args:
        model: The dense model.
        plan: Which units stay.

    Raises:
        ValueError: If a tensor of the plan is missing or too small, if a
            sliced tensor is shared with a name that is not sliced alike, or
            if the model has been pruned before.
    """
    if getattr(model, 'pruning_plan', None) is not None:
        raise ValueError(
            'the model has been pruned before; apply a plan to the dense '
            'model only'
        )
    tensors = named_tensors(model)
    index = kept_index(plan, {k: tuple(t.shape) for k, t in tensors.items()})
    # Asking the model for each of them walks down its whole path.
    modules = dict(model.named_modules(remove_duplicate=False))
    _refuse_tied(modules, tensors, index)
    replaced: dict[int, Tensor] = {}
    touched = {}
    for name, dims in index.items():
        old = tensors[name]
        if id(old) not in replaced:
            replaced[id(old)] = _sliced(old, dims)
        path, _, leaf = name.rpartition('.')
        module = modules[path]
        kind = '_parameters' if leaf in module._parameters else '_buffers'
        getattr(module, kind)[leaf] = replaced[id(old)]
        touched[path] = module
    for group in plan.groups:
        for attr, value in group.attrs.items():
            path, _, leaf = attr.rpartition('.')
            module = modules[path]
            setattr(module, leaf, value * len(plan.keep[group.name]))
            touched[path] = module
    for module in touched.values():
        _refresh(module)
    _remove_blocks(model, plan)
    model.pruning_plan = plan


def _remove_blocks(model: nn.Module, plan: PruningPlan) -> None:
    """Removes whole blocks from the list that holds them, in place."""
    gone = defaultdict(set)
    for group in plan.groups:
        if group.granularity == 'layer' and not plan.keep[group.name]:
            parent, _, number = group.name.rpartition('.')
            gone[parent].add(int(number))
    for parent, numbers in gone.items():
        blocks = model.get_submodule(parent)
        kept = [b for i, b in enumerate(blocks) if i not in numbers]
        if not kept:
            raise ValueError(
                f'all {len(numbers)} blocks of {parent} would be removed; '
                'lower the sparsity'
            )
        del blocks[:]
        blocks.extend(kept)
        # By these numbers they find their keys and values in a cache.
        for number, block in enumerate(kept):
            for module in block.modules():
                if hasattr(module, 'layer_idx'):
                    module.layer_idx = number


def kept_index(
    plan: PruningPlan, shapes: dict[str, tuple[int, ...]]
) -> dict[str, dict[int, Tensor]]:
    """Returns for each tensor and dimension the positions that stay.

    Args:
        plan: Which units stay.
        shapes: Shape of every tensor of the dense model. The same index also
            slices what has the shape of a parameter, as optimizer state.

    Returns:
        Tensor name -> dim -> sorted positions ``[kept]``.

    Raises:
        ValueError: If a tensor of the plan is missing or too small.
    """
    stays: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for group in plan.groups:
        removed = plan.removed(group)
        # Most tensors of a group hold its units in the same places.
        known: dict[tuple, np.ndarray] = {}
        for part in group.slices:
            shape = shapes.get(part.tensor)
            if shape is None or len(shape) <= part.dim:
                raise ValueError(
                    f'group {group.name!r}: the model has no tensor '
                    f'{part.tensor!r} with a dimension {part.dim}; the plan '
                    'belongs to another model'
                )
            size = shape[part.dim]
            if part.end(group.size) > size:
                raise ValueError(
                    f'group {group.name!r}: {part.tensor!r} has {size} '
                    f'positions in dimension {part.dim}, the plan needs '
                    f'{part.end(group.size)}; the plan belongs to another '
                    'model'
                )
            if removed:
                stay = stays[part.tensor].setdefault(
                    part.dim, np.ones(size, bool)
                )
                layout = part.block, part.offset, part.copies, part.positions
                if layout not in known:
                    known[layout] = part.places(removed, group.size)
                stay[known[layout]] = False
    return {
        name: {
            dim: torch.from_numpy(np.flatnonzero(stay))
            for dim, stay in dims.items()
        }
        for name, dims in stays.items()
    }


def _sliced(tensor: Tensor, dims: dict[int, Tensor]) -> Tensor:
    new = tensor.detach()
    if is_unfilled(tensor):
        new, dims = empty_like_slice(new, dims), {}
    for dim, index in dims.items():
        new = new.index_select(dim, index.to(new.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new


def _refuse_tied(
    modules: dict[str, nn.Module],
    tensors: dict[str, Tensor],
    index: dict[str, dict[int, Tensor]],
) -> None:
    """Tied tensors may only be sliced alike, or one name goes stale.

    One module under two names is not tied: both lead to the new tensor.
    """

    def holder(name: str) -> tuple[int, str]:
        path, _, leaf = name.rpartition('.')
        return id(modules[path]), leaf

    names = defaultdict(list)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    for name, dims in index.items():
        for other in names[id(tensors[name])]:
            if other == name or holder(other) == holder(name):
                continue
            theirs = index.get(other, {})
            alike = theirs.keys() == dims.keys() and all(
                torch.equal(theirs[d], dims[d]) for d in dims
            )
            if not alike:
                raise ValueError(
                    f'{name!r} is the same tensor as {other!r}, which the '
                    'plan does not slice alike; protect the group or untie '
                    'the tensors'
                )


def _refresh(m: nn.Module) -> None:
    """Makes the stored sizes of a layer agree with its new tensors."""
    if isinstance(m, nn.Linear):
        m.out_features, m.in_features = m.weight.shape
    elif isinstance(m, nn.modules.conv._ConvNd):
        out, per_group = m.weight.shape[:2]
        if m.transposed:
            m.in_channels, m.out_channels = out, per_group * m.groups
        else:
            m.out_channels, m.in_channels = out, per_group * m.groups
    elif isinstance(m, nn.modules.batchnorm._NormBase):
        kept = m.weight if m.weight is not None else m.running_mean
        m.num_features = kept.shape[0]
    elif isinstance(m, nn.LayerNorm):
        m.normalized_shape = tuple(m.weight.shape)
    elif isinstance(m, nn.GroupNorm):
        m.num_channels = m.weight.shape[0]
    elif isinstance(m, nn.Embedding):
        m.num_embeddings, m.embedding_dim = m.weight.shape
    elif isinstance(m, nn.MultiheadAttention):
        SlimMultiheadAttention.take_over(m)
    elif SlimWindowAttention.fits(m):
        m.__class__ = SlimWindowAttention
    elif is_conv1d(type(m)):
        m.nx, m.nf = m.weight.shape
