"""The results of an iterative pruning: rounds.json and the log."""

import time
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from ..atomic_file import save_json
from .rounds import Rounds


class Results:
    """One entry per finished round; written after each as ``rounds.json``.

    Attributes:
        rounds: The entries so far.
        final: What the export of the smaller model adds.
    """

    def __init__(self, runner: Runner, plan: Rounds) -> None:
        self.runner, self.plan = runner, plan
        self.rounds: list[dict[str, Any]] = []
        self.final: dict[str, Any] = {}
        self.start_clock()

    def start_clock(self) -> None:
        """Starts the time of a round."""
        self._clock = time.perf_counter()

    def add(
        self,
        number: int,
        rows: list[dict],
        metrics: dict[str, float],
        residual: float | None,
    ) -> None:
        """Adds a round and logs it.

        ``residual`` is the norm of what decayed by its norm at the start.
        """
        asked = self.plan.sparsity(number)
        kinds = sorted({row['granularity'] for row in rows})
        entry = dict(
            round=number,
            asked={
                kind: asked[kind] if isinstance(asked, dict) else asked
                for kind in kinds
            },
            met={kind: _fraction(rows, kind) for kind in kinds},
            layers=rows,
            metrics={k: float(v) for k, v in metrics.items()},
            residual=residual,
            seconds=time.perf_counter() - self._clock,
        )
        self.rounds = [*self.rounds[:number], entry]
        self._log(entry)
        self.runner.visualizer.add_scalars(
            {f'sparsity/{k}': v for k, v in entry['met'].items()},
            step=self.runner.epoch,
        )

    def _log(self, entry: dict[str, Any]) -> None:
        logger, residual = self.runner.logger, entry['residual']
        shown = ', '.join(f'{k}: {v:.4f}' for k, v in entry['metrics'].items())
        left = '' if residual is None else f', residual {residual:.2e}'
        logger.info(
            f'pruning state: {entry["round"]} finished, '
            f'{count_text(entry["layers"])}{left}'
            + (f', * {shown}' if shown else '')
        )
        if residual is not None and residual > 0.5:
            logger.warning(
                f'the penalty hardly acted: {residual:.0%} of the norm of '
                'what decayed was still there; raise decay.strength, or '
                'train longer'
            )

    def write(self) -> None:
        """Writes ``rounds.json``, on one rank; it is whole at any time."""
        if is_main_process():
            data = dict(
                options=self.plan.to_dict(),
                config=str(self.runner.cfg.get('filename') or ''),
                experiment=self.runner.experiment_name,
                rounds=self.rounds,
                **self.final,
            )
            save_json(data, Path(self.runner.work_dir) / 'rounds.json')


def count_text(rows: list[dict]) -> str:
    """Returns in words how many units of each kind are pruned."""
    parts = []
    for kind in sorted({row['granularity'] for row in rows}):
        units, pruned, decaying = (
            sum(row[key] for row in rows if row['granularity'] == kind)
            for key in ('units', 'pruned', 'decaying')
        )
        more = f' (and {decaying} decaying)' if decaying else ''
        parts.append(
            f'{pruned} of {units} {kind}s pruned, {pruned / units:.1%}{more}'
        )
    return ', '.join(parts)


def _fraction(rows: list[dict], kind: str) -> float:
    mine = [row for row in rows if row['granularity'] == kind]
    return sum(r['pruned'] for r in mine) / sum(r['units'] for r in mine)
