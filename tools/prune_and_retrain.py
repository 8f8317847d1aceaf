"""Prunes a trained model and trains the result: a config and a checkpoint go
in, a smaller model that a stock mmengine Runner loads comes out.

    python tools/prune_and_retrain.py CONFIG CHECKPOINT --pruning-ratio 0.3
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Libraries ask for CUDA while they are imported. Without this the driver
# would start then, and --gpu-ids come too late.
os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')

from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import read  # noqa: E402
from mmprune.run.options import (  # noqa: E402
    DeviceOptions,
    LaunchOptions,
    PruningOptions,
    RunOptions,
    TrainingOptions,
)

OPTIONS = (
    RunOptions,
    PruningOptions,
    TrainingOptions,
    DeviceOptions,
    LaunchOptions,
)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = read(
        'Prune a trained model of an OpenMMLab config.', OPTIONS, argv
    )
    # PyTorch, which --help does without.
    from mmprune.run.prune_and_retrain import prune_and_retrain

    prune_and_retrain(*options)


if __name__ == '__main__':
    main()
