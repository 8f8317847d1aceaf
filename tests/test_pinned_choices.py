"""What is pruned is pinned: every criterion, budget and way of growing.

``golden/choices.json`` holds the choices as they were made before the engine
was put together from its parts; a change of any of them has to be meant.
``python tests/test_pinned_choices.py`` writes the file anew.

Weights are multiples of 1/1024 drawn as integers, so that every processor
makes the same ones and most sums are exact.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import TinyMLP
from tiny_vit import VIT
from torch import nn

from mmprune.adapters import ffn_groups, vit_groups
from mmprune.calibration import calibrate
from mmprune.cost_table import CostTable
from mmprune.groups import matrix_names, named_tensors
from mmprune.importance import BNScale, Magnitude, Random, Taylor
from mmprune.loops.earlier_names import renamed
from mmprune.loops.rounds import Rounds
from mmprune.masks import clear
from mmprune.pruners import (
    StructuredPruner,
    WeightPruner,
    prunable_weights,
)
from mmprune.registry import MODELS
from mmprune.sparsifying import Growth

FILE = Path(__file__).parent / 'golden' / 'choices.json'
CRITERIA = {
    'l1': Magnitude(p=1),
    'l2': Magnitude(p=2),
    'taylor': Taylor(),
    'bn_scale': BNScale(),
}
# Units whose scores differ by rounding alone may change places.
SWAPS = 2


def draw(shape, seed: int) -> torch.Tensor:
    """Returns multiples of 1/1024 in (-1/2, 1/2), the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-511, 512, tuple(shape), generator=generator) / 1024


