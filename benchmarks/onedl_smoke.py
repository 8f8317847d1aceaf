"""Whether mmprune works beside the maintained fork of OpenMMLab's stack.

onedl-mmcv, onedl-mmengine and onedl-mmdetection are imported by the names of
the originals. An environment of its own gets them, mmprune, and what that
needs else, in the versions of requirements.lock; of the originals nothing.
onedl-mmcv has no wheels: pip builds it without PyTorch at hand, and then it
compiles nothing. There a stock RetinaNet with random weights is pruned,
reloaded and trained for a step, every check in a process of its own.

    python benchmarks/onedl_smoke.py [--env DIR]

An environment with the same pins is used again. Prints a Markdown table;
exits with 1 if a check fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORK = {
    'onedl-mmcv': '2.3.6',
    'onedl-mmengine': '0.10.12',
    'onedl-mmdetection': '3.5.1',
}
ORIGINALS = {'mmcv', 'mmcv-lite', 'mmengine', 'mmdet', 'mmdet3d'}
# What is pinned of what mmprune and the fork need else. The headless OpenCV
# comes last, see setup_env.py.
OTHERS = ['torch', 'torchvision', 'numpy', 'scipy', 'torch-pruning']
OTHERS += ['setuptools', 'opencv-python', 'opencv-python-headless']
CONFIG = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
# Scores of random weights are all low; NMS is to have work.
OPTIONS = ['model.test_cfg.score_thr=0.0']
STAMP = 'onedl-stamp'


def environment(folder: Path) -> Path:
    """Returns the Python of the environment, which is made if need be."""
    pins = [f'{name}=={version}' for name, version in FORK.items()]
    lock = ROOT / 'requirements.lock'
    stamp, python = folder / STAMP, folder / 'bin' / 'python'
    wanted = '\n'.join([str(ROOT), *pins, *OTHERS, lock.read_text()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    if stamp.is_file():  # ours, of other pins or unfinished
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f'{folder} is not an environment of this script')
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text('unfinished')
    print(f'making {folder}, some minutes and 6 GB', file=sys.stderr)
    venv.create(folder, with_pip=True)
    pip = [str(python), '-m', 'pip', 'install', '--quiet', '-c', str(lock)]
    headless = re.search(rf'^{OTHERS[-1]}==\S+', wanted, re.M).group()
    for words in (
        [*OTHERS, *pins],
        ['--no-deps', '--force-reinstall', headless],
        ['--no-build-isolation', '-e', str(ROOT)],  # adds no original
    ):
        subprocess.run(
            [*pip, *words], check=True, stdout=sys.stderr, env=clean()
        )
    stamp.write_text(wanted)
    return python


def clean() -> dict[str, str]:
    """Returns an environment in which no other packages leak in."""
    added = {'CUDA_VISIBLE_DEVICES': '', 'PYTHONNOUSERSITE': '1'}
    env = {**os.environ, **added}
    env.pop('PYTHONPATH', None)
    return env


def imports(work: Path) -> None:
    """`import mmprune` makes mmcv's ops and mmdet's models importable"""
    installed = {item.metadata['Name'] for item in distributions()}
    if ORIGINALS & installed or not installed >= FORK.keys():
        raise ValueError(f'not the fork alone: {sorted(installed)}')
    import mmcv.ops  # noqa: F401
    import mmdet.models  # noqa: F401

    origin = find_spec('mmcv._ext').origin
    if not origin.startswith('mmprune.'):
        raise ValueError(f'mmcv._ext is {origin}, not served by mmprune')


def weights(work: Path) -> None:
    """a stock config of mmdet becomes a model with random weights"""
    import torch
    from zoo_stages import enliven

    from mmprune.families.detector import drawn
    from mmprune.models import build_model

    cfg = config()
    cfg.model.backbone.init_cfg = None  # which is a download
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    enliven(model, drawn(cfg, 128, 128))
    torch.save(dict(state_dict=model.state_dict()), work / 'dense.pth')


def prune(work: Path) -> None:
    """`tools/prune_and_retrain.py` removes 30 % of its units"""
    tool = [sys.executable, str(ROOT / 'tools' / 'prune_and_retrain.py')]
    words = [CONFIG, str(work / 'dense.pth'), '--pruning-ratio', '0.3']
    words += ['--mode', 'structured', '--latency-runs', '0', '--device', 'cpu']
    words += ['--cfg-options', *OPTIONS, '--output-dir', str(work / 'pruned')]
    subprocess.run([*tool, *words], check=True)


def reload(work: Path) -> None:
    """a stock Runner and mmprune load it: same bits, as the masked model"""
    import torch
    from zoo_stages import alike, predictions

    from mmprune.family import build_family
    from mmprune.masks import mask_plan
    from mmprune.models import load_model
    from mmprune.pruners.verify import TOLERANCE, largest_difference

    family, runner = build_family(config()), stock_runner(work)
    small = load_model(config(), runner.cfg.load_from)
    found = predictions(family, runner.model)
    if not all(map(alike, found, predictions(family, small))):
        raise ValueError('the two predict something else')
    masked = load_model(config(), work / 'dense.pth')
    mask_plan(masked, small.pruning_plan)
    data = small.data_preprocessor(family.small_batch(small), False)
    with torch.no_grad():
        raw = [m(**data, mode='tensor') for m in (masked, runner.model)]
    masked_raw, small_raw = ([t for part in r for t in part] for r in raw)
    difference = largest_difference(masked_raw, small_raw)
    if not difference <= TOLERANCE:
        raise ValueError(f'{difference:.1e} from the masked model')


def train(work: Path) -> None:
    """the stock Runner's optimizer takes a step that moves all it trains"""
    import torch
    from zoo_stages import twice

    from mmprune.family import build_family

    runner = stock_runner(work)
    model = runner.model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    batch = twice(build_family(config()).small_batch(model, training=True))
    losses = model.train_step(batch, optimizer)
    still = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and torch.equal(p, before[name])
    ]
    if still or not losses['loss'].isfinite():
        raise ValueError(f'the loss is {losses["loss"]}, unmoved: {still}')


