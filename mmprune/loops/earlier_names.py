"""Configs and checkpoints that were written with earlier names."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..packing import pack_masks

_SCHEDULES = {
    'geometric': dict(type='mmprune.ExponentialSchedule'),
    'constant': dict(type='mmprune.OneShot'),
    'per_round': dict(type='mmprune.CompoundSchedule'),
    'linear': dict(type='mmprune.LinearSchedule'),
    'cubic': dict(type='mmprune.CubicSchedule'),
}
_PENALTIES = {
    'x': dict(shape='power', exponent=1),
    'x^2': dict(shape='power', exponent=2),
    'x^3': dict(shape='power', exponent=3),
    'exp': dict(shape='exponential', exponent=1),
    'exp_custom': dict(shape='exponential', exponent=1),
    'exp_custom_exponents': dict(shape='exponential'),
}
_CRITERIA = {
    'magnitude': dict(type='mmprune.Magnitude', p=1, reduce='sum'),
    'l2': dict(type='mmprune.Magnitude', p=2, reduce='sum'),
    'act_l1': dict(type='mmprune.Activation', p=1),
    'act_l2': dict(type='mmprune.Activation', p=2),
    'saliency': dict(type='mmprune.Saliency'),
    'remain': dict(type='mmprune.Remain'),
}
_SIDED = ('magnitude', 'l2', 'saliency', 'remain')
_TARGETS = {
    'head': ('head',),
    'mlp': ('neuron',),
    'both': ('head', 'neuron'),
}
_NORMALIZE = {None: None, 'mean': 'mean', 'l2-layer': 'norm'}
_SCOPES = {'global': 'global', 'layer-wise': 'layer'}
# Earlier name -> where it is now, in the order in which they take effect.
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

    Args:
        options: Of the loop.

    Raises:
        ValueError: If an earlier option has a value that never was, or has
            no effect beside another.
    """
    given = {name: options[name] for name in NAMES if name in options}
    new = copy.deepcopy({k: v for k, v in options.items() if k not in NAMES})
    if not given:
        return new, []
    if 'pruner' not in new:
        new['pruner'] = _first_pruner()
        if given.get('mlp_prune_ratio') is None and 'rate' in given:
            given['mlp_prune_ratio'] = given['rate']
    if given.get('vit_structured') is False:
        _check_weights_alone(given)
    for name in NAMES:
        if name in given:
            _TRANSLATIONS[name](new, given[name])
    notes = [
        f'{name} is now {NAMES[name]}' for name in options if name in NAMES
    ]
    return new, notes


def _first_pruner() -> dict[str, Any]:
    return dict(
        type='mmprune.StructuredPruner',
        sparsity=dict(head=0.7, neuron=0.7),
        importance=dict(_CRITERIA['magnitude'], sides='producers'),
        min_keep=dict(head=1, neuron=1),
        normalize=None,
    )


def _structured(new: dict, value: bool) -> None:
    if not value:
        new['pruner'] = dict(type='mmprune.WeightPruner', sparsity=0.7)


def _targets(new: dict, value: str) -> None:
    kinds = _choice('vit_prune_target', value, _TARGETS)
    sparsity = new['pruner']['sparsity']
    if _of_units(new):
        if not isinstance(sparsity, Mapping):
            sparsity = dict.fromkeys(('head', 'neuron'), sparsity)
        new['pruner']['sparsity'] = {k: sparsity.get(k, 0.7) for k in kinds}


def _ratio(kind: str, new: dict, value: float | None) -> None:
    sparsity = new['pruner']['sparsity']
    if value is None:
        return
    if not _of_units(new):
        if kind == 'head':
            new['pruner']['sparsity'] = value
        return
    if not isinstance(sparsity, Mapping):
        sparsity = dict.fromkeys(('head', 'neuron'), sparsity)
        new['pruner']['sparsity'] = sparsity
    if kind in sparsity:
        sparsity[kind] = value


def _criterion(new: dict, value: str | Mapping) -> None:
    if isinstance(value, Mapping):
        new['pruner']['importance'] = dict(value)
        return
    criterion = dict(_choice('criteria', value, _CRITERIA))
    if value in _SIDED:
        criterion['sides'] = 'producers'
    if new['pruner']['type'].endswith('StructuredPruner'):
        new['pruner']['importance'] = criterion


