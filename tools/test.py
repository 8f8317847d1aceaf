"""Tests a checkpoint, dense or pruned, with the config of the dense model.

    python tools/test.py CONFIG CHECKPOINT [--ann-file INFO]
    python tools/test.py CONFIG --onnx FOLDER

A pruned checkpoint carries its plan, so the ORIGINAL config is enough. With
--onnx the files that tools/export.py wrote are tested, by onnxruntime.
"""

import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.run import options  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, load_config  # noqa: E402
from mmprune.run.flags import argument, check_values, option, read  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """What is tested, and on what."""

    config: str = argument('config of the dense model')
    checkpoint: str | None = argument(
        'weights, dense or pruned', None, nargs='?'
    )
    onnx: str | None = option(
        None, 'folder of tools/export.py to test instead', metavar='FOLDER'
    )
    work_dir: str | None = options.work_dir()
    ann_file: str | None = options.annotations()
    out: str | None = option(
        None, 'pickle file for the predictions', metavar='FILE'
    )
    eval: tuple[str, ...] = option(
        (),
        'parts of the evaluation, as bbox or map',
        nargs='+',
        metavar='NAME',
        shown='all',
    )
    tmpdir: str | None = option(
        None,
        'where several processes collect their results',
        shown='in memory',
    )
    trust_checkpoint: bool = options.trust_checkpoint()
    cfg_options: tuple[str, ...] = options.config_options()

    def __post_init__(self) -> None:
        check_values(self)
        if (self.checkpoint is None) == (self.onnx is None):
            raise ValueError(
                'a checkpoint or --onnx FOLDER is tested; give one of the two'
            )


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> dict:
    """Runs the test loop; returns the metrics."""
    asked, launching = read(
        'Test a checkpoint, dense or pruned.',
        (TestOptions, options.LaunchOptions),
        argv,
    )
    # PyTorch, which --help does without.
    from mmprune.checkpoints.loading import load_checkpoint
    from mmprune.checkpoints.normalization import compare_normalization
    from mmprune.checkpoints.reading import trust_checkpoints
    from mmprune.family import use_checkpoint
    from mmprune.run import launch, training
    from mmprune.run.folder import begun, check_output

    launch.set_local_rank(launching.local_rank)
    log = print if launch.is_first() else (lambda _: None)
    cfg = load_config(asked.config, asked.cfg_options)
    amend(cfg, asked)
    check_output(Path(cfg.work_dir), '--work-dir', allowed=True)
    cfg.launcher = launch.choose_launcher(launching.launcher, 1, log)
    trust_checkpoints(asked.trust_checkpoint)
    if asked.onnx is None:
        use_checkpoint(cfg, asked.checkpoint)
        checkpoint = load_checkpoint(asked.checkpoint, asked.trust_checkpoint)
        meta = checkpoint.get('meta')
        compare_normalization(cfg, meta, asked.checkpoint, log)
    else:
        exported = onnx_model(cfg, asked)
    dist_cfg = (cfg.get('env_cfg') or {}).get('dist_cfg')
    launch.start(cfg.launcher, dist_cfg, log)
    with begun(Path(cfg.work_dir), Path(cfg.filename).name):
        if asked.onnx is not None:
            cfg.load_from = None
            return training.runner_for(cfg, exported).test()
        return training.runner_with(cfg, checkpoint, asked.checkpoint).test()


def amend(cfg, asked: TestOptions) -> None:
    """Writes the options into the config, in place.

    Raises:
        ValueError: If one does not fit the config.
    """
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(key) is None:
            raise ValueError(
                f'{asked.config} has no `{key}`, so there is nothing to test '
                'on; add it to the config'
            )
    stem = Path(asked.config).stem
    cfg.work_dir = asked.work_dir or cfg.get('work_dir', f'work_dirs/{stem}')
    if asked.ann_file:
        from mmprune.family import use_annotations

        use_annotations(cfg, asked.ann_file)
    if asked.eval:
        choose_parts(cfg, list(asked.eval))
    if asked.tmpdir:
        collect_in(cfg, asked.tmpdir)
    if asked.out:
        cfg.test_evaluator = [
            *as_list(cfg.test_evaluator),
            dict(type='DumpResults', out_file_path=asked.out),
        ]


def onnx_model(cfg, asked: TestOptions):
    """Returns exported files as a model.

    Raises:
        ValueError: If the family of the config has no such model.
    """
    from mmprune.family import family_kind

    kind = family_kind(cfg)
    if not hasattr(kind, 'onnx_model'):
        raise ValueError(
            f'--onnx: what {asked.config} exports are raw outputs, and only '
            'a family that decodes them can be tested; give a checkpoint'
        )
    return kind.onnx_model(Path(asked.onnx))


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
    from mmengine.registry import METRICS, init_default_scope

    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with METRICS.switch_scope_and_registry(None) as registry:
        kind = registry.get(entry['type'])
    if kind is None:
        raise ValueError(f'{entry["type"]} is no registered metric')
    return set(inspect.signature(kind).parameters)


if __name__ == '__main__':
    main()
