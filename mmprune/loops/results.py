"""What the rounds have given, as files."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.dist import barrier, is_main_process

from ..atomic_file import write_whole
from ..rounds import RoundOptions
from .shipping import ship

if TYPE_CHECKING:
    from .iterative import IterativePruningLoop


class Results:
    """One entry per finished round; written after each as ``rounds.json``.

    Args:
        options: Options of the run.
        latency_runs: Timed forwards of the models at the end.
    """

    def __init__(self, options: RoundOptions, latency_runs: int) -> None:
        self.options = options
        self.latency_runs = latency_runs
        self.rounds: list[dict[str, Any]] = []
        self.final: dict[str, Any] = {}
        self.start_clock()

    def start_clock(self) -> None:
        """Starts the time of a round."""
        self._clock = time.perf_counter()

    def add(
        self,
        loop: 'IterativePruningLoop',
        number: int,
        metrics: dict[str, float],
        residual: float | None,
    ) -> None:
        """Adds a round and logs it.

        Args:
            loop: The loop.
            number: Of the round, from 0.
            metrics: Of its validation.
            residual: RSST: norm of what went by its norm when it began.
        """
        rows = loop.rounds.rows()
        kinds = sorted({row['granularity'] for row in rows})
        entry = dict(
            state=number,
            asked={
                kind: self.options.sparsity(kind, number) for kind in kinds
            },
            met={kind: _fraction(rows, kind) for kind in kinds},
            layers=rows,
            metrics={k: float(v) for k, v in metrics.items()},
            residual=residual,
            seconds=time.perf_counter() - self._clock,
        )
        self.rounds = [*self.rounds[:number], entry]
        shown = ', '.join(f'{k}: {v:.4f}' for k, v in entry['metrics'].items())
        pulled = '' if residual is None else f', residual {residual:.2e}'
        loop.runner.logger.info(
            f'pruning state: {number} finished, {summary(rows)}{pulled}'
            + (f', * {shown}' if shown else '')
        )
        if residual is not None and residual > 0.5:
            loop.runner.logger.warning(
                f'the penalty hardly acted: {residual:.0%} of the norm of '
                'what went was still there; raise reg_granularity_prune, or '
                'train longer'
            )
        loop.runner.visualizer.add_scalars(
            {f'sparsity/{k}': v for k, v in entry['met'].items()},
            step=loop.epoch,
        )

    def write(self, loop: 'IterativePruningLoop') -> None:
        """Writes ``rounds.json``; it is whole at any time."""
        if is_main_process():
            write_json(
                dict(
                    options=self.options.to_dict(),
                    config=str(loop.runner.cfg.get('filename') or ''),
                    experiment=loop.runner.experiment_name,
                    rounds=self.rounds,
                    **self.final,
                ),
                Path(loop.runner.work_dir) / 'rounds.json',
            )

    def ship(self, loop: 'IterativePruningLoop') -> None:
        """Removes what is gone and writes the smaller model."""
        if is_main_process():
            self.final = ship(loop, self.rounds, self.latency_runs)
            self.write(loop)
        barrier()

    def state_dict(self) -> list[dict]:
        """Returns the rounds so far."""
        return self.rounds

    def load_state_dict(self, state: list[dict]) -> None:
        """Takes over the rounds of a checkpoint."""
        self.rounds = list(state)


def summary(rows: list[dict]) -> str:
    """Returns how many units of each kind are gone, in words."""
    parts = []
    for kind in sorted({row['granularity'] for row in rows}):
        units, gone, going = (
            sum(row[key] for row in rows if row['granularity'] == kind)
            for key in ('units', 'gone', 'going')
        )
        pulled = f' (and {going} pulled to zero)' if going else ''
        parts.append(
            f'{gone} of {units} {kind}s gone, {gone / units:.1%}{pulled}'
        )
    return ', '.join(parts)


def write_json(data: dict, path: Path) -> None:
    """Writes JSON, whole or not at all."""
    write_whole(path, json.dumps(data, indent=1).encode())


def _fraction(rows: list[dict], kind: str) -> float:
    mine = [row for row in rows if row['granularity'] == kind]
    return sum(r['gone'] for r in mine) / sum(r['units'] for r in mine)
