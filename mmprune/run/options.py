"""The options that commands have, each written once; see ``flags.py``."""

import argparse
from dataclasses import dataclass
from typing import Any

from ..checks import parse_pattern
from ..criteria import (
    CRITERIA,
    ONLY_UNITS,
    ONLY_WEIGHTS,
    criterion_config,
)
from .flags import argument, check_values, option

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
MODES = ('both', 'structured', 'unstructured')
DEFAULT_EPOCHS = 6
# Two aligned loads of 16 bytes: TensorRT loads 8 channels of fp16 or 16 of
# int8 at once and fills up what is missing. Reasoned, not measured.
WIDTHS = {'tensorrt': 16, 'tensorrt-int8': 32}

# -- flags that commands share ---------------------------------------------


def config_options() -> Any:
    """Returns the field of ``--cfg-options``."""
    return option(
        (),
        'changes of the config, as in mmengine',
        nargs='+',
        metavar='KEY=VALUE',
    )


def trust_checkpoint() -> Any:
    """Returns the field of ``--trust-checkpoint``."""
    return option(
        False,
        'unpickle a checkpoint that the safe loader refuses; it may run code',
    )


def annotations() -> Any:
    """Returns the field of ``--ann-file``."""
    return option(
        None,
        'info file of the data',
        shown="the config's",
        metavar='FILE',
    )


def work_dir() -> Any:
    """Returns the field of ``--work-dir``."""
    return option(
        None,
        'where logs, checkpoints and metrics go',
        shown="the config's work_dir, else work_dirs/NAME",
    )


def amp() -> Any:
    """Returns the field of ``--amp``."""
    return option(False, 'mixed precision; needs CUDA')


def auto_scale_lr() -> Any:
    """Returns the field of ``--auto-scale-lr``."""
    return option(
        False, "learning rate by the config's auto_scale_lr and the batch"
    )


def seed(help: str) -> Any:
    """Returns the field of ``--seed``."""
    return option(0, help, least=0, below=2**32)


