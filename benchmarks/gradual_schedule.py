"""Does a gradual pruning meet its schedule, on every rank and resumed?

Trains a small network with momentum, weight decay, clipping and EMA, with
each schedule and with weights as well as units, and counts what is zero
after every step, beside what the schedule's formula asks for. Then the same
run is killed in the middle and resumed, and run on two gloo ranks of which
the second scores otherwise.

    python benchmarks/gradual_schedule.py [--steps 1]

Exits with 1 if a step is off by more than the rounding to whole weights or
units, a resumed run differs in one bit, or the ranks differ.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from tiny_training import (  # noqa: E402
    config,
    differing,
    final,
    run,
    run_with_crash,
)

from mmprune.adapters import ffn_groups  # noqa: E402
from mmprune.pruners import (  # noqa: E402
    plan_from_zeros,
    prunable_weights,
)
from mmprune.registry import TASK_UTILS  # noqa: E402

SCHEDULES = ('Linear', 'Cubic', 'Exponential')
PRUNERS = dict(weights='WeightPruner', units='StructuredPruner')
RAMP = dict(begin=2, end=14, final=0.75)


@HOOKS.register_module()
class CountHook(Hook):
    """Counts zeros after each step, when all other hooks have run."""

    priority = 'VERY_LOW'

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.fractions: list[float] = []

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Adds the fraction that is zero."""
        count = _zero_weights if self.unit == 'weights' else _zero_units
        self.fractions.append(count(runner.model))


def _zero_weights(model: torch.nn.Module) -> float:
    weights = prunable_weights(model).values()
    zero = sum(int((w == 0).sum()) for w in weights)
    return zero / sum(w.numel() for w in weights)


def _zero_units(model: torch.nn.Module) -> float:
    groups = list(ffn_groups(model))
    try:
        plan = plan_from_zeros(model, groups)
    except ValueError:
        return 0.0
    zero = sum(len(plan.removed(g)) for g in plan.groups)
    return zero / sum(g.size for g in groups)


def settings(folder: Path, schedule: str, unit: str, *more: dict):
    """Returns the config of a run."""
    hook = dict(
        type='mmprune.GradualPruningHook',
        schedule=dict(type=f'mmprune.{schedule}Schedule', **RAMP),
        pruner=dict(type=f'mmprune.{PRUNERS[unit]}'),
    )
    hooks = [dict(type='mmprune.SeedHook'), dict(type='EMAHook'), hook]
    return config(folder, custom_hooks=[*hooks, *more])


def main() -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--steps', type=int, default=1, help='print every n-th step'
    )
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as folder:
        wrong = table(Path(folder), args.steps)
        wrong += resumed(Path(folder))
        wrong += two_ranks(Path(folder))
    return 1 if wrong else 0


def table(folder: Path, every: int) -> int:
    """Prints asked beside met; returns how many are off."""
    asked, met = {}, {}
    for name in SCHEDULES:
        kind = dict(type=f'mmprune.{name}Schedule', **RAMP)
        asked[name] = TASK_UTILS.build(kind)
        for unit in PRUNERS:
            counter = dict(type='CountHook', unit=unit)
            runner = run(
                settings(folder / f'{name}{unit}', name, unit, counter)
            )
            (hook,) = (h for h in runner.hooks if isinstance(h, CountHook))
            met[name, unit] = hook.fractions
    heads = [f'{n}: asked | {" | ".join(PRUNERS)}' for n in SCHEDULES]
    print(f'| step | {" | ".join(heads)} |\n|{"---|" * 10}')
    half = dict(weights=0.5 / 120, units=0.5 / 16)
    wrong = 0
    for step in range(1, 17):
        cells = []
        for name in SCHEDULES:
            wanted = asked[name](step)
            found = {unit: met[name, unit][step - 1] for unit in PRUNERS}
            cells += [f'{wanted:.4f}', *(f'{v:.4f}' for v in found.values())]
            wrong += sum(
                abs(value - wanted) > half[unit] + 1e-9
                for unit, value in found.items()
            )
        if step % every == 0:
            print(f'| {step} | {" | ".join(cells)} |')
    print(f'\nsteps off by more than rounding: {wrong}')
    return wrong


def resumed(folder: Path) -> int:
    """Kills and resumes a run; returns how many tensors differ."""
    different = 0
    for unit in PRUNERS:
        name = f'resumed{unit}'
        run_with_crash(settings(folder / name, 'Cubic', unit), after=11)
        pair = [final(folder / n) for n in (f'Cubic{unit}', name)]
        different += len(differing(*pair))
    print(f'tensors that differ in a resumed run: {different}')
    return different


def two_ranks(folder: Path) -> int:
    """Trains on two ranks; returns how many tensors differ."""
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    script = ROOT / 'tests' / 'two_ranks.py'
    subprocess.run(
        [*start, '--nproc-per-node', '2', str(script), str(folder)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    different = 0
    for unit in PRUNERS:
        one, other = (
            torch.load(folder / f'{unit}_{rank}.pt') for rank in range(2)
        )
        for part in ('masks', 'weights'):
            different += len(differing(one[part], other[part]))
    print(f'masks and weights that differ between two ranks: {different}')
    return different


if __name__ == '__main__':
    sys.exit(main())
