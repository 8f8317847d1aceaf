"""Charts of the page: where lines lie, and how short numbers are."""

import math
import re

import numpy as np
import pytest

from mmprune.run.report_html.charts import Line, line_chart, number, thin


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
