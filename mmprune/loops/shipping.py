"""The end of a run: units that are zero leave, and a report says so."""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..atomic_file import save_checkpoint
from ..cost import (
    count_macs,
    count_nonzero,
    count_params,
    measure_latencies,
)
from ..plan import PruningPlan
from ..run.report import group_rows, kind_rows, save_json, weights_mb
from ..surgery import apply_plan
from ..version import __version__

if TYPE_CHECKING:
    from .iterative import IterativePruningLoop

# Largest difference between masked and pruned outputs, by their scale.
TOLERANCE = 1e-5


def ship(
    loop: 'IterativePruningLoop', rounds: list[dict], latency_runs: int
) -> dict[str, Any]:
    """Writes ``pruned.pth``, ``plan.json`` and ``report.json``.

    Args:
        loop: The loop after its last round.
        rounds: Results of the rounds.
        latency_runs: Timed forwards per model, 0 for none.

    Returns:
        Costs of both models, and how far their outputs differ.

    Raises:
        ValueError: If the smaller model computes something else.
    """
    folder = Path(loop.runner.work_dir)
    masked, inputs = _evaluated(loop), _example(loop)
    plan = loop.rounds.plan(_provenance(loop))
    pruned = copy.deepcopy(masked)
    apply_plan(pruned, plan)
    difference = _difference(masked, pruned, inputs)
    if not difference <= TOLERANCE:
        raise ValueError(
            'the smaller model computes something else than the masked one '
            f'(outputs differ by {difference:.1e} of their scale); it was '
            'not written, the masked checkpoints are whole'
        )
    forwards = dict(
        dense=lambda: masked(inputs[:1], mode='tensor'),
        structured=lambda: pruned(inputs[:1], mode='tensor'),
    )
    latencies = measure_latencies(forwards, latency_runs)
    # The copy that stands for the dense model is masked already.
    dense = _row(masked, inputs, latencies['dense'])
    dense['nonzero'] = dense['params']
    rows = dict(
        dense=dense,
        structured=_row(pruned, inputs, latencies['structured']),
    )
    if not loop.options.vit_structured:
        rows['unstructured'] = rows.pop('structured')
    _save(loop, pruned, plan, folder / 'pruned.pth')
    plan.save(folder / 'plan.json')
    final = dict(
        models=rows,
        masked_difference=difference,
        shipped=str(folder / 'pruned.pth'),
    )
    save_json(_report(loop, rounds, plan, final), folder / 'report.json')
    names = list(rows)
    before, after = rows[names[0]], rows[names[1]]
    loop.runner.logger.info(
        f'{folder / "pruned.pth"}: params {before["params"]:,} -> '
        f'{after["params"]:,}, MACs {before["macs"]:,} -> '
        f'{after["macs"]:,}, outputs differ by {difference:.1e}'
    )
    return final


def _evaluated(loop: 'IterativePruningLoop') -> nn.Module:
    """A copy on the CPU of what was validated: with EMA, the average."""
    averages = loop.averages()
    model = averages[0].module if averages else loop.model
    return copy.deepcopy(model).cpu().eval()


def _example(loop: 'IterativePruningLoop') -> Tensor:
    loader = loop.dataloader
    if loop.runner.val_loop is not None:
        loader = loop.runner.val_loop.dataloader
    batch = next(iter(loader))
    preprocess = copy.deepcopy(loop.model.data_preprocessor).cpu()
    return preprocess(batch, False)['inputs']


@torch.no_grad()
def _difference(masked: nn.Module, pruned: nn.Module, inputs: Tensor) -> float:
    expected = masked(inputs, mode='tensor')
    found = pruned(inputs, mode='tensor')
    scale = expected.abs().max().clamp_min(1e-12)
    return ((expected - found).abs().max() / scale).item()


