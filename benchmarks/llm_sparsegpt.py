"""How long SparseGPT takes for a matrix of 2048 x 2048.

    python benchmarks/llm_sparsegpt.py --runs 3

Beside mmprune stands the published algorithm as its authors run it (Frantar &
Alistarh, ICML 2023; written here after the paper): an inverse between two
factorisations, and one column at a time. The ways take turns. Exits with 1 if
weights differ by more than rounding, or the goal is missed.
"""

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mmprune.cost import time_in_turns  # noqa: E402
from mmprune.pruners import SparseGPT  # noqa: E402

GOAL = 1.7


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Time SparseGPT.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--size', type=int, default=2048, help='rows and columns')
    add('--runs', type=int, default=3, help='timed runs of each way')
    return parser.parse_args(argv)


def published(
    weight: Tensor,
    hessian: Tensor,
    group: tuple[int, int] | None = None,
    size: int = 128,
) -> Tensor:
    """Half of the weights, or N of M, go; the rest makes up for them."""
    weight, whole = weight.clone(), hessian.clone()
    count = len(whole)
    places = torch.arange(count)
    whole[places, places] += 0.01 * whole.diagonal().mean()
    whole = torch.cholesky_inverse(torch.linalg.cholesky(whole))
    factor = torch.linalg.cholesky(whole, upper=True)
    for start in range(0, count, size):
        end = min(start + size, count)
        part = weight[:, start:end].clone()
        done, errors = torch.zeros_like(part), torch.zeros_like(part)
        upper = factor[start:end, start:end]
        mask = torch.zeros_like(part, dtype=torch.bool)
        if group is None:
            scores = part**2 / upper.diagonal().view(1, -1) ** 2
            middle = scores.numel() // 2
            limit = torch.sort(scores.flatten())[0][middle - 1]
            mask = scores <= limit
        for j in range(end - start):
            if group and j % group[1] == 0:
                wide = slice(j, j + group[1])
                scores = part[:, wide] ** 2
                scores = scores / upper.diagonal()[wide].view(1, -1) ** 2
                lost = torch.topk(scores, group[0], dim=1, largest=False)[1]
                mask.scatter_(1, j + lost, True)
            column = part[:, j].clone()
            column[mask[:, j]] = 0
            error = (part[:, j] - column) / upper[j, j]
            part[:, j:] -= error[:, None].matmul(upper[j, j:][None])
            done[:, j], errors[:, j] = column, error
        weight[:, start:end] = done
        weight[:, end:] -= errors.matmul(factor[start:end, end:])
    return weight


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    torch.manual_seed(0)
    size = args.size
    inputs = torch.randn(2 * size, size) @ torch.randn(size, size)
    hessian = 2 * inputs.T @ inputs / size**2
    weight = torch.randn(size, size) * 0.05
    solver = SparseGPT()
    ways = {
        '50%, mmprune': lambda: solver.solve(weight, hessian, 0.5),
        '50%, published': lambda: published(weight, hessian),
        '2:4, mmprune': lambda: solver.solve(weight, hessian, 0, '2:4'),
        '2:4, published': lambda: published(weight, hessian, (2, 4)),
    }
    with torch.no_grad():
        results = {name: way() for name, way in ways.items()}
        times = time_in_turns(ways, runs=args.runs, warmup=0)
    print(
        f'{size} x {size}, {args.runs} runs in turns, '
        f'{torch.get_num_threads()} threads, PyTorch {torch.__version__}\n'
    )
    print('| solve | median (s) | least - most (s) | this / mmprune |')
    print('|---|---|---|---|')
    ratios = {}
    for name, spent in times.items():
        kind = name.partition(',')[0]
        base = statistics.median(times[f'{kind}, mmprune'])
        ratios[name] = statistics.median(spent) / base
        print(
            f'| {name} | {statistics.median(spent) / 1000:.2f} | '
            f'{min(spent) / 1000:.2f} - {max(spent) / 1000:.2f} | '
            f'{ratios[name]:.2f}x |'
        )
    for kind in ('50%', '2:4'):
        one, other = results[f'{kind}, mmprune'], results[f'{kind}, published']
        flips = ((one == 0) != (other == 0)).float().mean().item()
        change = weight - one, weight - other
        errors = [float(((c @ hessian) * c).sum()) for c in change]
        print(
            f'\n{kind}: {flips:.4%} of the mask differs, error '
            f'{errors[0]:.6g} against {errors[1]:.6g}'
        )
        if flips > 2e-4 or abs(errors[0] / errors[1] - 1) > 1e-3:
            sys.exit(f'{kind}: the results differ')
    if ratios['50%, published'] < GOAL:
        sys.exit(f'50% is below the goal of {GOAL}x')


if __name__ == '__main__':
    main()
