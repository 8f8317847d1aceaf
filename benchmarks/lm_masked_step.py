"""What masks cost a language model: a fine-tuning step with and without.

    python benchmarks/lm_masked_step.py --rounds 15

A random LLaMA with half of the weights of every row zero, one window of 1024
tokens, AdamW, clipped gradients. Beside it the way of the public Wanda code,
written anew: in every step the mask is read from the zeros and written into
the gradients of each layer, and nothing else is masked. The models take
turns. Exits with 1 if the masks of mmprune cost more than 3%.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mmprune  # noqa: E402, F401, I001  (first: it makes mmengine lighter)
import torch  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from torch import nn  # noqa: E402

from mmprune.cost import time_in_turns  # noqa: E402
from mmprune.masks import read_zeros, weight_regions  # noqa: E402
from mmprune.pruners import WeightPruner  # noqa: E402
from mmprune.sparsifying.holding import sparse_weights  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402
from mmprune.sparsifying import Masking  # noqa: E402

LIMIT = 0.03


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description='Time masked fine-tuning.')
    add = parser.add_argument
    add('--hidden', type=int, default=512)
    add('--layers', type=int, default=2)
    add('--tokens', type=int, default=1024, help='of a window')
    add('--batch-size', type=int, default=1)
    add('--rounds', type=int, default=15, help='timed steps of each model')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> nn.Module:
    """Returns the sparse model, the same weights each time."""
    torch.manual_seed(0)
    config = dict(
        model_type='llama',
        vocab_size=2048,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 43 // 16,
        num_hidden_layers=args.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=args.tokens,
    )
    model = MODELS.build(
        dict(type='mmprune.HuggingFaceCausalLM', config=config)
    )
    WeightPruner(0.5, scope='row', protect=['lm_head'])(model)
    return model.to(args.device).train()


def stepper(
    model: nn.Module, after: Callable[[], None], args: argparse.Namespace
) -> tuple[Callable[[], None], OptimWrapper]:
    """Returns a function that does one training step, and the optimizer."""
    # Not fused, AdamW takes twice the time where its moments are zero: the
    # square root of PyTorch is slow there on a CPU.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
    shape = (args.batch_size, args.tokens)
    tokens = torch.randint(0, 2048, shape, device=args.device)

    def step() -> None:
        model.train_step(dict(input_ids=tokens), wrapper)
        after()

    return step, wrapper


def masked(args: argparse.Namespace) -> Callable[[], None]:
    """Returns a step with masks on gradients, momentum and weights."""
    model = build(args)
    masks = read_zeros(model, sparse_weights(model))
    step, wrapper = stepper(model, lambda: masking.apply(), args)
    masking = Masking(model, [wrapper.optimizer])
    masking.hold(lambda net: weight_regions(net, masks))
    return step


def from_zeros(args: argparse.Namespace) -> Callable[[], None]:
    """Returns a step that reads its masks from the zeros each time."""
    model = build(args)
    weights = [model.get_parameter(n) for n in sparse_weights(model)]

    def zero(weight: nn.Parameter) -> None:
        weight.grad[weight.data == 0] = 0

    for weight in weights:
        weight.register_post_accumulate_grad_hook(zero)
    return stepper(model, lambda: None, args)[0]


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    model = build(args)
    steps = {
        'without masks': stepper(model, lambda: None, args)[0],
        'mmprune': masked(args),
        'mask read from zeros': from_zeros(args),
    }
    times = time_in_turns(steps, runs=args.rounds, warmup=2)
    total = sum(p.numel() for p in model.parameters())
    print(
        f'LLaMA of {total / 1e6:.1f} M parameters, {args.batch_size} x '
        f'{args.tokens} tokens, {args.rounds} steps, {args.device}, '
        f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}\n'
    )
    print('| fine-tuning step | median (ms) | quartiles (ms) | of dense |')
    print('|---|---|---|---|')
    base = statistics.median(times['without masks'])
    for name, spent in times.items():
        low, middle, high = statistics.quantiles(spent, n=4)
        print(
            f'| {name} | {middle:.1f} | {low:.1f} - {high:.1f} | '
            f'{middle / base:.3f}x |'
        )
    # Of the same round, so that a slow moment hits both.
    ratio = statistics.median(
        ours / dense
        for ours, dense in zip(
            times['mmprune'], times['without masks'], strict=True
        )
    )
    print(f'\nmasks cost {ratio - 1:+.1%} (median of the rounds)')
    if ratio > 1 + LIMIT:
        sys.exit(f'masks cost more than {LIMIT:.0%}')


if __name__ == '__main__':
    main()
