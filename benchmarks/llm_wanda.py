"""How long Wanda takes over a whole model, and how much memory.

    python benchmarks/llm_wanda.py --runs 3

A random LLaMA of 27 M parameters, 32 windows of 256 tokens, 50% of every row.
Beside mmprune's pass stands the published algorithm as its authors run it
(Sun et al., ICLR 2024; written here after the paper): one window at a time,
each block twice for every window, a stable sort of every row; once with the
attention that transformers takes today, once with the one that it had then
(eager). The floor is one forward of all windows; the algorithm needs two, but
for what nobody reads: the end of each block while it is dense, and the last
block once it is pruned. The ways take turns, and CPU seconds of this
process are counted; memory is that of a process of its own. Exits with 1 if
more than a thousandth of the masks differs, or it is not faster.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mmprune.memory import (  # noqa: E402
    current_bytes,
    peak_bytes,
    reset_peak,
)
from mmprune.pruners import LayerwisePruner  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Time Wanda over a model.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--runs', type=int, default=3, help='timed runs of each way')
    add('--width', type=int, default=512, help='of the model')
    add('--layers', type=int, default=8, help='of the model')
    add('--windows', type=int, default=32, help='calibration windows')
    add('--seqlen', type=int, default=256, help='tokens of a window')
    add('--batch', type=int, default=4, help='windows that mmprune runs')
    add('--memory', choices=tuple(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> nn.Module:
    """Returns a random LLaMA."""
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='mmprune.HuggingFaceCausalLM',
            config=dict(
                model_type='llama',
                hidden_size=args.width,
                intermediate_size=args.width * 43 // 16,
                num_hidden_layers=args.layers,
                num_attention_heads=8,
                vocab_size=2048,
                max_position_embeddings=2048,
            ),
        )
    )


def run(model: nn.Module, tokens: Tensor) -> Tensor:
    """Runs a model as in calibration."""
    return model(input_ids=tokens, mode='tensor')


def ours(model: nn.Module, tokens: Tensor, batch: int) -> None:
    """mmprune's pass."""
    LayerwisePruner(0.5)(model, tokens.split(batch), run)


class _Stop(Exception):  # noqa: N818
    """The first block has been called."""


@torch.no_grad()
def published(model: nn.Module, tokens: Tensor, batch: int) -> None:
    """The published algorithm, one window at a time."""
    blocks, inputs, call = model.model.layers, [], {}

    def catch(_, args, kwargs):
        inputs.append(args[0])
        call.update(kwargs)
        raise _Stop

    handle = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in tokens:
        with suppress(_Stop):
            run(model, window[None])
    handle.remove()
    outputs = list(inputs)
    for block in blocks:
        layers = [m for m in block.modules() if isinstance(m, nn.Linear)]
        sums = [torch.zeros(m.in_features) for m in layers]
        seen = [0] * len(layers)

        def add(number: int, sums: list = sums, seen: list = seen):
            def hook(_, args, __):
                x = args[0].reshape(-1, args[0].shape[-1]).t().float()
                sums[number] *= seen[number] / (seen[number] + 1)
                seen[number] += 1
                sums[number] += torch.norm(x, p=2, dim=1) ** 2 / seen[number]

            return hook

        handles = [
            m.register_forward_hook(add(i)) for i, m in enumerate(layers)
        ]
        for i, hidden in enumerate(inputs):
            outputs[i] = block(hidden, **call)
        for handle in handles:
            handle.remove()
        for layer, total in zip(layers, sums, strict=True):
            prune_rows(layer.weight.data, total)
        for i, hidden in enumerate(inputs):
            outputs[i] = block(hidden, **call)
        inputs, outputs = outputs, inputs


