"""Whether a detector of OpenMMLab is pruned from its stock config, for all.

One config of each folder of mmdet's wheel that holds a detector or segmenter
(of trackers their detector) goes through what `tools/prune_and_retrain.py`
does: build, prune, compare masked with pruned, write, reload by a stock
Runner, train one step, export. Every stage is a process of its own. Beside
it Torch-Pruning alone prunes the same weights.

    python benchmarks/zoo.py [--family retinanet fcos] [--config PATH]

A family that was done before is not done again (`--again`: those that
failed, `--fresh`: all that are asked for). Writes docs/zoo.md, and
docs/zoo.json for other machines to go on from; exits with 1 if one that was
asked for fails.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

from zoo_page import render  # noqa: E402
from zoo_verdicts import OURS, RULES, STAGES, own_seconds, success  # noqa: E402

import mmprune  # noqa: E402, F401
from mmprune.atomic_file import save_json, write_whole  # noqa: E402

# Folders without a detector or segmenter of their own.
NOT_DETECTORS = ('_base_', 'common', 'dsdl', 'reid', 'classification')
# The smaller models of a family, in order of preference.
SMALL = ('r18', 'tiny', '-t-', '-t_', 'mobilenet', 'r50', 'w18', 's50')
# mmdet3d: one of each family that needs no sparse convolutions.
FAMILIES_3D = (
    'fcos3d pgd smoke imvoxelnet pointpillars ssn votenet 3dssd pointnet2 '
    'point_rcnn paconv dgcnn centerpoint mvxnet free_anchor groupfree3d '
    'h3dnet regnet monoflex nuimages'
)
# In place of the smallest one.
INSTEAD = {
    # mmdet's RPN does not tell its head how many classes there are
    'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    # with pillars, as voxels need sparse convolutions
    'centerpoint': (
        'centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py'
    ),
}


def main() -> int:
    """Runs the matrix; returns how many families failed, at most 1."""
    args = read_arguments()
    folder = ROOT / 'work_dirs' / 'zoo' / f'{args.package}-{args.ratio:g}'
    take_known(folder, args)
    wanted = dict(families(args))
    # Importing mmdet takes ten seconds: stages are forked from this process,
    # which has done it and nothing else.
    warnings.simplefilter('ignore')
    import zoo_stages  # noqa: F401

    with ThreadPoolExecutor(args.jobs) as pool:
        done = list(
            pool.map(
                lambda item: run_family(folder, *item, args),
                wanted.items(),
            )
        )
    if not args.config:
        names = family_names(args.package)
        states = [s for s in finished(folder) if s['family'] in names]
        page = ROOT / 'docs' / page_name(args)
        missing = [n for n in names if n not in {s['family'] for s in states}]
        if missing and args.family and page.is_file():
            print(
                f'{page.name} is left as it is: {len(missing)} families '
                'are not known by these rules'
            )
        else:
            text = render(states, missing, args.package, args.ratio)
            write_whole(page, text.encode())
            known = {s['family']: s for s in states}
            save_json(known, page.with_suffix('.json'))
    return int(not all(map(success, done)))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--family', nargs='+', metavar='NAME')
    parser.add_argument('--config', type=Path, metavar='PATH')
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument(
        '--package', choices=('mmdet', 'mmdet3d'), default='mmdet'
    )
    parser.add_argument('--ratio', type=float, default=0.3)
    parser.add_argument(
        '--limit', type=int, default=900, help='CPU seconds for a family'
    )
    parser.add_argument(
        '--again', action='store_true', help='repeat those that failed'
    )
    parser.add_argument(
        '--fresh', action='store_true', help='repeat all that are asked for'
    )
    return parser.parse_args()


def page_name(args: argparse.Namespace) -> str:
    name = 'zoo' if args.package == 'mmdet' else 'zoo_mmdet3d'
    return f'{name}.md' if args.ratio == 0.3 else f'{name}_{args.ratio:g}.md'


def take_known(folder: Path, args: argparse.Namespace) -> None:
    """Lays down what another machine has found by the same rules, where
    nothing is yet."""
    path = (ROOT / 'docs' / page_name(args)).with_suffix('.json')
    known = json.loads(path.read_text()) if path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in known.items():
        file = folder / f'{name}.json'
        if not file.exists() and state.get('rules') == RULES:
            save_json(state, file)


def finished(folder: Path) -> list[dict]:
    """Returns what was found of each family, without paths of a machine."""
    found = [json.loads(p.read_text()) for p in sorted(folder.glob('*.json'))]
    return [
        state
        | dict(
            config=inside_wheel(state['config']),
            stages={
                stage: plain(verdict, folder)
                for stage, verdict in state['stages'].items()
            },
        )
        for state in found
        if state.get('finished') and state.get('rules') == RULES
    ]


def inside_wheel(config: str) -> str:
    """Returns the path of a config below the folder `configs` of its wheel."""
    return re.sub(r'.*\.mim/configs/', '', config)


def configs_of(package: str) -> Path:
    return Path(find_spec(package).origin).parent / '.mim' / 'configs'


def families(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yields names and configs of what was asked for."""
    if args.config:
        yield args.config.stem, args.config.resolve()
        return
    configs, names = configs_of(args.package), family_names(args.package)
    unknown = set(args.family or ()) - set(names)
    if unknown:
        raise SystemExit(f'no family {sorted(unknown)}; there are {names}')
    for name in args.family or names:
        found = [
            path
            for path in sorted((configs / name).rglob('*.py'))
            if not {'metafile', '__pycache__'} & {path.stem, path.parent.name}
        ]
        if found:
            chosen = min(found, key=size_of)
            yield name, chosen.with_name(INSTEAD.get(name, chosen.name))


