"""The main job on an embedded default: draw a keyframe, prune VAD-Tiny, test
and draw the result. Prints the commands that it runs; run by `make demo`.

There are no trained weights in the project, so the model is a seeded,
untrained one: sizes, speed and exactness are real, detections are not.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402

from mmprune.models import build_model  # noqa: E402

CONFIG = 'projects/configs/VAD/VAD_tiny_stage_2.py'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output-dir', default='demo_out')
    parser.add_argument('--pruning-ratio', type=float, default=0.3)
    return parser.parse_args(argv)


def write_untrained(path: Path) -> None:
    """Writes a checkpoint of VAD-Tiny with seeded start weights."""
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / CONFIG)
    # The start weights of the backbone would be downloaded.
    cfg.model.img_backbone.pop('init_cfg', None)
    model = build_model(cfg)
    # It would log every tensor.
    MMLogger.get_current_instance().setLevel('ERROR')
    model.init_weights()
    torch.save({'meta': {'epoch': 0}, 'state_dict': model.state_dict()}, path)


def run(*words: object) -> None:
    """Runs one of the project's commands and shows it."""
    words = [str(w) for w in words]
    print(f'\n$ python {shlex.join(words)}', flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def main(argv: list[str] | None = None) -> None:
    """Runs the demo."""
    args = parse_args(argv)
    start = time.time()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    dense = folder / 'vad_tiny_untrained.pth'
    run('tools/make_keyframe.py', folder / 'keyframe')
    (infos,) = (folder / 'keyframe').glob('*.pkl')
    print(f'\nwriting {dense} (VAD-Tiny, untrained, seed 0)', flush=True)
    write_untrained(ROOT / dense)
    run(
        'tools/prune_and_retrain.py',
        *(CONFIG, dense, '--pruning-ratio', args.pruning_ratio),
        *('--output-dir', folder / 'pruned', '--ann-file', infos, '--force'),
    )
    pruned = folder / 'pruned' / 'vad_structured_pruned.pth'
    run(
        *('tools/test.py', CONFIG, pruned, '--ann-file', infos),
        *('--work-dir', folder / 'test'),
    )
    picture = folder / 'keyframe.png'
    run(
        *('tools/visualize.py', CONFIG, pruned, '--dense', dense),
        *('--ann-file', infos, '--out', picture),
    )
    print(
        f'\nDone in {time.time() - start:.0f} s. Look at:\n'
        f'  {picture}  (green: ground truth)\n'
        f'  {folder}/pruned/report.md\n'
        'Next, with your own weights:\n'
        f'  python tools/prune_and_retrain.py {CONFIG} ckpts/VAD_tiny.pth '
        '--pruning-ratio 0.3 --output-dir ckpts/pruned'
    )


if __name__ == '__main__':
    main()
