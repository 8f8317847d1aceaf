"""The page about a run: what it says, and that it needs nothing else."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image, PngImagePlugin
from torch import nn

from mmprune.removed import tensor_rows
from mmprune.run.report_html import render, save_curves, write
from mmprune.run.report_html.charts import Line, line_chart, number, thin
from mmprune.run.report_html.module_tree import cut_tree
from mmprune.run.report_html.pictures import MAX_WIDTH, embed, embed_all
from mmprune.run.report_html.tables import (
    better,
    change,
    cost_rows,
    metric_rows,
    metric_tile,
    percent,
    quantity,
    tiles,
)
from mmprune.run.report_html.training_log import read_runs

sys.path.insert(0, str(Path(__file__).parent))

import tiny_project  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A run whose log a real Runner wrote: 3 epochs of 2 iterations."""
    folder = write_run(tmp_path_factory.mktemp('run'))
    text = tiny_project.CONFIG.replace('max_epochs=1', 'max_epochs=3')
    text += (
        'val_dataloader = test_dataloader\nval_cfg = dict()\n'
        "val_evaluator = test_evaluator\nexperiment_name = 'report_html'\n"
        f'work_dir = {str(folder / "fine_tuned")!r}\n'
    )
    path = tiny_project.write_config(folder, text)
    Runner.from_cfg(Config.fromfile(path)).train()
    return folder


# ---- logs


def test_the_log_of_a_runner_is_read(trained):
    (run,) = read_runs(trained)
    assert run.name == 'fine_tuned'
    assert run.train['loss'].steps == [1, 2, 3, 4, 5, 6]
    assert run.train['lr'].values == [0.1] * 6
    assert run.val['mean'].steps == [1, 2, 3]
    assert run.val_by_epoch
    assert not {'time', 'data_time', 'epoch', 'iter'} & set(run.train)


def test_resumed_runs_are_joined_and_the_later_one_holds(tmp_path):
    older = [iteration(s, 10.0 + s) for s in (1, 2, 3, 4)]
    newer = [iteration(s, 20.0 + s) for s in (3, 4, 5)]
    write_log(tmp_path, '20260101_000000', older)
    write_log(tmp_path, '20260102_000000', newer)
    (run,) = read_runs(tmp_path)
    assert run.name == '.'
    assert run.train['loss'].steps == [1, 2, 3, 4, 5]
    assert run.train['loss'].values == [11, 12, 23, 24, 25]


def test_a_training_begun_anew_does_not_show_the_older_metrics(tmp_path):
    older = [iteration(1, 2.0), iteration(2, 1.0), dict(mAP=0.3, step=2)]
    write_log(tmp_path, '20260101_000000', older)
    write_log(tmp_path, '20260102_000000', [iteration(3, 1.0)])
    assert read_runs(tmp_path)[0].val['mAP'].values == [0.3]
    write_log(tmp_path, '20260103_000000', [iteration(1, 9.0)])
    (run,) = read_runs(tmp_path)
    assert run.train['loss'].values == [9.0] and not run.val


def test_a_line_that_is_cut_off_is_left_out(tmp_path):
    write_log(tmp_path, '20260101_000000', [iteration(1, 2.0)])
    log = tmp_path / '20260101_000000/vis_data/20260101_000000.json'
    log.write_text(log.read_text() + '{"loss": 1.5, "it')
    (run,) = read_runs(tmp_path)
    assert run.train['loss'].values == [2.0]


def test_an_evaluation_by_iteration_is_not_taken_for_epochs(tmp_path):
    lines = [iteration(s, 1.0) for s in (50, 100)]
    write_log(tmp_path, '20260101_000000', [*lines, dict(acc=0.5, step=100)])
    (run,) = read_runs(tmp_path)
    assert not run.val_by_epoch
    assert run.val['acc'].steps == [100]


# ---- charts


def paths(svg: str, kind: str) -> list[str]:
    return re.findall(rf'<path class="{kind} s\d" d="([^"]*)"', svg)


