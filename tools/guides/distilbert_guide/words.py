"""The words of the DistilBERT guides as settings of projects/configs.

The four doors above this folder (8, 9, 10 and 7) share it. Where nothing else
is asked for, they work on generated reviews and a small DistilBERT.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from mmengine.config import Config  # noqa: E402
from train import train  # noqa: E402

from mmprune.run import named_runs, training  # noqa: E402
from mmprune.run.cli import load_config, merge_options  # noqa: E402

CONFIGS = ROOT / 'projects' / 'configs' / 'distilbert'
BASELINE, PRUNED = 'distilled_student', 'pruning_with_finetuning'
QUANTIZED, PTQ = 'quantized_student', 'pruned_quantized'
QKD = 'pruned_qkd4bit'
TASK = 'task.py'
# The small model learns faster, and its training has few steps.
TINY_RATES = {PRUNED: 3e-4, QKD: 5e-5}
TINY_INTERVAL, TINY_WINDOW = 5, 5


def add_task_flags(add: Any) -> None:
    """Adds the flags of model and data."""
    add('--data', help='folder of SST-2 (train.tsv, dev.tsv), or glue')
    add('--encoder', help='folder or hub name of a DistilBERT')
    add('--models_dir', default='./models', help='where folders go')
    add('--seed', type=int, default=0, help='of weights and data')
    add('--cfg-options', nargs='+', metavar='KEY=VALUE', help='as in mmengine')


def task_config(args: Any) -> Config:
    """Returns the config of the dense model and its data.

    Raises:
        ValueError: If only one of model and data is given.
    """
    if bool(args.data) != bool(args.encoder):
        raise ValueError(
            '--data and --encoder go together; leave both out for generated '
            'reviews and a small model'
        )
    if not args.data:
        return load_config(str(CONFIGS / 'dense_tiny.py'))
    cfg = load_config(str(CONFIGS / 'dense_sst2.py'))
    cfg.model |= dict(config=args.encoder, pretrained=args.encoder)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset |= dict(data_root=args.data, tokenizer=args.encoder)
    return cfg


def mode_config(name: str) -> Config:
    """Returns one of the shipped configs, which hold the guide's settings."""
    return load_config(str(CONFIGS / f'{name}.py'))


def is_tiny(task: Config) -> bool:
    """Returns whether a task is the embedded one."""
    return task.train_dataloader.dataset.type == 'mmprune.GeneratedSentiment'


def with_mode(task: Config, mode: Config, step: str) -> Config:
    """Returns the task trained as a mode of a step says, on as much of its
    data."""
    cfg = copy.deepcopy(task)
    for key in ('train_dataloader', 'val_dataloader'):
        cfg[key].batch_size = mode[key].batch_size
        for name in ('fraction', 'max_length'):
            if name in mode[key].dataset:
                cfg[key].dataset[name] = mode[key].dataset[name]
    for key in ('train_cfg', 'optim_wrapper', 'custom_hooks'):
        cfg[key] = copy.deepcopy(mode[key])
    # mmengine keeps the best in its own words; the schedule is constant.
    cfg.default_hooks.checkpoint = copy.deepcopy(mode.default_hooks.checkpoint)
    cfg.param_scheduler = mode.get('param_scheduler', [])
    if is_tiny(task):
        cfg.optim_wrapper.optimizer.lr = TINY_RATES[step]
    return cfg


def with_words(cfg: Config, args: Any) -> None:
    """Writes the flags of a training into its config; they win over modes."""
    if args.num_epochs is not None:
        cfg.train_cfg.max_epochs = args.num_epochs
    if args.batch_size is not None:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.learning_rate is not None:
        cfg.optim_wrapper.optimizer.lr = args.learning_rate
    cfg.randomness = dict(seed=args.seed)
    merge_options(cfg, args.cfg_options)


def layers_of(task: Config) -> int:
    """Returns how many blocks the model of a task has."""
    from mmprune.models import build_model

    return build_model(task).config.n_layers


def distillation(
    layers: int, weights: dict[str, float], temperature: float
) -> dict[str, Any]:
    """Returns the entries of a distillation by the guide's names.

    Args:
        layers: Blocks of student and teacher.
        weights: ``ce``, ``logits`` and ``hidden``; the last is for the mean
            over all blocks.
        temperature: Of the logits.
    """
    terms = []
    if weights['logits']:
        terms.append(
            dict(
                source='classifier',
                loss='kl',
                weight=weights['logits'],
                temperature=temperature,
            )
        )
    if weights['hidden']:
        terms += [
            dict(
                source=f'distilbert.transformer.layer.{layer}',
                loss='mse',
                weight=weights['hidden'] / layers,
                mask='attention_mask',
            )
            for layer in range(layers)
        ]
    return dict(task_weight=weights['ce'], terms=terms)


