"""Fine-tunes a pruned language model with the flags of the Wanda guide.

    python tools/guides/finetune_lm.py --model_name_or_path out/pruned \
        --dataset_name c4 --do_train --do_eval --output_dir out/lora

docs/recover_llm.md says what each method keeps and what it writes.
"""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmprune.run import options  # noqa: E402
from mmprune.run.cli import (  # noqa: E402
    fail_in_one_sentence,
    load_config,
    merge_options,
    stoppable,
)
from mmprune.run.flags import check_values, option, read  # noqa: E402

CONFIG = ROOT / 'projects' / 'configs' / 'llm' / 'causal_lm.py'
METHODS = ('lora', 'masked_lora', 'dense')
# Short names of the guide -> names of the package datasets.
DATASETS = dict(c4='allenai/c4:en', wikitext='wikitext:wikitext-2-raw-v1')


def named(name: str, default: Any, help: str, **how: Any) -> Any:
    """Returns a field whose flag has underscores, as in the guide."""
    return option(default, help, flag=f'--{name}', **how)


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions:
    """The flags of the guide."""

    model: str | None = named(
        'model_name_or_path', None, 'folder of the pruned model'
    )
    config_name: str | None = named(
        'config_name',
        None,
        'where the tokenizer is if the folder has none, as the dense model',
    )
    tokenizer: str | None = named(
        'tokenizer_name', None, 'folder or file of another tokenizer'
    )
    dataset: str = named(
        'dataset_name',
        'generated',
        'text or token file, c4, wikitext, or another name of the hub',
    )
    validation_file: str | None = named(
        'validation_file',
        None,
        'text to evaluate on',
        shown='the first windows of the data set, which training leaves out',
    )
    epochs: int = named('num_train_epochs', 1, 'of the training', least=1)
    block_size: int = named('block_size', 1024, 'tokens of a window', least=2)
    train_batch: int = named(
        'per_device_train_batch_size', 1, 'windows of a step', least=1
    )
    eval_batch: int = named(
        'per_device_eval_batch_size', 8, 'windows at a time', least=1
    )
    accumulation: int = named(
        'gradient_accumulation_steps', 1, 'batches of a step', least=1
    )
    train: bool = named('do_train', False, 'train')
    evaluate: bool = named('do_eval', False, 'measure the perplexity')
    train_samples: int | None = named(
        'max_train_samples', None, 'windows at most', type=int, shown='all'
    )
    eval_samples: int = named(
        'max_eval_samples', 128, 'windows at most', least=1
    )
    learning_rate: float = named(
        'learning_rate', 1e-4, 'at the start, falling to 0', least=0
    )
    weight_decay: float = named('weight_decay', 0.0, 'of AdamW', least=0)
    seed: int = option(0, 'of the order of the data and the adapters')
    overwrite: bool = named(
        'overwrite_output_dir', False, 'write where something is'
    )
    resume: bool = option(False, 'go on where this command was stopped')
    out: str | None = named('output_dir', None, 'where results go')
    trust_checkpoint: bool = options.trust_checkpoint()
    cfg_options: tuple[str, ...] = options.config_options()

    def __post_init__(self) -> None:
        check_values(self)
        for flag, value in (
            ('--model_name_or_path', self.model),
            ('--output_dir', self.out),
        ):
            if value is None:
                raise ValueError(f'{flag} is missing; name a folder')
        if not (self.train or self.evaluate):
            raise ValueError(
                'there is nothing to do; give --do_train, --do_eval or both'
            )
        if self.resume and self.overwrite:
            raise ValueError(
                '--resume goes on with what --overwrite_output_dir replaces; '
                'give one of them'
            )


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions:
    """What the guide's script has no flags for."""

    method: str = option(
        'lora',
        'adapters that stay apart, adapters under the mask of the weights, '
        'which are merged exactly, or all weights that are left',
        choices=METHODS,
    )
    lora_r: int = named('lora_r', 8, 'rank of the adapters', least=1)
    lora_alpha: int = named('lora_alpha', 16, 'their scale times r')
    lora_dropout: float = named(
        'lora_dropout', 0.05, 'of their input', least=0, below=1
    )
    lora_targets: tuple[str, ...] = named(
        'lora_targets',
        (),
        'layers that get one by their last names, or all',
        nargs='+',
        shown='queries and values',
        metavar='NAME',
    )
    distill: str | None = option(
        None, 'folder of the dense model, to learn from it too'
    )
    distill_weight: float = option(1.0, 'of that', least=0)
    temperature: float = option(2.0, 'of that')
    merge: bool = option(False, 'write the merged model to merged/ too')
    pack: bool = option(False, 'write the sparse files to packed/ too')
    shard: bool = option(
        False, 'split the parameters over the processes (FSDP2)'
    )
    bf16: bool = option(False, 'mixed precision in bfloat16; needs CUDA')

    def __post_init__(self) -> None:
        check_values(self)
        if self.merge and self.method == 'dense':
            raise ValueError(
                '--merge merges adapters, and --method dense has none; leave '
                'it out'
            )
        if self.pack and self.method != 'dense' and not self.merge:
            raise ValueError(
                '--pack needs a whole model; add --merge, or give --method '
                'dense'
            )
        if self.pack and self.method == 'lora':
            raise ValueError(
                '--pack: adapters that stay apart leave no zeros when they '
                'are merged; give --method masked_lora'
            )


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs training and evaluation."""
    asked, how, launching = read(
        'Fine-tune a pruned language model and keep its zeros.',
        (FineTuneOptions, RecoveryOptions, options.LaunchOptions),
        argv,
    )
    # PyTorch, which --help does without.
    from mmprune.checkpoints.huggingface import check_folder
    from mmprune.run import launch
    from mmprune.run.training.recovery import evaluate_model, recover

    launch.set_local_rank(launching.local_rank)
    log = print if launch.is_first() else (lambda _: None)
    check_folder(asked.model, asked.trust_checkpoint)
    out = Path(asked.out)
    if asked.train:
        check_output(asked, out)
    cfg, evaluation = config_from(asked, how)
    with stoppable(lambda: _how_to_go_on(out / 'training')):
        cfg.launcher = launch.choose_launcher(launching.launcher, 1, log)
        launch.start(cfg.launcher, cfg.env_cfg.get('dist_cfg'), log)
        if not asked.train:
            evaluate_model(cfg, evaluation, asked.eval_batch, log)
            return
        recover(
            cfg,
            recovery_from(how),
            out,
            evaluation=evaluation,
            eval_batch=asked.eval_batch,
            merge=how.merge,
            pack=how.pack,
            log=log,
        )
        log(f'results are in {out}')


def config_from(
    asked: FineTuneOptions, how: RecoveryOptions
) -> tuple[Any, dict | None]:
    """Returns the config of the training and of the data to evaluate on.

    Raises:
        ValueError: If flags do not fit the machine.
    """
    from mmprune.run import training

    cfg = load_config(str(CONFIG))
    merge_options(cfg, asked.cfg_options)
    cfg.model.pretrained = asked.model
    cfg.model.trust = asked.trust_checkpoint
    tokens = dict(
        type='mmprune.TokenWindows',
        tokenizer=_tokenizer(asked),
        seqlen=asked.block_size,
        partial=True,
    )
    source = _source(asked.dataset)
    apart = asked.validation_file is None and asked.evaluate
    evaluation = None
    if asked.evaluate:
        evaluation = dict(
            tokens,
            source=source if apart else asked.validation_file,
            num_windows=asked.eval_samples,
        )
    cfg.train_dataloader.dataset = dict(
        tokens,
        source=source,
        num_windows=asked.train_samples,
        skip=asked.eval_samples if apart else 0,
    )
    cfg.train_dataloader.batch_size = asked.train_batch
    cfg.train_cfg = dict(by_epoch=True, max_epochs=asked.epochs)
    cfg.optim_wrapper = dict(
        optimizer=dict(
            type='AdamW',
            lr=asked.learning_rate,
            weight_decay=asked.weight_decay,
            # Else twice as slow on a CPU where moments are zero.
            fused=True,
        ),
        clip_grad=dict(max_norm=1.0),
        accumulative_counts=asked.accumulation,
    )
    cfg.param_scheduler = [
        dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False)
    ]
    cfg.randomness = dict(seed=asked.seed)
    cfg.work_dir = str(Path(asked.out) / 'training')
    training.with_safety(cfg)
    if how.bf16:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                '--bf16 needs a CUDA device, and there is none; leave it out'
            )
        training.with_amp(cfg)
        cfg.optim_wrapper.dtype = 'bfloat16'
    last = training.last_checkpoint(Path(cfg.work_dir))
    if asked.resume and last is not None:
        cfg.load_from, cfg.resume = str(last), True
    return cfg, evaluation


def recovery_from(how: RecoveryOptions) -> Any:
    """Returns the method as the training takes it."""
    from mmprune.run.training.recovery import Recovery

    return Recovery(
        method=how.method,
        r=how.lora_r,
        alpha=how.lora_alpha,
        dropout=how.lora_dropout,
        targets=how.lora_targets,
        teacher=how.distill,
        distill=how.distill_weight,
        temperature=how.temperature,
        shard=how.shard,
    )


def check_output(asked: FineTuneOptions, out: Path) -> None:
    """Refuses a folder with something in it, unless it is to be used.

    Raises:
        ValueError: If it is not.
    """
    if asked.overwrite:
        shutil.rmtree(out / 'training', ignore_errors=True)
    elif not asked.resume and out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f'{out} is not empty; give --overwrite_output_dir or --resume, '
            'or another --output_dir'
        )


def _tokenizer(asked: FineTuneOptions) -> str | None:
    """Where the tokenizer is: named, in the folder, of the dense model."""
    if asked.tokenizer is not None:
        return asked.tokenizer
    names = ('tokenizer.json', 'tokenizer.model', 'vocab.json')
    if any((Path(asked.model) / name).is_file() for name in names):
        return asked.model
    return asked.config_name or asked.model


def _source(dataset: str) -> str:
    if dataset == 'generated' or dataset.startswith('hub:'):
        return dataset
    if Path(dataset).is_file() or Path(dataset).suffix:
        return dataset
    return f'hub:{DATASETS.get(dataset, dataset)}'


def _how_to_go_on(folder: Path) -> str:
    from mmprune.run import training

    last = training.last_checkpoint(folder)
    kept = f'the last good checkpoint is {last}' if last else 'no checkpoint'
    words = [w for w in sys.argv if w != '--overwrite_output_dir']
    words += [] if '--resume' in words else ['--resume']
    return f'{kept}; go on with: python {shlex.join(words)}'


if __name__ == '__main__':
    main()