def family_names(package: str) -> list[str]:
    """Returns the folders of a wheel that hold what is asked about."""
    folders = sorted(p for p in configs_of(package).iterdir() if p.is_dir())
    names = [p.name for p in folders if p.name not in NOT_DETECTORS]
    if package == 'mmdet3d':
        names = [name for name in names if name in FAMILIES_3D.split()]
    return names


def size_of(path: Path) -> tuple:
    """What sorts the configs of a folder: small models, plain names."""
    name = f'_{path.stem}_'
    folder = re.sub('[_-]', '', path.parent.name)
    other = folder not in re.sub('[_-]', '', name)
    size = next((i for i, s in enumerate(SMALL) if s in name), len(SMALL))
    # Cropped to 1024 pixels in training, or of three stages: slow.
    slow = '-lsj-' in name or '_htc' in name
    return '_base' in name, other, slow, size, len(name), name


def run_family(
    folder: Path,
    name: str,
    config: Path,
    args: argparse.Namespace,
) -> dict:
    """Runs the stages of a family that are not done; returns its state."""
    state_file, work = folder / f'{name}.json', folder / name
    inside = inside_wheel(str(config))
    state = dict(
        family=name, config=inside, rules=RULES, stages={}, seconds={}
    )
    if state_file.exists() and not args.fresh:
        known = json.loads(state_file.read_text())
        same = inside_wheel(known['config']) == inside
        if same and known.get('rules') == RULES:
            state = known
    if state.get('finished') and (success(state) or not args.again):
        return state
    if state.get('finished'):
        state = dict(state, stages={}, seconds={}, finished=False)
    work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage in state['stages']:
            continue
        before = STAGES[: STAGES.index(stage)]
        needed = [s for s in OURS if s in before]
        if stage == 'torch_pruning':
            needed = ['build']
        if any(state['stages'].get(s) != 'ok' for s in needed):
            state['stages'][stage] = '-'
            continue
        limit = args.limit - own_seconds(state)
        if stage == 'torch_pruning':
            limit = args.limit
        result = run_stage(stage, work, config, args.ratio, limit)
        state['stages'][stage] = result.pop('verdict')
        state['seconds'][stage] = result.pop('seconds')
        state.update(result)
        save_json(state, state_file)
        print(f'{name}: {stage}: {state["stages"][stage]}', flush=True)
    state['finished'] = True
    save_json(state, state_file)
    shutil.rmtree(work, ignore_errors=True)
    return state


def run_stage(
    stage: str,
    work: Path,
    config: Path,
    ratio: float,
    limit: float,
) -> dict:
    """Runs a stage in a process of its own; returns what it says."""
    answer = work / f'{stage}.json'
    answer.unlink(missing_ok=True)
    process = multiprocessing.get_context('fork').Process(
        target=in_process,
        args=(stage, work, config, ratio, max(1, int(limit)), answer),
    )
    process.start()
    process.join()
    if answer.exists():
        return json.loads(answer.read_text())
    code = -(process.exitcode or 0)
    if code == signal.SIGXCPU:
        return dict(
            verdict=f'takes more than {limit:.0f} CPU seconds', seconds=limit
        )
    name = signal.Signals(code).name if code > 0 else process.exitcode
    return dict(verdict=f'the process ended with {name}', seconds=0.0)


def in_process(
    stage: str,
    work: Path,
    config: Path,
    ratio: float,
    limit: int,
    answer: Path,
) -> None:
    """What the process of a stage does."""
    import zoo_stages

    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    log = (work / f'{stage}.log').open('w')
    for stream in (sys.stdout, sys.stderr):  # what is written in C++ as well
        stream.flush()
        os.dup2(log.fileno(), stream.fileno())
    try:
        found = getattr(zoo_stages, stage)(work, config, ratio) or {}
        found['verdict'] = found.get('verdict', 'ok')
    except Exception as error:
        import traceback

        traceback.print_exc()
        text = ' '.join(str(error).split())[:300]
        found = dict(verdict=f'{type(error).__name__}: {text}')
    save_json(dict(found, seconds=round(time.process_time(), 1)), answer)


def plain(verdict: str, folder: Path) -> str:
    """Returns why a stage failed without paths of the machine."""
    return verdict.partition(', the current sys.path')[0].replace(
        f'{folder}/', ''
    )


if __name__ == '__main__':
    sys.exit(main())
