"""How small sparse model files are, and how long they take to load.

    python benchmarks/lm_packed.py --rounds 7

A random LLaMA in half precision, half of its weights zero, per row and as
2:4. What is loaded is compared bit by bit. Exits with 1 if the matrices take
more than .57 of their dense size.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mmprune  # noqa: E402, F401, I001  (first: it makes mmengine lighter)
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from mmprune.checkpoints.packed import load_packed, pack_folder  # noqa: E402
from mmprune.cost import time_in_turns  # noqa: E402
from mmprune.pruners import WeightPruner  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402

LIMIT = 0.57
KINDS = {
    'half of every row': dict(sparsity=0.5, scope='row'),
    '2:4': dict(pattern='2:4'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description='Size and load time.')
    add = parser.add_argument
    add('--hidden', type=int, default=1024)
    add('--layers', type=int, default=8)
    add('--vocabulary', type=int, default=8192)
    add('--rounds', type=int, default=7, help='timed loads of each file')
    return parser.parse_args(argv)


def write(args: argparse.Namespace, folder: Path, options: dict) -> None:
    """Writes a sparse model folder."""
    torch.manual_seed(0)
    config = dict(
        model_type='llama',
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 43 // 16,
        num_hidden_layers=args.layers,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    model = MODELS.build(
        dict(type='mmprune.HuggingFaceCausalLM', config=config)
    )
    WeightPruner(protect=['lm_head'], **options)(model)
    model.half().save_pretrained(folder)


def same_bits(one: dict, other: dict) -> bool:
    """Whether two state dicts hold the same bits."""
    return one.keys() == other.keys() and all(
        torch.equal(value.view(torch.int16), other[name].view(torch.int16))
        for name, value in one.items()
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    args = parse_args(argv)
    print(
        '| zeros | dense (MB) | packed (MB) | all tensors | matrices | '
        'load dense (ms) | load packed (ms) | bits |'
    )
    print('|---|---|---|---|---|---|---|---|')
    worst = 0.0
    for name, options in KINDS.items():
        with tempfile.TemporaryDirectory() as place:
            dense, packed = Path(place) / 'dense', Path(place) / 'packed'
            write(args, dense, options)
            sizes = pack_folder(dense, packed)
            file = dense / 'model.safetensors'

            def plain(file: Path = file) -> dict:
                # Read, not only mapped into memory.
                return {k: v.clone() for k, v in load_file(file).items()}

            def sparse(packed: Path = packed) -> dict:
                return load_packed(packed)

            same = same_bits(plain(), sparse())
            times = time_in_turns(
                dict(dense=plain, packed=sparse), runs=args.rounds
            )
        share = sizes['sparse_packed'] / sizes['sparse_dense']
        worst = max(worst, share)
        middle = {k: statistics.median(v) for k, v in times.items()}
        print(
            f'| {name} | {sizes["dense"] / 1e6:.1f} | '
            f'{sizes["packed"] / 1e6:.1f} | '
            f'{sizes["packed"] / sizes["dense"]:.4f}x | {share:.4f}x | '
            f'{middle["dense"]:.0f} | {middle["packed"]:.0f} | '
            f'{"equal" if same else "differ"} |'
        )
        if not same:
            sys.exit('what was loaded differs from what was packed')
    if worst > LIMIT:
        sys.exit(f'the matrices take more than {LIMIT} of their size')


if __name__ == '__main__':
    main()