def test_a_line_begins_and_ends_at_the_axes():
    svg = line_chart([Line('a', [0, 10], [0.0, 4.0])], 'step', 'loss')
    # The plot lies between 66 and 494, and 12 (high) and 240 (low).
    assert paths(svg, 'line') == ['M66.0 240.0h0L494.0 12.0']
    labels = re.findall(r'>([\d.]+)</text>', svg)
    assert labels == ['0', '1', '2', '3', '4', '0', '2', '4', '6', '8', '10']


def test_a_value_that_is_not_finite_is_a_gap():
    line = Line('a', [0, 1, 2, 3], [1.0, math.nan, 1.5, 2.0])
    (path,) = paths(line_chart([line], 'step', 'y'), 'line')
    assert path.count('M') == 2 and path.count('L') == 1
    with pytest.raises(ValueError, match='none of the 1 lines has a finite'):
        line_chart([Line('a', [1], [math.inf])], 'step', 'y')


def test_values_of_very_different_size_go_on_a_logarithmic_axis():
    line = Line('a', [0, 1], [0.001, 1000.0])
    assert '>0.001</text>' in line_chart([line], 'x', 'y', log=True)
    middle = Line('a', [0, 1, 2], [0.001, 1.0, 1000.0])
    (path,) = paths(line_chart([middle], 'x', 'y', log=True), 'line')
    assert 'L280.0 126.0' in path
    plain = line_chart([line], 'x', 'y')
    assert '>0.001</text>' not in plain


def test_a_constant_and_a_point_alone_can_be_drawn():
    assert paths(line_chart([Line('a', [3], [0.0])], 'x', 'y'), 'dots')
    assert 'nan' not in line_chart([Line('a', [1, 2], [5, 5])], 'x', 'y')


@pytest.mark.parametrize(
    'values', [(0.3, 0.1 + 0.2), (1.0000001, 1.0000002), (1e9, 1e9 + 3)]
)
def test_values_that_hardly_differ_can_be_drawn(values):
    svg = line_chart([Line('a', [1, 2], values)], 'x', 'y')
    heights = [float(y) for y in re.findall(r' ([\d.]+)', *paths(svg, 'line'))]
    assert len(heights) == 2 and all(12 <= y <= 240 for y in heights)


def test_a_long_line_is_thinned_to_means():
    line = thin(Line('a', range(1000), [float(i % 2) for i in range(1000)]))
    assert len(line.x) == 300
    assert np.mean(line.y) == pytest.approx(0.5, abs=0.01)
    assert line.x[0] < 3 and line.x[-1] > 996


def test_too_many_lines_are_refused():
    with pytest.raises(ValueError, match='at most 6 lines, found 7'):
        line_chart([Line('a', [1], [1])] * 7, 'x', 'y')


