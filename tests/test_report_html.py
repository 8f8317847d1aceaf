"""The page about a run: what it says, and that it needs nothing else."""

import importlib.util
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_report import (
    HOSTILE,
    REPORT,
    Page,
    iteration,
    noise,
    write_log,
    write_run,
)

from mmprune.run.report_html import render, save_curves, write

ROOT = Path(__file__).resolve().parents[1]


# ---- the page


def test_a_whole_run_is_on_the_page(reported_run):
    page = Page(write(reported_run).read_text())
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
    assert sorted(reported_run.glob('.*')) == []


def test_nothing_is_fetched_and_nothing_runs(reported_run, tmp_path):
    shutil.copytree(reported_run, tmp_path / 'run')
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


# ---- curves and the command


def load_tool():
    spec = importlib.util.spec_from_file_location(
        'report_tool', ROOT / 'tools' / 'report.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_writes_the_page_and_the_curves(
    reported_run, tmp_path, capsys
):
    frame = noise(tmp_path / 'given.png', 30, 20)
    load_tool().main([str(reported_run), '--frames', str(frame)])
    path = Path(capsys.readouterr().out.strip())
    assert path == reported_run / 'report.html'
    assert 'Picture given.png' in [
        attrs['alt'] for attrs in Page(path.read_text()).all('img')
    ]
    curves = tmp_path / 'curves.png'
    load_tool().main([str(reported_run), '--curves', str(curves)])
    assert capsys.readouterr().out.strip() == str(curves)
    with Image.open(curves) as image:
        assert image.width > 1500
        assert len(image.convert('RGB').getcolors(10**6)) > 50


def test_curves_are_drawn_as_svg_too(reported_run, tmp_path):
    path = save_curves(reported_run, tmp_path / 'curves.svg')
    assert '<svg' in path.read_text()
    with pytest.raises(ValueError, match='written as .png, .svg, .pdf'):
        save_curves(reported_run, tmp_path / 'curves.jpg')
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