def image_size(default: tuple[int, int]) -> Any:
    """Returns the field of ``--image-size``, in pixels."""
    return option(
        default,
        'pixels of a picture',
        type=_size,
        metavar='WxH',
        shown='x'.join(map(str, default)),
    )


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition('x')
    if not (x and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(
            f'give the size as WxH in pixels, such as 400x225, not {text!r}'
        )
    return int(width), int(height)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How the processes of a command were started."""

    launcher: str = option(
        'none', 'what started the processes', choices=LAUNCHERS
    )
    local_rank: int = option(
        0,
        'given by torch.distributed.launch',
        also=('--local_rank',),
    )

    def __post_init__(self) -> None:
        check_values(self)


# -- pruning ---------------------------------------------------------------


def _number(text: str) -> float:
    """Returns a whole number as such, so that it is shown as it was given."""
    return int(text) if text.isdecimal() else float(text)


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """How to prune."""

    sparsity: float = option(
        0.3,
        'fraction to remove, in [0, 1)',
        flag='--pruning-ratio',
        least=0,
        below=1,
    )
    mode: str = option('both', 'which pruned models to make', choices=MODES)
    importance: str = option(
        'l1', 'which units or weights matter', choices=tuple(CRITERIA)
    )
    scope: str = option(
        'global',
        'where they compete: in the whole model, in each layer, units among '
        'layers of equal structure, or single weights in each row',
        choices=('global', 'layer', 'isomorphic', 'row'),
    )
    sensitivity: str | None = option(
        None,
        'file of tools/sensitivity.py: groups lose units until all cost the '
        'same',
        metavar='FILE',
    )
    pattern: str | None = option(
        None,
        'zeros of the unstructured model: N of M neighbouring weights stay, '
        'as 2:4, whatever the ratio',
        metavar='N:M',
    )
    pattern_from: int | None = option(
        None,
        'with --pattern: kernels and matrices of fewer inputs or outputs stay '
        'dense',
        shown='1',
        type=int,
        least=1,
    )
    target: str = option(
        'units',
        'what the ratio counts in structured pruning',
        choices=('units', 'params', 'macs', 'latency'),
    )
    latency_table: str | None = option(
        None,
        'file of measured layer times, for --target latency',
        shown='~/.cache/mmprune/layer_times.json',
        metavar='FILE',
    )
    round_to: int | None = option(
        None,
        'kept channels and neurons are a multiple of this',
        type=int,
        shown='16 in groups of 128 or more, with --scope global',
        least=1,
    )
    runtime: str | None = option(
        None,
        'round to the widths that a runtime computes anyway: 16 for '
        "TensorRT's fp16, 32 for its int8",
        flag='--for',
        choices=tuple(WIDTHS),
    )
    min_keep: float = option(
        1,
        'channels and neurons that every group keeps; below 1, the fraction '
        'of them',
        type=_number,
    )
    protect: tuple[str, ...] = option(
        (),
        'groups and weights that stay dense; may be repeated',
        action='append',
        metavar='REGEX',
    )
    prune_frozen: bool = option(
        False, 'prune the stem and stages that training freezes, too'
    )
    seed: int = seed('of the random criterion, and of a training')
    device: str = option('cpu', 'where to prune: cpu or cuda[:N]')
    latency_runs: int = option(3, 'timed runs per model, 0 for none', least=0)
    ann_file: str | None = annotations()
    trust_checkpoint: bool = trust_checkpoint()

    def __post_init__(self) -> None:
        check_values(self)
        if self.runtime is not None:
            width = WIDTHS[self.runtime]
            if self.round_to not in (None, width):
                raise ValueError(
                    f'--for {self.runtime} rounds to {width}, and --round-to '
                    f'{self.round_to} to something else; give one of them'
                )
            object.__setattr__(self, 'round_to', width)
        if self.pattern is not None:
            try:
                parse_pattern(self.pattern)
            except ValueError as error:
                raise ValueError(f'--pattern: {error}') from error
        if self.mode == 'structured' and self.pattern is not None:
            raise ValueError(
                f'--pattern {self.pattern} is one of single weights, and '
                '--mode structured removes whole units; give --mode '
                'unstructured or both, or leave --pattern out'
            )
        if self.pattern is None and self.pattern_from is not None:
            raise ValueError(
                f'--pattern-from {self.pattern_from} says which layers get a '
                'pattern, and there is none; give --pattern, such as 2:4'
            )
        if not (
            0 < self.min_keep < 1 or self.min_keep % 1 == 0 < self.min_keep
        ):
            raise ValueError(
                '--min-keep is a whole number that is at least 1, or a '
                f'fraction between 0 and 1, found {self.min_keep}'
            )
        if self.target == 'latency' and not self.latency_runs:
            raise ValueError(
                '--target latency measures models, and --latency-runs 0 times '
                'none; leave it out'
            )
        if self.mode != 'unstructured' and self.scope == 'row':
            raise ValueError(
                '--scope row compares the single weights of a row, and '
                f'--mode {self.mode} removes whole units; give --mode '
                'unstructured, or --scope layer'
            )
        if self.mode == 'unstructured' and self.sensitivity is not None:
            raise ValueError(
                '--sensitivity says what units cost, and --mode unstructured '
                'zeroes single weights; give --mode structured'
            )
        if self.mode == 'unstructured' and self.scope == 'isomorphic':
            raise ValueError(
                '--scope isomorphic compares the units of equal layers, and '
                '--mode unstructured zeroes single weights; give --mode '
                'structured, or --scope layer'
            )
        if self.mode != 'unstructured' and self.importance in ONLY_WEIGHTS:
            raise ValueError(
                f'--importance {self.importance} scores single weights, and '
                f'--mode {self.mode} removes whole units; give --mode '
                'unstructured, or another criterion'
            )
        if self.mode == 'unstructured' and self.importance in ONLY_UNITS:
            raise ValueError(
                f'--importance {self.importance} scores channels, and --mode '
                'unstructured zeroes single weights; give --mode structured, '
                'or another criterion'
            )

    def criterion(self) -> dict:
        """Returns the config of the criterion of units."""
        found = criterion_config(self.importance, self.seed)
        if self.sensitivity is None:
            return found
        kind = 'mmprune.Sensitivity'
        return dict(type=kind, path=self.sensitivity, importance=found)

    def weight_importance(self) -> str:
        """Returns the criterion of single weights.

        One that scores only units leaves them to their magnitude.
        """
        return 'l1' if self.importance in ONLY_UNITS else self.importance

    def weight_scope(self) -> str:
        """Returns where single weights compete: all, where only units have
        a scope."""
        return 'global' if self.scope == 'isomorphic' else self.scope


# -- training --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How pruned models are trained."""

    fine_tune: bool = option(False, 'train the pruned model')
    retrain: bool = option(
        False, 'with --fine-tune: from epoch 0, with a larger learning rate'
    )
    fine_tune_epochs: int | None = option(
        None,
        'epochs of either training',
        type=int,
        shown=str(DEFAULT_EPOCHS),
        least=1,
        below=1e6,
    )
    fine_tune_iters: int | None = option(
        None,
        'iterations of either training, for a config that trains by '
        'iterations',
        type=int,
        least=1,
        below=1e9,
    )
    train: str | None = option(
        None,
        'which models to train',
        choices=('structured', 'unstructured', 'both'),
        shown='the structured one, if --mode makes it',
    )
    distill: float | None = option(
        None,
        'learn from the dense model too; weight 1 if none is given',
        nargs='?',
        type=float,
        const=1.0,
        metavar='WEIGHT',
        shown='off',
    )
    amp: bool = amp()
    auto_scale_lr: bool = auto_scale_lr()
    max_keep_ckpts: int = option(
        -1, 'checkpoints to keep, -1 for all', least=-1
    )

    def __post_init__(self) -> None:
        check_values(self)
        asked = [
            flag
            for flag, given in (
                ('--retrain', self.retrain),
                ('--fine-tune-iters', self.fine_tune_iters is not None),
                ('--train', self.train),
                ('--distill', self.distill is not None),
                ('--amp', self.amp),
                ('--auto-scale-lr', self.auto_scale_lr),
            )
            if given
        ]
        if asked and not self.fine_tune:
            raise ValueError(
                f'{", ".join(asked)} goes with --fine-tune, without which '
                'nothing is trained; add it'
            )
        if None not in (self.fine_tune_epochs, self.fine_tune_iters):
            raise ValueError(
                '--fine-tune-epochs and --fine-tune-iters are two lengths of '
                'one training; give the one that the config counts in'
            )
        if self.distill is not None and not self.distill > 0:
            raise ValueError(
                f'--distill takes a positive weight, found {self.distill}'
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run of pruning and training reads and writes."""

    config: str = argument('config of the dense model')
    checkpoint: str = argument('trained weights of the dense model')
    output_dir: str = option('./pruned_models', 'where results go')
    force: bool = option(False, 'overwrite another run there')
    resume: bool = option(False, 'go on where the same command was stopped')
    dry_run: bool = option(
        False, 'say what would be cut, by kind, and write nothing'
    )
    eval: bool | None = option(
        None,
        'evaluate all models at the end',
        action=argparse.BooleanOptionalAction,
        shown='after a training',
    )
    cfg_options: tuple[str, ...] = config_options()

    def __post_init__(self) -> None:
        check_values(self)
        if not self.output_dir:
            raise ValueError(
                '--output-dir is empty; give a folder to write to'
            )
        if self.resume and self.force:
            raise ValueError(
                '--resume keeps what --force removes; give one of them'
            )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The devices of a run."""

    gpus: int = option(1, 'number of devices; without a GPU, processes')
    gpu_ids: tuple[int, ...] = option(
        (), 'their numbers', nargs='+', type=int, shown='all'
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.gpus < 1:
            raise ValueError(
                f'--gpus is at least 1, found {self.gpus}; where there is no '
                'GPU, 1 runs on the CPU'
            )