def guard(work: Path) -> None:
    """loading refuses a pickle with code in it, and a plan that differs"""
    import torch
    from mmengine.runner import load_checkpoint

    from mmprune.models import load_model

    torch.save(dict(state_dict={}, hook=print), work / 'code.pth')
    dense = load_model(config(), work / 'dense.pth')
    (pruned,) = (work / 'pruned').glob('*_structured_pruned.pth')
    for path in (work / 'code.pth', pruned):
        try:
            load_checkpoint(dense, str(path), map_location='cpu')
        except ValueError:
            continue
        raise RuntimeError(f'{path.name} was loaded')


CHECKS = {
    check.__name__: check
    for check in (imports, weights, prune, reload, train, guard)
}


def config():
    """Returns the stock config."""
    from mmprune.run.config_file import load_config

    return load_config(CONFIG, OPTIONS)


def stock_runner(work: Path):
    """Returns mmengine's Runner of the written config, with its weights."""
    from mmengine.config import Config
    from mmengine.runner import Runner, load_checkpoint

    (path,) = (work / 'pruned').glob('*_structured_pruned.py')
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work / 'runner')
    runner = Runner.from_cfg(cfg)
    load_checkpoint(runner.model, cfg.load_from, 'cpu', strict=True)
    return runner


def verdicts(python: Path) -> Iterator[tuple[str, str]]:
    """Runs each check in a process; yields what it asks and what came out."""
    with tempfile.TemporaryDirectory() as work:
        for name, check in CHECKS.items():
            words = [python, __file__, '--check', name, '--work', work]
            done = subprocess.run(
                words, env=clean(), capture_output=True, text=True
            )
            print(done.stdout, done.stderr, file=sys.stderr)
            lines = re.findall(r'^[\w.]*[eE]rror: .*', done.stderr, re.M)
            error = [*lines, f'exit status {done.returncode}'][0]
            yield check.__doc__, error if done.returncode else 'ok'


def main() -> int:
    """Prints the table; returns how many checks failed, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    default = ROOT / 'work_dirs' / 'onedl'
    parser.add_argument('--env', type=Path, default=default, metavar='DIR')
    parser.add_argument('--check', choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument('--work', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.check:
        sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]
        import mmprune  # noqa: F401

        CHECKS[args.check](args.work)
        return 0
    found = list(verdicts(environment(args.env.resolve())))
    versions = ', '.join(f'{name} {FORK[name]}' for name in FORK)
    print(f'{versions}\n\n| check | result |\n|---|---|')
    for asked, verdict in found:
        print(f'| {asked} | {verdict} |')
    return int(any(verdict != 'ok' for _, verdict in found))


if __name__ == '__main__':
    sys.exit(main())
