"""Recovers a language model on two gloo ranks, copied and sharded; started by
torch.distributed.run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools' / 'guides')]

from finetune_lm import main  # noqa: E402


def recover(folder: Path) -> None:
    """Runs the command once for each way to split the work."""
    for name, flags in (('ddp', []), ('fsdp', ['--shard'])):
        main(
            [
                *('--model_name_or_path', str(folder / 'base')),
                *('--dataset_name', str(folder / 'text.npy')),
                *('--block_size', '12', '--do_train'),
                *('--per_device_train_batch_size', '2'),
                *('--num_train_epochs', '2', '--learning_rate', '0.01'),
                *('--method', 'dense', '--weight_decay', '0.1'),
                *('--output_dir', str(folder / name)),
                *('--launcher', 'pytorch', *flags),
            ]
        )


if __name__ == '__main__':
    recover(Path(sys.argv[1]))
