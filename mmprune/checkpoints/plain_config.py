"""Whether the config of a pruned model alone says what shape it has."""

import copy
from typing import Any

import torch
from torch import nn

from ..blocks import find_blocks

# Where a config has the width of the feed-forward networks -> last name of
# the layer that has as many outputs.
_WIDTHS = {
    'intermediate_size': ('up_proj', 'dense_h_to_4h'),
    'ffn_dim': ('fc1',),
    'n_inner': ('c_fc',),
}
# What says, in the config of a model that has none, where its plan is.
PLAN_KEY = 'mmprune_plan'


def describe_shapes(model: nn.Module) -> str:
    """Writes the shapes of a pruned model into its config, if they can be.

    Args:
        model: A causal language model of transformers, after surgery.

    Returns:
        Why a config cannot say it, empty if it does now. The config is then
        what it was.
    """
    changes = _changes(model)
    try:
        found = _changed(model.config, changes)
        wrong = _difference(model, found)
    except Exception as error:  # each config has checks of its own
        wrong = str(error).strip().splitlines()[-1].strip()
    if wrong:
        return wrong
    # In place: all parts hold this config, and what runs attention with it.
    for key, value in changes.items():
        setattr(model.config, key, value)
    return ''


def _changes(model: nn.Module) -> dict[str, Any]:
    """What the config of a uniform model would say, by its first block."""
    blocks = find_blocks(model)
    first = model.get_submodule(blocks[0])
    changes: dict[str, Any] = dict(num_hidden_layers=len(blocks))
    outputs = {
        name.rpartition('.')[2]: module.weight.shape
        for name, module in first.named_modules()
        if hasattr(module, 'weight') and module.weight.ndim == 2
    }
    entries = model.config.to_dict()
    for key, names in _WIDTHS.items():
        for name in names:
            if key in entries and name in outputs:
                changes[key] = outputs[name][name == 'c_fc']
    for module in first.modules():
        if hasattr(module, 'num_key_value_groups'):
            width = module.head_dim
            changes['head_dim'] = width
            changes['num_key_value_heads'] = outputs['k_proj'][0] // width
            changes['num_attention_heads'] = outputs['q_proj'][0] // width
    kinds = entries.get('layer_types')
    if kinds:
        plan = getattr(model, 'pruning_plan', None)
        gone = {
            int(group.name.rpartition('.')[2])
            for group in (plan.groups if plan else ())
            if group.granularity == 'layer' and not plan.keep[group.name]
        }
        kept = [kind for i, kind in enumerate(kinds) if i not in gone]
        changes['layer_types'] = kept
    return changes


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    """A new config with other entries."""
    entries = config.to_dict()
    for key, value in changes.items():
        # As n_layer of GPT-2 for num_hidden_layers.
        renamed = type(config).attribute_map.get(key, key)
        entries.pop(key, None)
        entries[renamed] = value
    return type(config)(**entries)


def _difference(model: nn.Module, config: Any) -> str:
    """How a model of that config differs from this one, in words."""
    kind = getattr(model, 'network', type(model))
    with torch.device('meta'):
        plain = kind(copy.deepcopy(config))
    theirs = {n: tuple(t.shape) for n, t in plain.state_dict().items()}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if theirs.get(name) != shape:
            return (
                f'{name} has shape {list(shape)} and would have '
                f'{list(theirs.get(name, ()))}: not all blocks, or the width '
                'of the model, fit one config'
            )
    return ''
