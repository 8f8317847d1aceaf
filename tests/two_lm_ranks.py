"""Recovers a language model on two gloo ranks, copied and sharded; started by
torch.distributed.run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools' / 'guides')]

from finetune_lm import main  # noqa: E402


def recover(folder: Path) -> None:
    """Runs the command once for each method and way to split the work."""
    for method in METHODS:
        for name, flags in (('ddp', []), ('fsdp', ['--shard'])):
            out = str(folder / f'{method}_{name}')
            split = ['--launcher', 'pytorch', *flags]
            main([*command(folder, method, out, batch=2), *split])


METHODS = ('dense', 'masked_lora')


def command(folder: Path, method: str, out: str, batch: int) -> list[str]:
    """Returns the flags of a training of eight steps of four windows."""
    return [
        *('--model_name_or_path', str(folder / 'base')),
        *('--dataset_name', str(folder / 'text.npy')),
        *('--block_size', '12', '--do_train'),
        *('--per_device_train_batch_size', str(batch)),
        *('--num_train_epochs', '2', '--learning_rate', '0.01'),
        *('--method', method, '--weight_decay', '0.1'),
        # Each rank would draw its own.
        *('--lora_dropout', '0'),
        *('--output_dir', out),
    ]


if __name__ == '__main__':
    recover(Path(sys.argv[1]))