def _row(
    model: nn.Module, inputs: Tensor, latency_ms: float | None
) -> dict[str, Any]:
    def one(net: nn.Module) -> Any:
        return net(inputs[:1], mode='tensor')

    return dict(
        params=count_params(model),
        nonzero=count_nonzero(model),
        macs=count_macs(model, one)[''],
        checkpoint_mb=weights_mb(model),
        latency_ms=latency_ms,
    )


def _provenance(loop: 'IterativePruningLoop') -> dict:
    return dict(
        method='iterative pruning',
        options=loop.options.to_dict(),
        rewind_checksum=loop.rewind_file.checksum,
        mmprune=__version__,
    )


def _save(
    loop: 'IterativePruningLoop',
    pruned: nn.Module,
    plan: PruningPlan,
    path: Path,
) -> None:
    meta = dict(
        cfg=loop.runner.cfg.pretty_text,
        epoch=loop.epoch,
        iter=loop.iter,
        mmprune_version=__version__,
        pruning_plan=plan.to_dict(),
    )
    dataset = loop.dataloader.dataset
    if hasattr(dataset, 'metainfo'):
        meta['dataset_meta'] = dataset.metainfo
    weights = {k: v.contiguous() for k, v in pruned.state_dict().items()}
    save_checkpoint(dict(meta=meta, state_dict=weights), path)


def _report(
    loop: 'IterativePruningLoop',
    rounds: list[dict],
    plan: PruningPlan,
    final: dict[str, Any],
) -> dict:
    options = loop.options
    name = loop.runner.experiment_name
    groups = group_rows(plan, loop.all_groups) if plan.groups else []
    return dict(
        title=f'{name}: {options.struct}, {options.rate:.0%} in '
        f'{options.pruning_times} rounds',
        config=str(loop.runner.cfg.get('filename') or ''),
        options=json.loads(json.dumps(options.to_dict())),
        models=final['models'],
        notes=(
            'One forward of one validation image on the CPU, '
            f'{torch.get_num_threads()} threads, PyTorch {torch.__version__};'
            f' masked and pruned differ by {final["masked_difference"]:.1e}.'
        ),
        versions=dict(mmprune=__version__, torch=torch.__version__),
        groups=groups,
        kinds=kind_rows(groups),
        sections=sections(rounds),
    )


def sections(rounds: list[dict]) -> list[dict]:
    """Returns tables and curves of the rounds for a report."""
    metrics = list(rounds[0]['metrics'])
    kinds = list(rounds[0]['met'])
    columns = ['state', *metrics]
    columns += [f'{k}s gone, {w}' for k in kinds for w in ('asked', 'met')]
    rows = []
    for entry in rounds:
        row = [entry['state'], *(entry['metrics'].get(m) for m in metrics)]
        for kind in kinds:
            row += [entry['asked'][kind], entry['met'][kind]]
        rows.append([r if isinstance(r, int) else _digits(r) for r in row])
    states = [entry['state'] for entry in rounds]
    found = [
        dict(
            title='Rounds',
            text='Each round after it was trained and pruned.',
            table=dict(columns=columns, rows=rows),
        ),
        dict(
            title='Sparsity per layer',
            text='Part of the units that is gone, round by round.',
            table=dict(
                columns=['layer', *(f'state {s}' for s in states)],
                rows=[
                    [layer['group']]
                    + [_digits(_gone(entry, number)) for entry in rounds]
                    for number, layer in enumerate(rounds[0]['layers'])
                ],
            ),
        ),
    ]
    if metrics:
        values = [entry['metrics'].get(metrics[0]) for entry in rounds]
        found[0] |= dict(
            series=[dict(name=metrics[0], x=states, y=values)],
            x_label='pruning state',
            y_label=metrics[0],
        )
    return found


def _gone(entry: dict, number: int) -> float:
    layer = entry['layers'][number]
    return layer['gone'] / layer['units']


def _digits(value: float | None) -> float | None:
    return value if value is None else round(value, 4)