@pytest.mark.parametrize(
    ('value', 'text'),
    [(0.00025, '0.00025'), (1.2e-7, '1.2e-7'), (12000, '12k')]
    + [(1.5e6, '1.5M'), (math.nan, 'nan'), (0.30000000000000004, '0.3')],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


# ---- what the page says


@pytest.mark.parametrize(
    ('name', 'direction'),
    [
        ('VAD/plan_L2_3s', 'lower'),
        ('plan_obj_box_col_1s', 'lower'),
        ('VAD/minADE_car', 'lower'),
        ('map_mAP', 'higher'),
        ('accuracy/top1', 'higher'),
        ('NDS', 'higher'),
        ('EPA_pedestrian', 'higher'),
        ('perplexity', 'lower'),
        ('wikitext_loss', 'lower'),
        ('mystery', ''),
    ],
)
def test_it_is_known_which_direction_is_better(name, direction):
    assert better(name, {}) == direction
    assert better(name, {name: 'higher'}) == 'higher'


def test_changes_name_their_direction():
    assert change(0.9, 1.0, 'lower') == dict(
        text='\N{MINUS SIGN}10 %', kind='better'
    )
    assert change(0.9, 1.0, 'higher')['kind'] == 'worse'
    assert change(1.1, 1.0) == dict(text='+10 %', kind='')
    assert change(1.0, 1.0, 'lower')['text'] == 'no change'
    assert change(0.02, 0.0, 'lower') == dict(text='+0.02', kind='worse')
    assert change(math.nan, 1.0)['text'] == ''
    assert percent(0.031) == '3.1 %'


def test_costs_have_units():
    assert quantity('params', 39_865_999) == '39.9 M'
    assert quantity('macs', 1.6e11) == '160 G'
    assert quantity('latency_ms', 1672.1) == '1.67 s'
    assert quantity('latency_ms', 60) == '60 ms'
    assert quantity('checkpoint_mb', 99.37) == '99.4 MB'


def test_the_head_has_the_numbers_that_matter():
    shown = {t['label']: (t['value'], t['note']) for t in tiles(REPORT)}
    assert shown == {
        'Parameters': ('\N{MINUS SIGN}75 %', '4 M → 1 M'),
        'MACs': ('\N{MINUS SIGN}75 %', '8 G → 2 G'),
        'Latency': ('2.00× faster', '120 ms → 60 ms'),
    }


def row(params: float, nonzero: float, mb: float, ms: float) -> dict:
    return dict(
        params=params, nonzero=nonzero, checkpoint_mb=mb, latency_ms=ms
    )


@pytest.mark.parametrize(
    ('variants', 'shown'),
    [
        # Zeros save neither bytes nor time.
        (dict(wanda=row(8, 4, 32, 9)), {'Non-zero': '8 → 4'}),
        (
            dict(ptq4=row(8, 8, 4, 5)),
            {'Checkpoint': '32.0 MB → 4.0 MB', 'Latency': '10 ms → 5 ms'},
        ),
        (
            dict(wanda=row(8, 4, 32, 9), kgsp=row(6, 6, 24, 5)),
            {'Parameters': 'kgsp: 8 → 6', 'Latency': 'kgsp: 10 ms → 5 ms'},
        ),
        (dict(lora=row(9, 9, 36, 11)), {}),
        ({}, {}),
    ],
)
def test_the_head_is_of_the_variant_that_saves_something(variants, shown):
    models = dict(dense=row(8, 8, 32, 10), **variants)
    found = tiles(dict(models=models))
    assert {tile['label']: tile['note'] for tile in found} == shown


def test_a_variant_of_any_name_is_shown_everywhere(tmp_path):
    names = ['ptq4', 'dense', 'qkd4']
    models = {name: row(8, 8, 4 + len(name), 5) for name in names}
    metrics = {name: {'mAP': 0.5} for name in names}
    report = dict(models=models, metrics=metrics)
    in_order = ['dense', 'ptq4', 'qkd4']
    assert [r['name'] for r in cost_rows(models)['rows']] == in_order
    assert metric_rows(report)['columns'] == in_order
    assert [s['model'] for s in metric_tile(report)['steps']] == in_order
    page = Page(render(write_run(tmp_path / 'run', report)))
    assert page.text.count('qkd4') == 3
    assert page.text.count('ptq4') == 3 + 2  # and in the tiles, as the first


def test_metrics_are_in_the_order_of_the_report_and_beside_the_dense_ones():
    metrics = {**REPORT['metrics'], 'constant_velocity': {'plan_L2_3s': 2.0}}
    table = metric_rows(dict(metrics=metrics))
    assert table['columns'] == [
        *('dense', 'structured', 'recovered', 'constant_velocity')
    ]
    first = table['rows'][0]
    assert [c['text'] for c in first['cells']] == ['1', '4', '0.9', '2']
    assert first['cells'][2]['change']['kind'] == 'better'
    assert table['rows'][1]['cells'][3]['text'] == '–'


def test_the_tree_adds_up_and_puts_the_biggest_loss_first():
    root = cut_tree(REPORT)
    assert [node.name for node in root.children] == ['net', 'out']
    net = root.children[0]
    # 32 and 64 weights, of which 16 and 48 are left.
    assert (net.before, net.after) == (96, 64)
    assert [child.name for child in net.children] == [
        '0.conv',
        f'1.{HOSTILE}',
    ]
    assert net.children[0].notes == ['4 of 8 channels']
    assert net.children[1].notes == ['dense: frozen']
    assert root.children[1].whole and not net.whole


def test_all_tensors_make_the_tree_complete():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    dense = {n: tuple(p.shape) for n, p in model.named_parameters()}
    dense |= {'0.weight': (4, 4), '0.bias': (4,), '1.weight': (3, 4)}
    report = dict(
        tensors=tensor_rows(dense, model),
        modules=[dict(tensor='0.weight', dense_shape=[4, 4], sparsity=0.5)],
    )
    root = cut_tree(report)
    assert [(n.name, n.before, n.after) for n in root.children] == [
        ('0', 20, 10),
        ('1', 15, 9),
    ]


def test_a_report_without_modules_has_no_tree():
    assert cut_tree({}) is None
    weights = [dict(tensor='a.weight', dense_shape=[4, 4], sparsity=0.25)]
    assert cut_tree(dict(weights=weights), 'weights').kept == 0.75


def test_each_variant_shows_what_it_lost(tmp_path):
    zeros = [dict(tensor='a.weight', dense_shape=[4, 4], sparsity=0.25)]
    units = {k: REPORT[k] for k in ('groups', 'kinds', 'modules')}
    variants = dict(
        wanda=dict(removes='weights', weights=zeros),
        kgsp=dict(removes='units', **units),
        ptq4=dict(removes='bits'),
        sparsegpt=dict(removes='weights', weights=zeros),
    )
    report = dict(models=REPORT['models'], variants=variants)
    text = Page(render(write_run(tmp_path / 'run', report))).text
    places = [
        text.index(part)
        for part in (
            'Units removed: kgsp',
            '4 of 8 channels',
            'Weights set to zero: wanda',
            'Weights set to zero: sparsegpt',
        )
    ]
    assert places == sorted(places)
    assert 'ptq4' not in text


@pytest.mark.parametrize(
    ('lost', 'text'),
    [
        (['modules', 'groups'], '4 of 8 channels'),
        (['weights'], 'Weights of the unstructured model set to zero'),
        (['modules', 'weights'], 'Weights set to zero: unstructured'),
    ],
)
def test_a_report_without_variants_has_one_of_each_kind(tmp_path, lost, text):
    zeros = [dict(tensor='a.weight', dense_shape=[4, 4], sparsity=0.25)]
    whole = dict(REPORT, weights=zeros)
    report = {key: whole[key] for key in ('models', *lost)}
    assert text in Page(render(write_run(tmp_path / 'run', report))).text


# ---- the page


def test_a_whole_run_is_on_the_page(trained):
    page = Page(write(trained).read_text())
    text = page.text
    for expected in (
        REPORT['title'],
        '2.00× faster',
        'lower is better',
        '+300 % worse',
        '−10 % better',
        '4 of 8 channels',
        'Learning rate',
        'One forward of one sample.',
    ):
        assert expected in text, expected
    labels = [attrs['aria-label'] for attrs in page.all('svg')]
    assert any(label.startswith('loss over iteration') for label in labels)
    assert len(page.all('details')) > 3
    assert sorted(trained.glob('.*')) == []


def test_nothing_is_fetched_and_nothing_runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'run')
    Image.new('RGB', (40, 20)).save(tmp_path / 'run' / 'frame.png')
    text = write(tmp_path / 'run').read_text()
    page = Page(text)
    assert page.all('script') == []
    assert not re.search(r'https?:|url\(|@import', text)
    for _, attrs in page.tags:
        assert not any(name.startswith('on') for name in attrs)
        for name in ('src', 'href', 'srcset'):
            assert attrs.get(name, '#').startswith(('#', 'data:'))
    policy = page.all('meta')[2]['content']
    assert policy.startswith("default-src 'none'")


