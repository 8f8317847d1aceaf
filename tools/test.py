"""Tests a checkpoint, dense or pruned, with the config of the dense model.

    python tools/test.py CONFIG CHECKPOINT [--ann-file INFO]

A pruned checkpoint carries its plan, so the ORIGINAL config is enough.
"""

import argparse
import inspect
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.registry import METRICS, init_default_scope  # noqa: E402

from mmprune.checkpoints.reading import load_checkpoint_file, trust_checkpoints  # noqa: E402
from mmprune.models import fitted, load_weights  # noqa: E402
from mmprune.run import launch, training  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, load_config  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Test a checkpoint, dense or pruned.'
    )
    add = parser.add_argument
    add('config', help='config of the dense model')
    add('checkpoint', help='weights, dense or pruned')
    add('--work-dir', help='where logs and metrics go')
    add('--ann-file', help="info file to test on, in place of the config's")
    add('--out', help='pickle file for the predictions')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')
    add(
        '--eval',
        nargs='+',
        metavar='NAME',
        help='parts of the evaluation, as bbox or map (default: all)',
    )
    add('--tmpdir', help='where several processes collect their results')
    add('--launcher', choices=launch.LAUNCHERS, default='none')
    add('--local-rank', '--local_rank', type=int, default=0)
    add('--trust-checkpoint', action='store_true')
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> dict:
    """Runs the test loop; returns the metrics."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(key) is None:
            raise ValueError(
                f'{args.config} has no `{key}`, so there is nothing to test '
                'on; add it to the config'
            )
    say = print if launch.is_first() else (lambda _: None)
    cfg.launcher = launch.choose_launcher(args.launcher, 1, say)
    stem = Path(args.config).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir', f'work_dirs/{stem}')
    if args.ann_file:
        point_at(cfg, args.ann_file)
    if args.eval:
        choose_parts(cfg, args.eval)
    if args.tmpdir:
        collect_in(cfg, args.tmpdir)
    if args.out:
        cfg.test_evaluator = [
            *as_list(cfg.test_evaluator),
            dict(type='DumpResults', out_file_path=args.out),
        ]
    trust_checkpoints(args.trust_checkpoint)
    checkpoint = load_checkpoint_file(
        args.checkpoint, trust=args.trust_checkpoint
    )
    cfg.model = fitted(cfg.model, checkpoint, args.checkpoint)
    cfg.load_from = args.checkpoint
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
    launch.start(cfg.launcher, dist_cfg, say)
    runner = training.runner_for(cfg)
    # The Runner only warns where keys or shapes differ, and would test
    # random weights.
    load_weights(unwrapped(runner.model), checkpoint, args.checkpoint)
    return runner.test()


def unwrapped(model):
    """Returns the model inside a data-parallel wrapper."""
    return model.module if is_model_wrapper(model) else model


def as_list(value: dict | list) -> list:
    """Returns a config that may hold one or several entries as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def choose_parts(cfg, names: list[str]) -> None:
    """Leaves of the evaluators only the named parts.

    Raises:
        ValueError: If no evaluator has parts.
    """
    chosen = []
    for entry in as_list(cfg.test_evaluator):
        if 'parts' in arguments(cfg, entry):
            chosen.append({**entry, 'parts': names})
    if not chosen:
        kinds = [entry['type'] for entry in as_list(cfg.test_evaluator)]
        raise ValueError(
            f'--eval {" ".join(names)}: {", ".join(kinds)} of the config has '
            'no parts to choose from; leave --eval out'
        )
    cfg.test_evaluator = chosen


def collect_in(cfg, folder: str) -> None:
    """Lets the processes hand over their results through files."""
    # mmengine deletes the folder afterwards, which may be the user's own.
    inside = os.path.join(folder, 'mmprune_results')
    cfg.test_evaluator = [
        {**entry, 'collect_dir': inside}
        if 'collect_dir' in arguments(cfg, entry)
        else entry
        for entry in as_list(cfg.test_evaluator)
    ]


def arguments(cfg, entry: dict) -> set[str]:
    """Returns the names that the class of an evaluator takes."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with METRICS.switch_scope_and_registry(None) as registry:
        kind = registry.get(entry['type'])
    if kind is None:
        raise ValueError(f'{entry["type"]} is no registered metric')
    return set(inspect.signature(kind).parameters)


def point_at(cfg, ann_file: str) -> None:
    """Points every data set of the config at one info file."""
    from projects.VAD.data.config_datasets import set_info_file

    set_info_file(cfg, ann_file)


if __name__ == '__main__':
    main()
