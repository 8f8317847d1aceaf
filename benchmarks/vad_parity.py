"""How far VAD is from the authors' code, array by array.

Loads the golden weights strictly, runs the two frames of every golden set
and prints the largest absolute difference, the same relative to the largest
magnitude of the array, and the mean difference.

    python benchmarks/vad_parity.py [--shared ../shared] [--sizes tiny base]
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'projects')]

import mmprune  # noqa: E402, F401, I001  (first: serves mmcv's ops)

from golden import KINDS, differences, golden_sets, run  # noqa: E402


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--shared',
        type=Path,
        default=os.environ.get('MMPRUNE_SHARED', ROOT.parent / 'shared'),
        help='folder that holds vad/golden',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        choices=('tiny', 'base'),
        default=['tiny', 'base'],
    )
    return parser.parse_args()


def main() -> None:
    """Prints one table per golden set."""
    args = parse_args()
    sets = [s for n in args.sizes for s in golden_sets(args.shared, n)]
    if not sets:
        sys.exit(f'no golden sets in {args.shared}/vad/golden')
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    for golden in sets:
        start = time.perf_counter()
        result = run(args.shared, golden)
        seconds = time.perf_counter() - start
        print(f'\n{golden.name} ({golden.tag}), {seconds:.1f} s in all')
        print(f'{"array":<30}{"max abs":>10}{"max rel":>10}{"mean abs":>10}')
        for kind in KINDS:
            if kind not in golden.arrays:
                print(f'({golden.name}_{kind}.npz is not there)')
                continue
            for key, gap in differences(golden, kind, result):
                print(
                    f'{key:<30}{gap.absolute:>10.1e}{gap.relative:>10.1e}'
                    f'{gap.mean:>10.1e}'
                )


if __name__ == '__main__':
    main()