def test_a_hostile_name_is_shown_as_text(tmp_path):
    report = dict(
        REPORT,
        title=HOSTILE,
        notes=HOSTILE,
        metrics={'dense': {HOSTILE: 1.0}},
        options={HOSTILE: HOSTILE},
        sections=[
            dict(
                title=HOSTILE,
                text=HOSTILE,
                table=dict(columns=[HOSTILE], rows=[[HOSTILE]]),
                series=[dict(name='"><script>', x=[1, 2], y=[1, 2])],
                y_label=HOSTILE,
            )
        ],
    )
    log = [iteration(1, 2.0, **{f'loss_{HOSTILE}': 1.0})]
    write_log(write_run(tmp_path / 'run', report) / 'a', 'x', log)
    text = write(tmp_path / 'run').read_text()
    page = Page(text)
    assert page.all('script') == []
    assert '<script' not in text
    assert page.text.count(HOSTILE) > 8


def test_what_is_missing_is_named_with_what_adds_it(tmp_path):
    bare = {k: v for k, v in REPORT.items() if k != 'metrics'}
    text = Page(render(write_run(tmp_path / 'run', bare))).text
    assert 'No model has been evaluated yet' in text
    assert '--fine-tune or --retrain' in text
    assert 'tools/report.py --frames' in text


