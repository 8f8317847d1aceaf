"""The pruning command with a training behind it, on the tiny project."""

import pytest
import torch
from tiny_project import CONFIG, write_checkpoint, write_config
from tiny_pruning import PRUNE, command

from mmprune.checkpoints.reading import load_checkpoint_file

QUICK = ['--latency-runs', '0', '--no-eval']
# Twelve epochs of the config become those of the run.
COSINE = """
train_cfg = dict(by_epoch=True, max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=12),
]
"""


def write_files(folder, changes=''):
    config = write_config(folder, CONFIG + COSINE + changes)
    return config, write_checkpoint(folder, momentum=True, epoch=12)


def run(files, *flags, out='out'):
    """Runs the command in this process; returns its folder."""
    folder = files[0].parent / out
    paths = [str(p) for p in files]
    command(PRUNE)(
        [*paths, *QUICK, '--output-dir', str(folder), *map(str, flags)]
    )
    return folder


def weights(path):
    return load_checkpoint_file(path)['state_dict']


def same_weights(one, two):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    return all(torch.equal(one[k], two[k]) for k in one)


def fails(capsys, files, *flags):
    with pytest.raises(SystemExit) as end:
        run(files, *flags)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1
    return errors[0]
