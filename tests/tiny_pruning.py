"""The commands that prune and test, in this process, on the tiny project."""

import runpy

from conftest import ROOT
from tiny_project import write_checkpoint, write_config

PRUNE = ROOT / 'tools' / 'prune_and_retrain.py'
TEST = ROOT / 'tools' / 'test.py'


def command(tool):
    return runpy.run_path(str(tool))['main']


def write_files(folder):
    return write_config(folder), write_checkpoint(folder, epoch=7)


def prune(files, *flags):
    """Runs the command; returns its folder."""
    folder = files[0].parent / 'out'
    paths = [str(p) for p in files]
    quick = ['--latency-runs', '0', '--output-dir', str(folder)]
    command(PRUNE)([*paths, *quick, *flags])
    return folder
