"""Configs and checkpoints that were written with earlier names."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks import check_whole
from ..packing import pack_masks

# What the words of an option mean, for those that take words.
_WORDS: dict[str, dict] = {
    'vit_prune_target': {
        'head': ('head',),
        'mlp': ('neuron',),
        'both': ('head', 'neuron'),
    },
    'criteria': {
        'magnitude': dict(type='mmprune.Magnitude', p=1, reduce='sum'),
        'l2': dict(type='mmprune.Magnitude', p=2, reduce='sum'),
        'act_l1': dict(type='mmprune.Activation', p=1),
        'act_l2': dict(type='mmprune.Activation', p=2),
        'saliency': dict(type='mmprune.Saliency'),
        'remain': dict(type='mmprune.Remain'),
    },
    'normalize': {None: None, 'mean': 'mean', 'l2-layer': 'norm'},
    'sorting_mode': {'global': 'global', 'layer-wise': 'layer'},
    'unit_counts': dict(schedule=False, elements=True),
    'rate_schedule': {
        'geometric': dict(type='mmprune.ExponentialSchedule'),
        'constant': dict(type='mmprune.OneShot'),
        'per_round': dict(type='mmprune.CompoundSchedule'),
        'linear': dict(type='mmprune.LinearSchedule'),
        'cubic': dict(type='mmprune.CubicSchedule'),
    },
    'struct': dict(refill=False, rsst=True),
    'RST_schedule': {
        'x': dict(shape='power', exponent=1),
        'x^2': dict(shape='power', exponent=2),
        'x^3': dict(shape='power', exponent=3),
        'exp': dict(shape='exponential', exponent=1),
        'exp_custom': dict(shape='exponential', exponent=1),
        'exp_custom_exponents': dict(shape='exponential'),
    },
    'reg_scope': dict(state='round', epoch='epoch'),
    'prune_type': dict(lt=False, rewind_lt=True, pt=False),
}
# Earlier name -> where it is now.
NAMES = {
    'pruning_times': 'rounds',
    'vit_structured': 'pruner.type',
    'vit_prune_target': 'pruner.sparsity',
    'rate': 'pruner.sparsity',
    'mlp_prune_ratio': 'pruner.sparsity',
    'criteria': 'pruner.importance',
    'include_out': 'pruner.importance.sides',
    'normalize': 'pruner.normalize',
    'sorting_mode': 'pruner.scope',
    'unit_counts': 'pruner.scope',
    'fillback_rate': 'pruner.fill_back',
    'min_heads_per_layer': 'pruner.min_keep.head',
    'min_neurons_per_layer': 'pruner.min_keep.neuron',
    'rate_schedule': 'schedule',
    'struct': 'decay',
    'reg_granularity_prune': 'decay.strength',
    'exponents': 'decay.exponent',
    'RST_schedule': 'decay.shape',
    'reg_scope': 'decay.per',
    'penalty_mode': 'decay.mode',
    'allow_regrowth': 'regrow',
    'prune_type': 'rewind_epoch, require_pretrained',
}


def renamed(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns options under their present names, and what was renamed.

    Earlier names may stand beside present ones and then change just what
    they name. Without a ``pruner`` they mean heads and neurons by the sum of
    their writing weights, as they did.

    Raises:
        ValueError: If an earlier option has a value that never was, or has
            no effect beside another.
    """
    given = {name: options[name] for name in NAMES if name in options}
    new = copy.deepcopy({k: v for k, v in options.items() if k not in NAMES})
    if not given:
        return new, []
    if given.get('vit_structured') is False:
        _check_weights_alone(given)
    if 'pruner' not in new:
        new['pruner'] = _first_pruner()
        if given.get('mlp_prune_ratio') is None and 'rate' in given:
            given['mlp_prune_ratio'] = given['rate']
    given = {name: _meaning(name, value) for name, value in given.items()}
    if given.get('vit_structured') is False:
        new['pruner'] = dict(type='mmprune.WeightPruner', sparsity=0.7)
    if isinstance(options.get('criteria'), Mapping):
        # Its own config fits any pruner, the words were those of units.
        new['pruner']['importance'] = given.pop('criteria')
    _change_pruner(new['pruner'], given)
    _change_decay(new, given)
    for name in ('pruning_times', 'rate_schedule', 'allow_regrowth'):
        if name in given:
            new[NAMES[name]] = given[name]
    if 'prune_type' in given:
        _check_rewind(given['prune_type'], new, options['prune_type'])
        new['require_pretrained'] = options['prune_type'] == 'pt'
    notes = [
        f'{name} is now {NAMES[name]}' for name in options if name in NAMES
    ]
    return new, notes


def _meaning(name: str, value: Any) -> Any:
    """The present value of an earlier option."""
    if name == 'criteria' and isinstance(value, Mapping):
        return dict(value)
    if name in _WORDS:
        words = _WORDS[name]
        if value not in words:
            raise ValueError(
                f'{name} must be one of {", ".join(map(str, words))}, found '
                f'{value!r}'
            )
        meaning = copy.deepcopy(words[value])
        if name == 'criteria' and 'Activation' not in meaning['type']:
            meaning['sides'] = 'producers'
        return meaning
    if name.startswith('min_'):
        check_whole(name, value, 1)
    return bool(value) if name == 'allow_regrowth' else value


