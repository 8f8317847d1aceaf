"""What tiles, tables and the tree of modules say about a run."""

import math

import pytest
from tiny_report import HOSTILE, REPORT, Page, write_run
from torch import nn

from mmprune.removed import tensor_rows
from mmprune.run.report_html import render
from mmprune.run.report_html.module_tree import cut_tree
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
        tensors=tensor_rows(dense, model, []),
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
