"""A run as the page about it reads it, and a reader of the page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import tiny_project
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

HOSTILE = '<script>alert(1)</script>'
REPORT = dict(
    title='tiny: 50% of units removed',
    config='tiny.py',
    options=dict(sparsity=0.5, protect=[], device='cpu', pattern=None),
    versions=dict(mmprune='1', torch='2'),
    notes='One forward of one sample.',
    models=dict(
        dense=dict(params=4_000_000, macs=8e9, latency_ms=120.0),
        structured=dict(params=1_000_000, macs=2e9, latency_ms=60.0),
    ),
    kinds=[
        dict(granularity='channel', groups=1, dense_groups=1, units=8, kept=4)
    ],
    groups=[
        dict(
            group=name,
            granularity='channel',
            units=8,
            kept=kept,
            sparsity=1 - kept / 8,
            dense_because=because,
        )
        for name, kept, because in (
            ('net.0.conv', 4, ''),
            (f'net.1.{HOSTILE}', 8, 'frozen'),
        )
    ],
    uncovered=[
        dict(tensor='out.weight', params=10, dense_because='an output')
    ],
    modules=[
        dict(
            tensor='net.0.conv.weight',
            dense_shape=[8, 4],
            shape=[4, 4],
            sparsity=0.5,
        ),
        dict(
            tensor=f'net.1.{HOSTILE}.weight',
            dense_shape=[8, 8],
            shape=[8, 6],
            sparsity=0.25,
        ),
    ],
    metrics=dict(
        dense={'plan_L2_3s': 1.0, 'mAP': 0.5, 'mystery': 3.0},
        structured={'plan_L2_3s': 4.0, 'mAP': 0.1, 'mystery': 3.0},
        recovered={'plan_L2_3s': 0.9, 'mAP': 0.45, 'mystery': 4.0},
    ),
)


class Page(HTMLParser):
    """Tags, attributes and text of a page; it must be well nested."""

    VOID = {'meta', 'link', 'img', 'br', 'source', 'hr', 'input'}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return ' '.join(' '.join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def write_run(folder: Path, report: dict = REPORT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / 'report.json').write_text(json.dumps(report))
    return folder


def write_log(work_dir: Path, stamp: str, lines: list[dict]) -> None:
    data = work_dir / stamp / 'vis_data'
    data.mkdir(parents=True)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (data / f'{stamp}.json').write_text(text)
    (data / 'scalars.json').write_text(text)


def iteration(step: int, loss: float, epoch: int = 1, **more) -> dict:
    lr = 0.1 / step
    return dict(
        lr=lr, loss=loss, time=1.0, epoch=epoch, iter=step, step=step, **more
    )


def train(folder: Path) -> Path:
    """Writes a run with the log of a real Runner: 3 epochs of 2 iterations."""
    write_run(folder)
    text = tiny_project.CONFIG.replace('max_epochs=1', 'max_epochs=3')
    text += (
        'val_dataloader = test_dataloader\nval_cfg = dict()\n'
        "val_evaluator = test_evaluator\nexperiment_name = 'report_html'\n"
        f'work_dir = {str(folder / "fine_tuned")!r}\n'
    )
    path = tiny_project.write_config(folder, text)
    Runner.from_cfg(Config.fromfile(path)).train()
    return folder


def noise(path: Path, width: int, height: int, frames: int = 1) -> Path:
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for _ in range(frames)
    ]
    more = {}
    if frames > 1:
        more = dict(save_all=True, append_images=images[1:], duration=200)
    images[0].save(path, **more)
    return path
