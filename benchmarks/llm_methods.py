"""Perplexity of a language model after each method, pattern and seed.

    python benchmarks/llm_methods.py --model MODEL --tokenizer FILE \
        --calibration train.txt --data valid.txt

Every method sees the same calibration windows, drawn anew for each seed.
Prints a table of means and largest differences from them.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from mmprune.datasets.tokens import TokenWindows  # noqa: E402
from mmprune.metrics.perplexity import perplexity  # noqa: E402
from mmprune.pruners import LayerwisePruner  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402

KINDS = {
    '50%': dict(sparsity=0.5),
    '4:8': dict(pattern='4:8'),
    '2:4': dict(pattern='2:4'),
}
MAGNITUDE = dict(importance=dict(type='mmprune.Magnitude'), scope='layer')
VARIANT = dict(importance=dict(type='mmprune.WandaVariant'), scope='layer')
SOLVE = dict(type='mmprune.SparseGPT')
ADMM = dict(type='mmprune.ADMM')
OWL = dict(type='mmprune.OutlierRatios')
METHODS = {
    'magnitude': MAGNITUDE,
    'Wanda': {},
    'Wanda, variant': VARIANT,
    'RIA': dict(importance=dict(type='mmprune.RIA')),
    'SparseGPT': dict(importance=None, reconstruct=SOLVE),
    'Wanda, SparseGPT updates': dict(reconstruct=SOLVE),
    'Wanda, ADMM': dict(reconstruct=ADMM),
    'Wanda, OWL ratios': dict(ratios=OWL),
    'Wanda, ADMM, OWL ratios': dict(reconstruct=ADMM, ratios=OWL),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Compare methods on a language model.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--model', required=True, help='folder')
    add('--tokenizer', help='folder or file, where the model has none')
    add('--calibration', required=True, help='text or tokens')
    add('--data', required=True, help='text or tokens to measure on')
    add('--windows', type=int, default=64, help='for calibration')
    add('--seqlen', type=int, default=256, help='of those')
    add('--eval-windows', type=int, default=128, help='to measure on')
    add('--eval-seqlen', type=int, default=512, help='of those')
    add('--seeds', type=int, default=3, help='draws of calibration windows')
    add('--only', nargs='+', choices=tuple(METHODS), help='methods')
    add('--batch', type=int, default=16, help='windows at a time')
    return parser.parse_args(argv)


def run(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Runs a model on calibration windows."""
    return model(input_ids=tokens, mode='tensor')


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison."""
    args = parse_args(argv)
    model = MODELS.build(
        dict(type='mmprune.HuggingFaceCausalLM', pretrained=args.model)
    )
    tokenizer = args.tokenizer or args.model
    test = TokenWindows(
        args.eval_seqlen, args.data, tokenizer, args.eval_windows
    )
    batches = [
        torch.stack([w['input_ids'] for w in windows]).split(args.batch)
        for windows in (
            TokenWindows(
                args.seqlen,
                args.calibration,
                tokenizer,
                args.windows,
                order='random',
                seed=seed,
            )
            for seed in range(args.seeds)
        )
    ]
    print(
        f'{Path(args.model).name}: {args.windows} x {args.seqlen} tokens of '
        f'calibration, {args.seeds} seeds; perplexity of {len(test)} windows '
        f'of {args.eval_seqlen} tokens, dense '
        f'{perplexity(model, test, args.batch):.3f}\n'
    )
    print('| method | ' + ' | '.join(KINDS) + ' | seconds |')
    print('|---' * (len(KINDS) + 2) + '|')
    for name in args.only or METHODS:
        print(row(name, model, batches, test, args.batch), flush=True)


def row(
    name: str,
    model: nn.Module,
    batches: list,
    test: TokenWindows,
    size: int,
) -> str:
    """Returns a row of the table."""
    how, cells, seconds = METHODS[name], [], []
    needs_data = 'Magnitude' not in str(how)
    for kind, asked in KINDS.items():
        if 'pattern' in asked and ('ratios' in how or 'variant' in name):
            cells.append('-')
            continue
        found = []
        for seeded in batches if needs_data else batches[:1]:
            pruned = copy.deepcopy(model)
            start = time.perf_counter()
            LayerwisePruner(**asked, **how)(pruned, seeded, run)
            if kind == '50%':
                seconds.append(time.perf_counter() - start)
            found.append(perplexity(pruned, test, size))
        mean = statistics.mean(found)
        spread = max(abs(value - mean) for value in found)
        cells.append(f'{mean:.2f} ± {spread:.2f}' if spread else f'{mean:.2f}')
    cells.append(f'{statistics.median(seconds):.2f}')
    return f'| {name} | ' + ' | '.join(cells) + ' |'


if __name__ == '__main__':
    main()