@torch.no_grad()
def with_drawn_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills a model with drawn weights, in place."""
    for number, param in enumerate(model.parameters()):
        param.copy_(draw(param.shape, 1000 * seed + number))
    return model.eval()


def drawn_statistics(model, groups, needs=frozenset()):
    """Statistics whose gradients are drawn, for criteria that read them."""
    stats = calibrate(model, groups, set())
    if 'grad' in needs:
        stats.grad = {
            name: draw(param.shape, 77_000 + number)
            for number, (name, param) in enumerate(model.named_parameters())
        }
    return stats


def bits(flags: torch.Tensor) -> str:
    """Returns booleans as hexadecimal digits, the first one highest."""
    flat = flags.flatten().tolist()
    flat += [False] * (-len(flat) % 4)
    text = ''.join('1' if flag else '0' for flag in flat)
    return f'{int(text, 2):0{len(text) // 4}x}'


def removed_bits(group, removed) -> str:
    flags = torch.zeros(group.size, dtype=torch.bool)
    flags[list(removed)] = True
    return bits(flags)


def plan_bits(plan) -> dict[str, str]:
    """Returns group name -> its removed units."""
    return {g.name: removed_bits(g, plan.removed(g)) for g in plan.groups}


def mask_bits(removed: dict[str, torch.Tensor]) -> dict[str, str]:
    """Returns tensor name -> its pruned weights."""
    return {name: bits(mask) for name, mask in removed.items() if mask.any()}


def distance(one: dict[str, str], other: dict[str, str]) -> int:
    """Returns in how many units two choices differ."""
    count = 0
    for name in {*one, *other}:
        pair = int(one.get(name, '0'), 16) ^ int(other.get(name, '0'), 16)
        count += bin(pair).count('1')
    return count


def vit() -> nn.Module:
    """Two blocks of four heads and 64 neurons."""
    return with_drawn_weights(MODELS.build(VIT))


BATCH = dict(inputs=draw((6, 1, 8, 8), 5), data_samples=torch.arange(6) % 10)


def batch_loss(model, batch):
    return model(**batch, mode='loss')['loss']


# ------------------------------------------------------------------ VAD-tiny

VAD_CASES = {
    **{
        f'{criterion} {target}': dict(
            importance=CRITERIA[criterion], target=target
        )
        for criterion in CRITERIA
        for target in ('units', 'params', 'macs')
    },
    'l1 layer': dict(scope='layer'),
    'l1 round_to 8': dict(round_to=8, min_keep=16),
    'random': dict(importance=Random(seed=3)),
}


def vad_choices(macs: dict[str, float]):
    """Yields name of the case, and what 30 % less leaves of VAD-tiny.

    Args:
        macs: Parameter name -> multiply-adds per element, as
            ``cost_table`` found them at 192 x 320.
    """
    pytest.importorskip('mmdet3d')
    sys.path.insert(0, str(Path(__file__).parent / 'projects'))
    from golden import build_vad

    from projects.VAD.pruning.groups import vad_groups

    model = with_drawn_weights(build_vad('tiny'))
    groups = list(vad_groups(model))
    tensors = named_tensors(model)
    costs = CostTable(
        shapes={name: tuple(t.shape) for name, t in tensors.items()},
        params=dict.fromkeys(macs, 1.0),
        macs=macs,
    )
    for name, options in VAD_CASES.items():
        pruner = StructuredPruner(0.3, **options)
        stats = drawn_statistics(model, groups, pruner.importance.needs)
        plan = pruner(model, groups, costs=costs, stats=stats)
        yield name, plan_bits(plan)


# ---------------------------------------------------- ViT, round after round

ROUNDS = {
    'refill': {},
    'rsst': dict(struct='rsst'),
    **{
        f'criterion {c}': dict(criteria=c)
        for c in ('l2', 'act_l1', 'act_l2', 'saliency', 'remain')
    },
    'criterion of the registry': dict(
        criteria=dict(type='mmprune.Magnitude', p=2)
    ),
    'both sides': dict(include_out=True),
    'mean': dict(normalize='mean'),
    'norm of the layer': dict(normalize='l2-layer'),
    'layer-wise': dict(sorting_mode='layer-wise', rate=0.9),
    'fill-back': dict(fillback_rate=0.3),
    'fill-back layer-wise': dict(fillback_rate=0.3, sorting_mode='layer-wise'),
    'elements': dict(unit_counts='elements'),
    'elements with fill-back': dict(unit_counts='elements', fillback_rate=0.4),
    'elements, rsst, remain': dict(
        unit_counts='elements', struct='rsst', criteria='remain'
    ),
    'regrowth': dict(allow_regrowth=True),
    'regrowth, rsst, l2': dict(
        allow_regrowth=True, struct='rsst', criteria='l2'
    ),
    'regrowth, elements': dict(allow_regrowth=True, unit_counts='elements'),
    'own ratios, two kept': dict(
        rate=0.4,
        mlp_prune_ratio=0.8,
        min_heads_per_layer=2,
        min_neurons_per_layer=9,
    ),
    'heads only': dict(vit_prune_target='head', criteria='remain'),
    'neurons only': dict(
        vit_prune_target='mlp', mlp_prune_ratio=0.5, criteria='remain'
    ),
    **{
        f'{s} rates': dict(rate_schedule=s)
        for s in ('constant', 'per_round', 'linear', 'cubic')
    },
}
ROUNDS['per_round rates'] |= dict(rate=0.2)
WEIGHT_ROUNDS = {
    'weights, refill': dict(rate=0.6),
    'weights, rsst': dict(struct='rsst', rate=0.6),
    'weights, layer-wise': dict(sorting_mode='layer-wise', rate=0.6),
}


@torch.no_grad()
def pretend_to_train(model: nn.Module, event: int) -> None:
    """Moves every weight a little, the same way each time."""
    for number, param in enumerate(model.parameters()):
        param.add_(draw(param.shape, 500 * event + number) / 2)


def rounds_of(options: dict) -> list[dict]:
    """Returns for each of three events what is pruned and what decays."""
    model = vit()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    options, _ = renamed(
        {'epochs': 1, 'pruning_times': 4, 'rate': 0.7, **options}
    )
    plan = Rounds(**options)
    groups = list(vit_groups(model))
    names = ()
    if isinstance(plan.built_pruner, WeightPruner):
        names = matrix_names(groups, named_tensors(model))
        groups = []
    growth = Growth(
        plan.built_pruner,
        model,
        groups,
        weights=names,
        decay=plan.decay is not None,
        regrow=plan.regrow,
    )
    restart = calibrate(vit(), (), set())
    found = []
    for event in range(1, 4):
        pretend_to_train(model, event)
        clear(growth.regions(model, growth.pruned))
        clear(growth.regions(model, growth.decaying))
        growth.finish_decay()
        sparsity = plan.sparsity(event)
        stats = growth.calibrate(sparsity, [BATCH], batch_loss)
        growth.advance(sparsity, stats, restart)
        model.load_state_dict(start)
        found.append(
            dict(
                pruned=mask_bits(growth.pruned),
                decaying=mask_bits(growth.decaying),
            )
        )
    return found


# ------------------------------------------------- growing while it is trained

GRADUAL = {
    'gradual weights': WeightPruner(0.8),
    'gradual weights, layer': WeightPruner(0.8, scope='layer'),
    'gradual units': StructuredPruner(0.8, min_keep=1),
    'gradual units, l2, layer': StructuredPruner(
        0.8, importance=Magnitude(p=2), scope='layer'
    ),
    'gradual units, taylor': StructuredPruner(0.8, importance=Taylor()),
}


def gradual_of(pruner) -> list[dict]:
    """Returns what is pruned after each of four steps of a growth."""
    model = with_drawn_weights(TinyMLP(), seed=4)
    groups, names = list(ffn_groups(model)), ()
    if isinstance(pruner, WeightPruner):
        groups, names = [], list(prunable_weights(model))
    growth = Growth(pruner, model, groups, weights=names)
    found = []
    for event, sparsity in enumerate((0.2, 0.45, 0.5, 0.8)):
        pretend_to_train(model, event)
        stats = drawn_statistics(model, groups, pruner.importance.needs)
        growth.advance(sparsity, stats)
        clear(growth.regions(model, growth.pruned, consumers_only=True))
        found.append(mask_bits(growth.pruned))
    return found


# ----------------------------------------------------------------- the tests

CASES = {
    **{name: (rounds_of, options) for name, options in ROUNDS.items()},
    **{
        name: (rounds_of, dict(options, vit_structured=False))
        for name, options in WEIGHT_ROUNDS.items()
    },
    **{name: (gradual_of, pruner) for name, pruner in GRADUAL.items()},
}


@pytest.fixture(scope='module')
def golden():
    return json.loads(FILE.read_text())


@pytest.mark.parametrize('name', CASES)
def test_a_growth_chooses_what_it_always_chose(golden, name):
    grow, options = CASES[name]
    assert grow(options) == golden[name]


def test_vad_tiny_loses_the_units_it_always_lost(golden):
    found = dict(vad_choices(golden['VAD-tiny MACs']))
    assert list(found) == list(golden['VAD-tiny'])
    for name, plan in found.items():
        expected = golden['VAD-tiny'][name]
        assert sum(map(len, expected.values())) > 1000
        assert distance(plan, expected) <= 2 * SWAPS, name


if __name__ == '__main__':
    before = json.loads(FILE.read_text())
    data = {name: grow(options) for name, (grow, options) in CASES.items()}
    data['VAD-tiny MACs'] = before['VAD-tiny MACs']
    data['VAD-tiny'] = dict(vad_choices(data['VAD-tiny MACs']))
    FILE.write_text(json.dumps(data, indent=0) + '\n')