def prune_rows(weight: Tensor, squares: Tensor) -> None:
    """Zeroes half of every row by a stable sort, in place."""
    scores = weight.abs() * squares.view(1, -1).sqrt()
    mask = torch.zeros_like(scores) == 1
    order = torch.sort(scores, dim=-1, stable=True)[1]
    mask.scatter_(1, order[:, : weight.shape[1] // 2], True)
    weight[mask] = 0


@torch.no_grad()
def forward(model: nn.Module, tokens: Tensor, batch: int) -> None:
    """The floor: one forward."""
    for part in tokens.split(batch):
        model.model(input_ids=part, use_cache=False)


def eager(model: nn.Module, tokens: Tensor, batch: int) -> None:
    """The published algorithm with the attention of its time."""
    model.set_attn_implementation('eager')
    published(model, tokens, batch)


WAYS: dict[str, Callable[[nn.Module, Tensor, int], None]] = dict(
    mmprune=ours, published=published, eager=eager, forward=forward
)


def peak(args: argparse.Namespace, way: str) -> float:
    """Returns the peak memory of a process that does one thing, in MB."""
    words = [sys.executable, __file__, '--memory', way]
    for name in ('width', 'layers', 'windows', 'seqlen', 'batch'):
        words += [f'--{name}', str(getattr(args, name))]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    model = build(args)
    tokens = torch.randint(0, 2048, (args.windows, args.seqlen))
    if args.memory:
        # Libraries and buffers of the first product do not count.
        forward(model, tokens[: args.batch], args.batch)
        before = current_bytes()
        reset_peak()
        WAYS[args.memory](model, tokens, args.batch)
        print((peak_bytes() - before) / 2**20)
        return
    left: dict[str, nn.Module] = {}
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.runs):
        for name, way in WAYS.items():
            left[name] = copy.deepcopy(model)
            start = time.process_time()
            way(left[name], tokens, args.batch)
            times[name].append(time.process_time() - start)
    memory = {name: peak(args, name) for name in WAYS}
    show(args, times, memory, model)
    differing, total = compare(left['mmprune'], left['published'])
    middle = {name: statistics.median(each) for name, each in times.items()}
    print(
        f'\n{differing} of {total} weights differ (ties of rounding, and what '
        'follows from them); as fast as published '
        f'{middle["published"] / middle["mmprune"]:.2f}x, with eager '
        f'attention {middle["eager"] / middle["mmprune"]:.2f}x'
    )
    if differing > 1e-3 * total:
        sys.exit('the masks differ')
    if middle['published'] < middle['mmprune']:
        sys.exit('it is slower than the published algorithm')


def compare(one: nn.Module, other: nn.Module) -> tuple[int, int]:
    """Counts weights that are zero in one model alone, and all weights."""
    differing = total = 0
    for name, weight in one.named_parameters():
        if weight.ndim > 1 and 'layers' in name:
            theirs = other.get_parameter(name)
            differing += int(((weight == 0) != (theirs == 0)).sum())
            total += weight.numel()
    return differing, total


def show(
    args: argparse.Namespace, times: dict, memory: dict, model: nn.Module
) -> None:
    """Prints the table."""
    block = model.model.layers[0]
    size = sum(p.numel() for p in block.parameters()) * 4 / 2**20
    inputs = args.windows * args.seqlen * args.width * 4 / 2**20
    params = sum(p.numel() for p in model.parameters())
    print(
        f'{params / 1e6:.1f} M parameters, {args.windows} x {args.seqlen} '
        f'tokens, {args.runs} runs in turns, {torch.get_num_threads()} '
        f'threads, PyTorch {torch.__version__}\n'
        f'one block {size:.0f} MB, inputs of a block {inputs:.0f} MB\n'
    )
    print('| pass | median CPU seconds | least - most | / forward | peak '
          'above the loaded model (MB) |')  # fmt: skip
    print('|---|---|---|---|---|')
    base = statistics.median(times['forward'])
    for name, spent in times.items():
        middle = statistics.median(spent)
        print(
            f'| {name} | {middle:.2f} | {min(spent):.2f} - '
            f'{max(spent):.2f} | {middle / base:.2f} | '
            f'{memory[name]:.0f} |'
        )


if __name__ == '__main__':
    main()