def test_a_training_alone_has_a_page(tmp_path):
    write_log(tmp_path / 'vit', '20260101_000000', [iteration(1, 2.0)])
    page = Page(write(tmp_path / 'vit').read_text())
    assert 'Size and speed' not in page.text
    assert len(page.all('svg')) == 2
    assert 'vit' in page.text


def test_sections_of_any_kind_are_shown(tmp_path):
    section = dict(
        title='Accuracy per round',
        text='Three rounds.',
        table=dict(columns=['round', 'accuracy'], rows=[[1, 0.9], [2, 0.8]]),
        series=[dict(name='accuracy', x=[1, 2], y=[0.9, 0.8])],
        x_label='round',
        y_label='accuracy',
        image='heads.png',
    )
    folder = write_run(tmp_path / 'run', dict(REPORT, sections=[section]))
    Image.new('RGB', (30, 30)).save(folder / 'heads.png')
    page = Page(write(folder).read_text())
    assert 'Accuracy per round' in page.text and 'Three rounds.' in page.text
    labels = [attrs.get('aria-label') for attrs in page.all('svg')]
    assert 'accuracy over round: accuracy' in labels
    # Once, in its section.
    assert len(page.all('img')) == 1


def test_a_broken_value_is_a_gap_with_a_note(tmp_path):
    log = [iteration(1, 2.0), iteration(2, math.nan), iteration(3, 1.0)]
    write_log(tmp_path, '20260101_000000', log)
    assert '1 of 3 values are not finite' in Page(render(tmp_path)).text


def test_a_metric_is_drawn_beside_the_dense_model(tmp_path):
    log = [iteration(1, 2.0), dict(mAP=0.3, step=1), dict(mAP=0.4, step=2)]
    folder = write_run(tmp_path / 'run')
    write_log(folder / 'fine_tuned', '20260101_000000', log)
    text = Page(render(folder)).text
    assert 'mAP, evaluated' in text and 'dense model' in text
    assert 'iteration mAP dense model 1 0.3 0.5 2 0.4 0.5' in text


def test_a_single_evaluation_is_listed_once(tmp_path):
    metrics = dict(dense=dict(mAP=0.5))
    folder = write_run(tmp_path / 'run', dict(REPORT, metrics=metrics))
    log = [iteration(1, 2.0), dict(mAP=0.3, step=1)]
    write_log(folder / 'fine_tuned', '20260101_000000', log)
    text = Page(render(folder)).text
    assert 'mAP dense model 1 0.3 0.5' in text
    assert text.count('1 0.3 0.5') == 1


@pytest.mark.parametrize(
    ('metrics', 'drawn'),
    [
        (dict(dense=dict(mAP=0.5), recovered=dict(mAP=0.3)), False),
        (dict(dense=dict(mAP=0.5), qkd4=dict(mAP=0.3)), False),
        (dict(dense=dict(mAP=0.5), qkd4=dict(mAP=0.4)), True),
        (dict(dense=dict(mAP=0.3), qkd4=dict(mAP=0.4)), True),
    ],
)
def test_a_single_evaluation_is_not_drawn_beside_its_row(
    tmp_path, metrics, drawn
):
    folder = write_run(tmp_path / 'run', dict(REPORT, metrics=metrics))
    log = [iteration(1, 2.0), dict(mAP=0.3, step=1)]
    write_log(folder / 'fine_tuned', '20260101_000000', log)
    assert ('mAP, evaluated' in Page(render(folder)).text) is drawn


