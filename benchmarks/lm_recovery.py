"""What training gets back of a pruned language model, at equal tokens.

    python benchmarks/lm_recovery.py PRUNED --steps 120

Adapters apart, adapters under the mask and merged, and all weights that are
left, each with the same windows in the same order; sparsity and perplexity
before, after, and after merging. By default the texts and the dense model are
those of $MMPRUNE_SHARED (TinyStories, a LLaMA of 260 k parameters). Exits
with 1 if a merge under the mask or a dense training loses a zero.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mmprune  # noqa: E402, F401, I001  (first: it makes mmengine lighter)
from mmengine.config import Config  # noqa: E402

from mmprune.run.training import with_safety  # noqa: E402
from mmprune.run.training.recovery import Recovery, recover  # noqa: E402

CONFIG = ROOT / 'projects' / 'configs' / 'llm' / 'causal_lm.py'
SHARED = Path(os.environ.get('MMPRUNE_SHARED', ROOT.parent / 'shared'))
DATA = SHARED / 'data'
# Name -> learning rate, method, whether the dense model teaches.
WAYS = {
    'LoRA apart, q and v': (3e-3, dict(method='lora'), False),
    'LoRA apart, all layers': (
        3e-3,
        dict(method='lora', targets='all'),
        False,
    ),
    'LoRA under the mask, q and v': (
        3e-3,
        dict(method='masked_lora'),
        False,
    ),
    'LoRA under the mask, all layers': (
        3e-3,
        dict(method='masked_lora', targets='all'),
        False,
    ),
    'all weights left': (1e-3, dict(method='dense'), False),
    'all weights left, distilled': (1e-3, dict(method='dense'), True),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description='Recover by each method.')
    add = parser.add_argument
    add('pruned', help='folder of the pruned model')
    add('--dense', default=str(DATA / 'weights' / 'stories260k'))
    add(
        '--tokenizer',
        default=str(DATA / 'tokenizers' / 'tinystories512' / 'tok512.model'),
    )
    add('--train', default=str(DATA / 'tinystories' / 'train.txt'))
    add('--valid', default=str(DATA / 'tinystories' / 'valid.txt'))
    add('--steps', type=int, default=120)
    add('--batch-size', type=int, default=16)
    add('--block-size', type=int, default=256)
    add('--eval-windows', type=int, default=128)
    add('--eval-size', type=int, default=512)
    add('--seed', type=int, default=0)
    add('--only', nargs='+', help='numbers of the rows')
    return parser.parse_args(argv)


def config(args: argparse.Namespace, rate: float, folder: Path) -> Config:
    """Returns the config of a training."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.pretrained = args.pruned
    windows = args.steps * args.batch_size
    cfg.train_dataloader.dataset = dict(
        type='mmprune.TokenWindows',
        source=args.train,
        tokenizer=args.tokenizer,
        seqlen=args.block_size,
        num_windows=windows,
        order='random',
        seed=args.seed,
    )
    cfg.train_dataloader.batch_size = args.batch_size
    cfg.optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=rate, weight_decay=0.0),
        clip_grad=dict(max_norm=1.0),
    )
    cfg.param_scheduler = [
        dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False)
    ]
    cfg.randomness = dict(seed=args.seed)
    cfg.work_dir = str(folder / 'training')
    cfg.log_level = 'ERROR'
    with_safety(cfg)
    return cfg


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    evaluation = dict(
        type='mmprune.TokenWindows',
        source=args.valid,
        tokenizer=args.tokenizer,
        seqlen=args.eval_size,
        num_windows=args.eval_windows,
    )
    rows, lost = [], []
    ways = list(WAYS.items())
    chosen = [ways[int(n)] for n in args.only] if args.only else ways
    for name, (rate, options, taught) in chosen:
        how = Recovery(teacher=args.dense if taught else None, **options)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            found = recover(
                config(args, rate, folder),
                how,
                folder,
                evaluation=evaluation,
                eval_batch=8,
                merge=how.method != 'dense',
                log=lambda text: print(text, file=sys.stderr),
            )
        rows.append((name, found))
        end = 'recovered' if how.method == 'dense' else 'merged'
        kept = found[f'sparsity_{end}'] >= found['sparsity_pruned']
        if not kept and how.method != 'lora':
            lost.append(name)
    print(
        f'{args.steps} steps of {args.batch_size} x {args.block_size} tokens, '
        f'perplexity on {args.eval_windows} x {args.eval_size} tokens, pruned '
        f'{rows[0][1]["perplexity_pruned"]:.2f}, zeros '
        f'{rows[0][1]["sparsity_pruned"]:.4%}\n'
    )
    print('| trained | perplexity | merged | zeros at the end | seconds |')
    print('|---|---|---|---|---|')
    for name, found in rows:
        merged = found.get('perplexity_merged')
        end = found.get('sparsity_merged', found['sparsity_recovered'])
        print(
            f'| {name} | {found["perplexity_recovered"]:.2f} | '
            f'{"-" if merged is None else f"{merged:.2f}"} | {end:.4%} | '
            f'{found["seconds"]:.0f} |'
        )
    if lost:
        sys.exit(f'zeros were lost: {", ".join(lost)}')


if __name__ == '__main__':
    main()