def weights_of(mode: Config) -> tuple[dict[str, float], float]:
    """Returns the weights of a mode's distillation and its temperature."""
    terms = mode.model.terms
    logits = [t for t in terms if t.loss == 'kl']
    return dict(
        ce=mode.model.task_weight,
        logits=sum(t.weight for t in logits),
        hidden=sum(t.weight for t in terms if t.loss == 'mse'),
    ), logits[0].temperature


def run_training(
    cfg: Config, folder: Path, about: dict[str, Any], task: Config
) -> None:
    """Trains in a folder, from its last checkpoint if it has one."""
    cfg.work_dir = str(folder)
    training.with_safety(cfg, log=print)
    last = training.last_checkpoint(folder)
    if last is not None:
        cfg.load_from, cfg.resume = str(last), True
    named_runs.write_about(folder, about)
    task.dump(folder / TASK)
    train(cfg, 'none', print)
    named_runs.write_history(folder)


def begin(args: Any, name: str) -> Path:
    """Returns the folder to train in: a new one, or one to go on in.

    Raises:
        ValueError: If there is nothing to go on with.
    """
    if not args.resume:
        return named_runs.new_folder(args.models_dir, name)
    found = [
        folder
        for folder in sorted(Path(args.models_dir).glob(f'{name}_[0-9]*'))
        if 'checkpoint' not in named_runs.about(folder)
    ]
    if not found:
        raise ValueError(
            f'--resume: no unfinished {name}_* in {args.models_dir}; leave '
            'the flag out'
        )
    return found[-1]


def finish(folder: Path, about: dict[str, Any], checkpoint: Path) -> None:
    """Writes that a run is done, and what it made."""
    named_runs.write_about(
        folder, {**about, 'checkpoint': os.path.relpath(checkpoint, folder)}
    )
    print(f'wrote {checkpoint}')


def checkpoint_of(folder: Path) -> Path:
    """Returns what a finished run made.

    Raises:
        ValueError: If it made nothing yet.
    """
    found = named_runs.about(folder).get('checkpoint')
    if found is None:
        raise ValueError(
            f'the run in {folder} is not finished; go on with --resume'
        )
    return folder / found


def save_folder_of(task: Config, checkpoint: Path, folder: Path) -> None:
    """Writes a pruned model as a folder that transformers can read."""
    from mmprune.checkpoints.classifier_folder import save_folder
    from mmprune.models import load_model

    tokenizer = training.evaluated_data(task).tokenizer
    save_folder(load_model(task, checkpoint), folder, tokenizer)


def find_pruned(args: Any) -> Path:
    """Returns the folder of the pruned model: the one that is named, or the
    newest.

    Raises:
        ValueError: If there is none.
    """
    if args.pruned_model_path:
        folder = Path(args.pruned_model_path)
        checkpoint_of(folder)
        return folder
    found = named_runs.newest(args.models_dir, PRUNED)
    if found is None:
        raise ValueError(
            f'no pruned model in {args.models_dir}; run '
            '8_pruning_with_finetuning.py first, or name one with '
            '--pruned_model_path'
        )
    print(f'the newest pruned model is {found}')
    return found


def task_of(folder: Path) -> Config:
    """Returns the config of the dense model and its data of a run."""
    return load_config(str(folder / TASK))


def baseline(args: Any, task: Config) -> Path:
    """Returns the dense fine-tuned checkpoint: the one that is named, the
    newest of the same task, or one that is trained now."""
    if args.baseline:
        return Path(args.baseline).resolve()
    found = named_runs.newest(args.models_dir, BASELINE)
    if found and task_of(found).train_dataloader == task.train_dataloader:
        print(f'the newest dense model is {found}')
        return checkpoint_of(found).resolve()
    folder = named_runs.new_folder(args.models_dir, BASELINE)
    print(f'training the dense model in {folder}')
    cfg = copy.deepcopy(task)
    cfg.randomness = dict(seed=args.seed)
    about = dict(step='baseline', seed=args.seed)
    run_training(cfg, folder, about, task)
    finish(folder, about, training.trained(folder))
    return checkpoint_of(folder).resolve()