def test_of_many_losses_the_largest_are_drawn(tmp_path):
    parts = {f'loss_{i}': float(i) for i in range(9)}
    write_log(tmp_path, '20260101_000000', [iteration(1, 36.0, **parts)])
    text = Page(render(tmp_path)).text
    assert 'the 6 largest of 9' in text
    assert 'loss_8' in text and 'loss_2' not in text


def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch):
    folder = write_run(tmp_path / 'run')
    (folder / 'report.html').write_text('old')

    def full(*args):
        raise OSError('no space left on the disk')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='no space left'):
        write(folder)
    assert (folder / 'report.html').read_text() == 'old'
    assert sorted(p.name for p in folder.iterdir()) == [
        'report.html',
        'report.json',
    ]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'holds neither report.json nor a log'),
        ('{"title": "cut o', 'report.json cannot be read as JSON'),
        ('[1]', 'must hold an object, found list'),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / 'report.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        write(tmp_path)


# ---- pictures


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


def test_a_picture_is_scaled_down_and_described(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text('Description', 'dense above  pruned')
    image = Image.new('RGBA', (4000, 1000), (0, 0, 0, 0))
    image.save(tmp_path / 'a_frame.png', pnginfo=info)
    picture, size = embed(tmp_path / 'a_frame.png', 10**6)
    assert (picture.width, picture.height) == (MAX_WIDTH, MAX_WIDTH // 4)
    assert picture.alt == 'dense above pruned'
    assert picture.title == 'a frame'
    assert picture.src.startswith('data:image/jpeg;base64,')
    assert size < 50_000 and picture.still is None


def test_an_animation_is_made_to_fit_and_has_a_still(tmp_path):
    path = noise(tmp_path / 'a.gif', 900, 300, frames=4)
    whole, size = embed(path, 10**7)
    assert size > 500_000 and whole.width == 900
    small, size = embed(path, 300_000)
    assert small.width < 900
    assert len(small.src) < 4 / 3 * 300_000 + 100
    assert small.still.startswith('data:image/jpeg')


def test_pictures_beyond_the_budget_are_named(tmp_path):
    paths = [noise(tmp_path / f'{i}.png', 300, 300) for i in range(3)]
    (tmp_path / 'broken.png').write_text('none')
    found = dict(embed_all([tmp_path / 'broken.png', *paths], 150_000))
    kinds = [isinstance(picture, str) for picture in found.values()]
    assert kinds == [True, False, False, True]
    assert 'broken.png is left out' in found[tmp_path / 'broken.png']
    assert 'too big' in found[paths[2]]


def test_the_page_stays_below_ten_megabytes(tmp_path):
    folder = write_run(tmp_path / 'run')
    for i in range(5):
        noise(folder / f'{i}.png', 1800, 1200)
    text = write(folder).read_text()
    assert len(text) < 10_000_000
    assert 'is left out: the page would be too big' in text


# ---- curves and the command


def load_tool():
    spec = importlib.util.spec_from_file_location(
        'report_tool', ROOT / 'tools' / 'report.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_writes_the_page_and_the_curves(trained, tmp_path, capsys):
    frame = noise(tmp_path / 'given.png', 30, 20)
    load_tool().main([str(trained), '--frames', str(frame)])
    path = Path(capsys.readouterr().out.strip())
    assert path == trained / 'report.html'
    assert 'Picture given.png' in [
        attrs['alt'] for attrs in Page(path.read_text()).all('img')
    ]
    curves = tmp_path / 'curves.png'
    load_tool().main([str(trained), '--curves', str(curves)])
    assert capsys.readouterr().out.strip() == str(curves)
    with Image.open(curves) as image:
        assert image.width > 1500
        assert len(image.convert('RGB').getcolors(10**6)) > 50


def test_curves_are_drawn_as_svg_too(trained, tmp_path):
    path = save_curves(trained, tmp_path / 'curves.svg')
    assert '<svg' in path.read_text()
    with pytest.raises(ValueError, match='written as .png, .svg, .pdf'):
        save_curves(trained, tmp_path / 'curves.jpg')
    with pytest.raises(ValueError, match='holds no log of a training'):
        save_curves(tmp_path, tmp_path / 'none.png')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['no_such_folder'], 'no_such_folder is no folder'),
        (['.', '--frames', 'no.png'], 'no.png does not exist'),
        (['.', '--curves', 'no/such/a.png'], 'cannot be written'),
        (['.'], 'holds neither report.json nor a log'),
    ],
)
def test_the_command_refuses_in_one_sentence(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        load_tool().main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- in a browser


@pytest.fixture(scope='module')
def chromium() -> str:
    names = ('chromium', 'chromium-browser', 'google-chrome')
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f'none of {", ".join(names)} is installed')
    return found