def _first_pruner() -> dict[str, Any]:
    return dict(
        type='mmprune.StructuredPruner',
        sparsity=dict(head=0.7, neuron=0.7),
        importance=_meaning('criteria', 'magnitude'),
        min_keep=dict(head=1, neuron=1),
        normalize=None,
    )


def _change_pruner(pruner: dict[str, Any], given: Mapping[str, Any]) -> None:
    if 'sorting_mode' in given:
        pruner['scope'] = given['sorting_mode']
    if given.get('unit_counts'):
        pruner['scope'] = 'weights'
    if not pruner['type'].endswith('StructuredPruner'):
        if given.get('rate') is not None:
            pruner['sparsity'] = given['rate']
        return
    if given.get('sorting_mode') == 'layer':
        # A small layer kept its least, whatever the ratio.
        pruner['strict'] = False
    ratios = dict(head=given.get('rate'), neuron=given.get('mlp_prune_ratio'))
    ratios = {k: v for k, v in ratios.items() if v is not None}
    sparsity = pruner['sparsity']
    if 'vit_prune_target' in given or ratios:
        if not isinstance(sparsity, Mapping):
            sparsity = dict.fromkeys(('head', 'neuron'), sparsity)
        kinds = given.get('vit_prune_target', tuple(sparsity))
        pruner['sparsity'] = {
            k: ratios.get(k, sparsity.get(k, 0.7)) for k in kinds
        }
    if 'criteria' in given:
        pruner['importance'] = given['criteria']
    importance = pruner.get('importance', {})
    if 'include_out' in given and 'sides' in importance:
        importance['sides'] = 'both' if given['include_out'] else 'producers'
    for name in ('normalize', 'fillback_rate'):
        if name in given:
            pruner[NAMES[name].removeprefix('pruner.')] = given[name]
    for kind in ('head', 'neuron'):
        if f'min_{kind}s_per_layer' in given:
            least = pruner.get('min_keep', {})
            least = dict(least) if isinstance(least, Mapping) else {}
            least[kind] = given[f'min_{kind}s_per_layer']
            pruner['min_keep'] = least


def _change_decay(new: dict[str, Any], given: Mapping[str, Any]) -> None:
    if 'struct' in given:
        before = new.get('decay') or dict(strength=1.0, exponent=4)
        new['decay'] = before if given['struct'] else None
    decay = new.get('decay')
    if decay is None:
        return
    for name, place in NAMES.items():
        if name in given and name == 'RST_schedule':
            decay |= given[name]
        elif name in given and place.startswith('decay.'):
            decay[place.removeprefix('decay.')] = given[name]


def _check_rewind(late: bool, new: Mapping[str, Any], value: str) -> None:
    epoch = new.get('rewind_epoch', 0)
    if bool(epoch) != late:
        raise ValueError(
            "prune_type='rewind_lt' rewinds to epoch rewind_epoch of round "
            f'0, and only that does; found prune_type={value!r} and '
            f'rewind_epoch={epoch}'
        )


def _check_weights_alone(given: dict[str, Any]) -> None:
    plain = dict(
        criteria='magnitude',
        vit_prune_target='both',
        fillback_rate=0,
        unit_counts='schedule',
        allow_regrowth=False,
        mlp_prune_ratio=given.get('rate', 0.7),
    )
    idle = [
        name
        for name, value in plain.items()
        if given.get(name) not in (None, value)
    ]
    if idle:
        raise ValueError(
            'vit_structured=False prunes single weights of all matrices by '
            f'magnitude, where {", ".join(idle)} has no effect; leave it '
            'out, or give a pruner (docs/prune_vit.md)'
        )


def renamed_state(
    state: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> dict[str, Any]:
    """Returns the loop's part of a checkpoint under present names."""
    if 'growth' in state:
        return dict(state)
    options, _ = renamed(state['options'])
    lost = [
        name
        for name, value in state['rounds']['gone'].items()
        if name not in shapes and _any(value)
    ]
    if lost:
        raise ValueError(
            f'the checkpoint has pruned {lost[:4]}, which stay dense now; '
            'name their granularity in pruner.sparsity, and unfreeze them'
        )
    growth = {
        key: pack_masks(
            {
                name: _mask(value, shapes[name])
                for name, value in state['rounds'][earlier].items()
                if name in shapes
            }
        )
        for key, earlier in (('pruned', 'gone'), ('decaying', 'going'))
    }
    return dict(
        finished_rounds=state['finished_rounds'],
        growth=growth,
        decaying_norm=state['going_norm'],
        rewind_checksum=state['rewind_checksum'],
        options=options,
        results=[renamed_result(entry) for entry in state['results']],
    )


def renamed_result(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry of a round under present names."""
    entry = dict(entry)
    if 'state' not in entry:
        return entry
    entry = {'round': entry.pop('state'), **entry}
    names = dict(gone='pruned', going='decaying')
    entry['layers'] = [
        {names.get(key, key): value for key, value in row.items()}
        for row in entry['layers']
    ]
    return entry


def _any(value: Any) -> bool:
    return bool(value.any()) if isinstance(value, Tensor) else bool(value)


def _mask(value: Any, shape: torch.Size) -> Tensor:
    """From indices of units, or from bits with the first one lowest."""
    if not isinstance(value, Tensor):
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[list(value)] = True
        return mask
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    bits = (value.cpu()[:, None] & weights) != 0
    return bits.flatten()[: shape.numel()].view(shape)
