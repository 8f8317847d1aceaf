"""How long it takes to choose the weights of a 4096 x 4096 matrix.

    python benchmarks/weight_selection.py --runs 5

Half of every row, beside `torch.topk` per row and a stable sort of it; 2 of
every 4 neighbours, beside a loop over the columns with `topk` as the authors
of Wanda (Sun et al., ICLR 2024) run it (written here after the paper). The
ways take turns. Exits with 1 if two masks without ties differ or 2:4 is less
than 4.8 times as fast as the loop.
"""

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mmprune.allocation import lowest_per_row  # noqa: E402
from mmprune.cost import time_in_turns  # noqa: E402
from mmprune.patterns import lowest_of_group  # noqa: E402

GOAL = 4.8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Time the choice of weights.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--size', type=int, default=4096, help='rows and columns')
    add('--runs', type=int, default=5, help='timed runs of each way')
    return parser.parse_args(argv)


def topk_rows(scores: Tensor) -> Tensor:
    """The lowest half of every row by ``torch.topk``."""
    half = scores.shape[1] // 2
    index = scores.topk(half, 1, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, True)


def sorted_rows(scores: Tensor) -> Tensor:
    """The lowest half of every row by a stable sort."""
    index = scores.sort(stable=True).indices[:, : scores.shape[1] // 2]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, True)


def loop_of_columns(scores: Tensor) -> Tensor:
    """The two lowest of every four columns, four columns at a time."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, scores.shape[1], 4):
        group = scores[:, start : start + 4]
        index = group.topk(2, 1, largest=False).indices
        mask.scatter_(1, start + index, True)
    return mask


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    torch.manual_seed(0)
    # A permutation, in which no two scores are equal; float32 has them all.
    count = args.size**2
    scores = torch.randperm(count).view(args.size, -1).float()
    scores += 1
    ways = {
        'half of every row, mmprune': lambda: lowest_per_row(
            scores, args.size // 2
        ),
        'half of every row, torch.topk': lambda: topk_rows(scores),
        'half of every row, stable sort': lambda: sorted_rows(scores),
        '2:4, mmprune': lambda: lowest_of_group(scores, 2, 4),
        '2:4, loop of columns': lambda: loop_of_columns(scores),
    }
    masks = {name: way() for name, way in ways.items()}
    times = time_in_turns(ways, runs=args.runs)
    print(
        f'{args.size} x {args.size}, {scores.dtype}, {args.runs} runs in '
        f'turns, {torch.get_num_threads()} threads, PyTorch '
        f'{torch.__version__}\n'
    )
    print('| choice | median (ms) | least - most (ms) | this / mmprune |')
    print('|---|---|---|---|')
    ratios = {}
    for name, spent in times.items():
        pattern = name.partition(',')[0]
        base = statistics.median(times[f'{pattern}, mmprune'])
        ratios[name] = statistics.median(spent) / base
        print(
            f'| {name} | {statistics.median(spent):.0f} | {min(spent):.0f} - '
            f'{max(spent):.0f} | {ratios[name]:.2f}x |'
        )
        if not torch.equal(masks[name], masks[f'{pattern}, mmprune']):
            sys.exit(f'{name} chooses other weights')
    if ratios['2:4, loop of columns'] < GOAL:
        sys.exit(f'2:4 is below the goal of {GOAL}x')


if __name__ == '__main__':
    main()