def browse(chromium: str, page: Path, folder: Path, width: int) -> dict:
    """Opens a page; returns its DOM, its console and its requests."""
    net_log = folder / 'net.json'
    done = start(
        chromium,
        page,
        folder,
        '--enable-logging=stderr',
        f'--log-net-log={net_log}',
        f'--window-size={width},900',
    )
    events = json.loads(net_log.read_text())['events']
    # The browser's own errands (updates) have no page as their origin.
    requests = {
        params['url']
        for params in (event.get('params', {}) for event in events)
        if params.get('initiator', 'not an origin') != 'not an origin'
        and not params.get('url', '').startswith(('file:', 'data:'))
    }
    lines = [x for x in done.stderr.splitlines() if 'CONSOLE' in x]
    return dict(dom=done.stdout, console=lines, requests=requests)


def start(
    chromium: str, page: Path, folder: Path, *flags: str
) -> subprocess.CompletedProcess:
    always = ('headless', 'no-sandbox', 'disable-gpu', 'no-first-run')
    quiet = ('background-networking', 'component-update', 'sync', 'quic')
    return subprocess.run(
        [
            chromium,
            *(f'--{flag}' for flag in always),
            *(f'--disable-{flag}' for flag in quiet),
            '--host-resolver-rules=MAP * ~NOTFOUND',
            f'--user-data-dir={folder / "profile"}',
            '--dump-dom',
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


# Reports its own width and errors, as a page of ours never would.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><iframe id="f" src="{src}"
style="width:{width}px;height:800px;border:0"></iframe><p id="out"></p>
<script>
const frame = document.getElementById('f');
frame.addEventListener('load', () => {{
  const root = frame.contentDocument.documentElement;
  document.getElementById('out').textContent =
    'scroll ' + root.scrollWidth + ' client ' + root.clientWidth;
}});
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize('width', [1440, 390])
def test_a_browser_opens_it_without_errors_or_requests(
    chromium, trained, tmp_path, width
):
    shutil.copytree(trained, tmp_path / 'run')
    noise(tmp_path / 'run' / 'drive.gif', 900, 300, frames=3)
    page = write(tmp_path / 'run')
    found = browse(chromium, page, tmp_path, width)
    assert REPORT['title'] in found['dom']
    assert found['console'] == []
    assert found['requests'] == set()


@pytest.mark.browser
def test_the_check_would_see_an_error_and_a_request(chromium, tmp_path):
    page = tmp_path / 'bad.html'
    page.write_text(
        '<img src="http://127.0.0.1:9/x.png"><script>missing()</script>'
    )
    found = browse(chromium, page, tmp_path, 800)
    assert any('missing is not defined' in x for x in found['console'])
    assert 'http://127.0.0.1:9/x.png' in found['requests']


@pytest.mark.browser
@pytest.mark.parametrize('width', [1440, 768, 390, 320])
def test_no_page_scrolls_sideways(chromium, trained, tmp_path, width):
    shutil.copytree(trained, tmp_path / 'run')
    noise(tmp_path / 'run' / 'wide.png', 2400, 300)
    page = write(tmp_path / 'run')
    probe = tmp_path / 'probe.html'
    probe.write_text(PROBE.format(src=page.as_uri(), width=width))
    done = start(
        chromium,
        probe,
        tmp_path,
        '--allow-file-access-from-files',
        '--virtual-time-budget=2000',
    )
    scroll, client = map(
        int, re.search(r'scroll (\d+) client (\d+)', done.stdout).groups()
    )
    assert client <= width
    assert scroll <= client