def _sides(new: dict, value: bool) -> None:
    importance = new['pruner'].get('importance', {})
    if 'sides' in importance:
        importance['sides'] = 'both' if value else 'producers'


def _scope(new: dict, value: str) -> None:
    new['pruner']['scope'] = _choice('sorting_mode', value, _SCOPES)
    if value == 'layer-wise' and _of_units(new):
        # A small layer kept its least, whatever the ratio.
        new['pruner']['strict'] = False


def _counts(new: dict, value: str) -> None:
    if _choice('unit_counts', value, dict(schedule=False, elements=True)):
        new['pruner']['scope'] = 'weights'


def _of_units(new: dict) -> bool:
    return new['pruner']['type'].endswith('StructuredPruner')


def _in_pruner(key: str, choices: Mapping | None = None):
    def translate(new: dict, value: Any) -> None:
        if choices is not None:
            value = _choice(key, value, choices)
        if _of_units(new):
            new['pruner'][key] = value

    return translate


def _least(kind: str, new: dict, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f'min_{kind}s_per_layer must be a whole number of at least 1, '
            f'found {value!r}'
        )
    if _of_units(new):
        least = new['pruner'].get('min_keep', {})
        least = dict(least) if isinstance(least, Mapping) else {}
        new['pruner']['min_keep'] = {**least, kind: value}


def _struct(new: dict, value: str) -> None:
    decays = _choice('struct', value, dict(refill=False, rsst=True))
    before = new.get('decay') or dict(strength=1.0, exponent=4)
    new['decay'] = before if decays else None


def _in_decay(key: str, choices: Mapping | None = None):
    def translate(new: dict, value: Any) -> None:
        if choices is not None:
            value = _choice(key, value, choices)
        if new.get('decay') is not None:
            new['decay'][key] = value

    return translate


def _penalty(new: dict, value: str) -> None:
    shape = _choice('RST_schedule', value, _PENALTIES)
    if new.get('decay') is not None:
        new['decay'] |= shape


def _rewind(new: dict, value: str) -> None:
    late = _choice(
        'prune_type', value, dict(lt=False, rewind_lt=True, pt=False)
    )
    epoch = new.get('rewind_epoch', 0)
    if bool(epoch) != late:
        raise ValueError(
            "prune_type='rewind_lt' rewinds to epoch rewind_epoch of round "
            f'0, and only that does; found prune_type={value!r} and '
            f'rewind_epoch={epoch}'
        )
    new['require_pretrained'] = value == 'pt'


_TRANSLATIONS: dict[str, Callable[[dict, Any], None]] = {
    'pruning_times': lambda new, value: new.update(rounds=value),
    'vit_structured': _structured,
    'vit_prune_target': _targets,
    'rate': partial(_ratio, 'head'),
    'mlp_prune_ratio': partial(_ratio, 'neuron'),
    'criteria': _criterion,
    'include_out': _sides,
    'normalize': _in_pruner('normalize', _NORMALIZE),
    'sorting_mode': _scope,
    'unit_counts': _counts,
    'fillback_rate': _in_pruner('fill_back'),
    'min_heads_per_layer': partial(_least, 'head'),
    'min_neurons_per_layer': partial(_least, 'neuron'),
    'rate_schedule': lambda new, value: new.update(
        schedule=dict(_choice('rate_schedule', value, _SCHEDULES))
    ),
    'struct': _struct,
    'reg_granularity_prune': _in_decay('strength'),
    'exponents': _in_decay('exponent'),
    'RST_schedule': _penalty,
    'reg_scope': _in_decay('per', dict(state='round', epoch='epoch')),
    'penalty_mode': _in_decay('mode'),
    'allow_regrowth': lambda new, value: new.update(regrow=bool(value)),
    'prune_type': _rewind,
}


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


def _choice(name: str, value: Any, choices: Mapping) -> Any:
    if value not in choices:
        raise ValueError(
            f'{name} must be one of {", ".join(map(str, choices))}, found '
            f'{value!r}'
        )
    return choices[value]


def renamed_state(
    state: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> dict[str, Any]:
    """Returns the loop's part of a checkpoint under present names.

    Args:
        state: Of a checkpoint, earlier or present.
        shapes: Name of each group or tensor -> shape of its mask.
    """
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
