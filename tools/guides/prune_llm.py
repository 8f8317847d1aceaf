"""Prunes a language model with the flags of Wanda's main.py.

    python tools/guides/prune_llm.py --model MODEL --prune_method wanda \
        --sparsity_ratio 0.5 --sparsity_type unstructured \
        --save out/llama --save_model out/llama/pruned --calibration c4.txt

docs/prune_llm.md says what each method does and what is written.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmprune.checks import parse_pattern  # noqa: E402
from mmprune.run import options  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, stoppable  # noqa: E402
from mmprune.run.flags import check_values, option, read  # noqa: E402

METHODS = ('magnitude', 'wanda', 'sparsegpt', 'ria', 'wanda_admm')
HUB = dict(c4='hub:allenai/c4:en', wikitext2='hub:wikitext:wikitext-2-raw-v1')


def named(name: str, default: Any, help: str, **how: Any) -> Any:
    """Returns a field whose flag has underscores, as in the guide."""
    return option(default, help, flag=f'--{name}', **how)


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """The flags of Wanda's main.py."""

    model: str | None = option(None, 'folder or hub name of the dense model')
    method: str = named(
        'prune_method', 'wanda', 'how weights are chosen', choices=METHODS
    )
    sparsity: float | None = named(
        'sparsity_ratio',
        None,
        'fraction of the weights in the blocks that becomes zero',
        type=float,
        shown='what the type implies, 0.5 for unstructured',
        least=0,
        below=1,
    )
    kind: str = named(
        'sparsity_type',
        'unstructured',
        'unstructured, or N:M to keep N of every M neighbouring weights',
        metavar='{unstructured,2:4,4:8,N:M}',
    )
    variant: bool = named(
        'use_variant', False, "Wanda's variant, rows lose different numbers"
    )
    windows: int = named('nsamples', 128, 'calibration windows', least=1)
    seqlen: int | None = option(
        None,
        'tokens of a window',
        type=int,
        shown="the model's longest, 2048 at most",
        least=2,
    )
    seed: int = option(0, 'of the choice of calibration windows')
    save: str | None = option(None, 'folder for the log and the report')
    save_model: str | None = named(
        'save_model', None, 'folder for the pruned model'
    )
    cache_dir: str | None = named(
        'cache_dir', None, 'where models of the hub are cached'
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.model is None:
            raise ValueError('--model is missing; name a folder')
        if self.save is None and self.save_model is None:
            raise ValueError(
                'nothing would be written; give --save_model, --save or both'
            )
        if self.variant and self.method != 'wanda':
            raise ValueError(
                f'--use_variant is a variant of wanda, and --prune_method is '
                f'{self.method}; leave one of them out'
            )
        pattern = self.pattern
        if pattern is None:
            return
        kept, size = parse_pattern(pattern)
        implied = 1 - kept / size
        if self.sparsity not in (None, implied):
            raise ValueError(
                f'--sparsity_type {pattern} keeps {kept} of {size} weights, '
                f'so it removes {implied:g}, and --sparsity_ratio asks for '
                f'{self.sparsity:g}; leave one of them out'
            )
        if self.variant:
            raise ValueError(
                '--use_variant lets rows lose different numbers of weights, '
                f'and {pattern} does not; leave one of them out'
            )

    @property
    def pattern(self) -> str | None:
        """The pattern of zeros, ``None`` for any."""
        if self.kind == 'unstructured':
            return None
        try:
            parse_pattern(self.kind)
        except ValueError as error:
            raise ValueError(f'--sparsity_type: {error}') from error
        return self.kind


@dataclass(frozen=True, kw_only=True)
class MoreOptions:
    """What that script has no flags for."""

    calibration: str = option(
        'generated',
        'text file, .npy with tokens, c4, wikitext2 or generated',
        metavar='FILE',
    )
    tokenizer: str | None = option(
        None, 'folder or file of the tokenizer', shown="the model's"
    )
    eval_data: str | None = named(
        'eval_data',
        None,
        'text or tokens to measure perplexity on, or wikitext2',
        metavar='FILE',
        shown='perplexity is not measured',
    )
    eval_seqlen: int | None = named(
        'eval_seqlen',
        None,
        'tokens of a window there',
        type=int,
        shown='as --seqlen',
        least=2,
    )
    eval_windows: int | None = named(
        'eval_windows', None, 'how many', type=int, shown='all', least=1
    )
    batch_size: int = named(
        'batch_size', 1, 'windows that are run together', least=1
    )
    owl: bool = option(
        False, 'blocks with more outliers lose less (OWL, lambda 0.08, M 5)'
    )
    damping: float = option(0.01, 'of sparsegpt', least=0)
    block_size: int = named('block_size', 128, 'columns of sparsegpt', least=1)
    protect: tuple[str, ...] = option(
        (),
        'weights that stay dense; may be repeated',
        action='append',
        metavar='REGEX',
    )
    dtype: str = option(
        'auto',
        'of the weights, auto for that of the files',
        choices=('auto', 'float32', 'float16', 'bfloat16'),
    )
    device: str = option('cpu', 'where a block is pruned: cpu or cuda[:N]')
    low_memory: bool = option(
        False,
        'stream blocks from the files into files; one is in memory',
        also=('--low_memory',),
    )
    pack: bool = option(
        False, 'write the sparse files to packed/ in --save_model too'
    )
    force: bool = option(False, 'replace a folder at --save_model')
    trust_checkpoint: bool = options.trust_checkpoint()

    def __post_init__(self) -> None:
        check_values(self)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    asked, more = read(
        'Prune a language model, block by block.',
        (GuideOptions, MoreOptions),
        argv,
    )
    if asked.cache_dir:
        os.environ['HF_HUB_CACHE'] = asked.cache_dir
    # PyTorch, which --help does without.
    from mmprune.checkpoints.packed import pack_folder
    from mmprune.run.language_model import prune_model_folder
    from mmprune.run.launch import check_device

    check_device(more.device)
    out = Path(asked.save_model) if asked.save_model else None
    if more.pack and out is None:
        raise ValueError('--pack goes with --save_model; name a folder')
    check_output(out, asked.model, more.force)
    report = Path(asked.save) if asked.save else None
    calibration, evaluation = data(asked, more)
    with stoppable(lambda: how_to_go_on(out)):
        found = prune_model_folder(
            asked.model,
            pruner(asked, more),
            calibration,
            model_out=out,
            report_out=report,
            evaluation=evaluation,
            method=title(asked, more),
            batch_size=more.batch_size,
            dtype=more.dtype,
            low_memory=more.low_memory,
            trust=more.trust_checkpoint,
        )
    if report is not None:
        (report / f'log_{asked.method}.txt').write_text(log_line(found))
        print(f'wrote {report / "report.html"}')
    if out is not None:
        print(f'wrote {out}')
    if more.pack:
        sizes = pack_folder(out, out / 'packed')
        print(
            f'wrote {out / "packed"}: {sizes["packed"] / sizes["dense"]:.4f} '
            'of the size'
        )


def pruner(asked: GuideOptions, more: MoreOptions) -> Any:
    """Returns the pruner that the flags describe."""
    from mmprune.pruners import LayerwisePruner

    importance = dict(
        magnitude=dict(type='mmprune.Magnitude'),
        ria=dict(type='mmprune.RIA'),
        sparsegpt=None,
    ).get(asked.method, dict(type='mmprune.Wanda'))
    scope = 'layer' if asked.method == 'magnitude' else 'row'
    if asked.variant:
        importance, scope = dict(type='mmprune.WandaVariant'), 'layer'
    solver = dict(
        type='mmprune.SparseGPT',
        damping=more.damping,
        block_size=more.block_size,
    )
    ratio = 0.5 if asked.sparsity is None else asked.sparsity
    solvers = dict(sparsegpt=solver, wanda_admm=dict(type='mmprune.ADMM'))
    return LayerwisePruner(
        None if asked.pattern else ratio,
        importance=importance,
        scope=scope,
        pattern=asked.pattern,
        protect=more.protect,
        reconstruct=solvers.get(asked.method),
        ratios=dict(type='mmprune.OutlierRatios') if more.owl else None,
        device=more.device,
    )


def data(asked: GuideOptions, more: MoreOptions) -> tuple[dict, dict | None]:
    """Returns the configs of calibration and evaluation windows."""
    from mmprune.families.causal_lm import context_length

    seqlen = asked.seqlen or context_length(dict(pretrained=asked.model))
    shared = dict(
        type='mmprune.TokenWindows', tokenizer=more.tokenizer or asked.model
    )
    calibration = dict(
        shared,
        source=HUB.get(more.calibration, more.calibration),
        seqlen=seqlen,
        num_windows=asked.windows,
        order='random',
        seed=asked.seed,
    )
    if more.eval_data is None:
        return calibration, None
    evaluation = dict(
        shared,
        source=HUB.get(more.eval_data, more.eval_data),
        seqlen=more.eval_seqlen or seqlen,
        num_windows=more.eval_windows,
    )
    if more.eval_data == 'wikitext2':
        evaluation['source'] += ':test'
    return calibration, evaluation


def title(asked: GuideOptions, more: MoreOptions) -> str:
    """Returns what the method is called in reports."""
    name = f'{asked.method} (variant)' if asked.variant else asked.method
    return f'{name} with OWL ratios' if more.owl else name


def check_output(out: Path | None, model: str, force: bool) -> None:
    """Refuses to write over something.

    Raises:
        ValueError: If a folder is there already.
    """
    if out is None:
        return
    if out.resolve() == Path(model).resolve():
        raise ValueError(
            f'--save_model {out} is the dense model itself; name another'
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
        raise ValueError(
            f'{out} is there already; name another folder, or replace it '
            'with --force'
        )


def log_line(found: dict) -> str:
    """Returns the table that Wanda's main.py writes."""
    models = (found.get('perplexity') or {}).get('models', {})
    lines = ['method\tactual_sparsity\tppl_dense\tppl_test']
    numbers = [found['reached_sparsity'], *models.values()]
    shown = '\t'.join(f'{number:.4f}' for number in numbers)
    return f'{lines[0]}\n{found["method"]}\t{shown}\n'


def how_to_go_on(out: Path | None) -> str:
    """Returns what is safe when the command is stopped."""
    if out is None:
        return 'nothing was written'
    return (
        f'the finished blocks are in {out.name}.blocks beside {out}; the '
        'same command goes on behind them'
    )


if __name__ == '__main__':
    main()
