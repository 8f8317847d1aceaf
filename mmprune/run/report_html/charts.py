"""Line charts as inline SVG, coloured by the page's style sheet."""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

MAX_POINTS = 300
MAX_LINES = 6
WIDTH, HEIGHT = 520, 290
# Left, right, top, bottom of the plot within the picture.
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 494, 12, 240
# A range of values wider than this is drawn on a logarithmic axis.
_LOG_RANGE = 50
# A line of few points shows them.
_DOTTED = 20
# Values that differ by less than this, relatively, are a constant.
_DUST = 1e-9


class Line(NamedTuple):
    """A named curve; both sequences have the same length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Axis(NamedTuple):
    """Maps values to pixels, and the values that are labelled."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the position in pixels."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(v) for v in (low, high, value))
        share = (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def thin(line: Line, limit: int = MAX_POINTS) -> Line:
    """Returns the line with at most ``limit`` points, means of neighbours.

    What is not finite is left out of a mean, and only a stretch without any
    finite value stays a gap.
    """
    count = len(line.x)
    if count <= limit:
        return line
    edges = [round(i * count / limit) for i in range(limit + 1)]
    spans = [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]
    x = [_mean(line.x[span]) for span in spans]
    return Line(line.name, x, [_mean(line.y[span]) for span in spans])


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, log: bool = False
) -> str:
    """Returns an ``<svg>`` of up to ``MAX_LINES`` lines with axes.

    Line ``i`` has the class ``s{i}``, which the style sheet colours. A value
    that is not finite leaves a gap. The legend is left to the page.

    Args:
        lines: Drawn in order; long ones are thinned.
        x_label: Below the axis.
        y_label: For those who hear the chart.
        log: Whether positive values of very different size go on a
            logarithmic axis.

    Raises:
        ValueError: If no line has a finite point, or there are too many.
    """
    if len(lines) > MAX_LINES:
        raise ValueError(
            f'a chart shows at most {MAX_LINES} lines, found {len(lines)}; '
            'draw several charts.'
        )
    reach = [x for line in lines for x, _ in _finite(line)]
    lines = [thin(line) for line in lines]
    points = [p for line in lines for p in _finite(line)]
    if not points:
        raise ValueError(
            f'none of the {len(lines)} lines has a finite point; leave the '
            'chart out.'
        )
    across = _across(reach)
    up = _upright([y for _, y in points], log)

    label = f'{y_label} over {x_label}: ' + ', '.join(n.name for n in lines)
    parts = _frame(label, x_label, across, up)
    for number, line in enumerate(lines):
        parts += _drawn(line, number, across, up, len(lines) < MAX_LINES)
    return ''.join([*parts, '</svg>'])


def _frame(label: str, x_label: str, across: Axis, up: Axis) -> list[str]:
    return [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">',
        *_grid(across, up),
        f'<text class="label" x="{(_LEFT + _RIGHT) / 2:g}" y="282" '
        f'text-anchor="middle">{escape(x_label)}</text>',
    ]


def _drawn(
    line: Line, number: int, across: Axis, up: Axis, dotted: bool
) -> list[str]:
    path = _path(line, across, up)
    parts = [f'<path class="line s{number}" d="{path}"/>']
    if dotted and len(line.x) <= _DOTTED:
        dots = ''.join(
            f'M{across(x):.1f} {up(y):.1f}h0' for x, y in _finite(line)
        )
        parts.append(f'<path class="dots s{number}" d="{dots}"/>')
    return parts


def number(value: float) -> str:
    """Returns a number in few characters: ``0.00025``, ``1.2e-7``, ``12k``."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and 1e4 <= abs(value) < 1e9:
        for size, letter in ((1e6, 'M'), (1e3, 'k')):
            if abs(value) >= size:
                return f'{value / size:.4g}{letter}'
    return re.sub(r'e([+-])0*(\d)', _short_exponent, f'{value:.4g}')


def _short_exponent(match: re.Match) -> str:
    sign, digit = match.groups()
    return f'e{sign.replace("+", "")}{digit}'


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _finite(line: Line) -> list[tuple[float, float]]:
    pairs = zip(line.x, line.y, strict=True)
    return [p for p in pairs if all(math.isfinite(value) for value in p)]


def _across(values: list[float]) -> Axis:
    """From the first value, or 0 if that is near, to the last."""
    low, high = _widened(values)
    if 0 < low < 0.1 * high:
        low = 0.0
    count = 5
    if all(value == int(value) for value in values):
        # No half iterations or epochs.
        count = min(count, max(1, int(high - low)))
    ticks = [v for v in _ticks(low, high, count) if low <= v <= high]
    return Axis(low, high, _LEFT, _RIGHT, ticks)


def _upright(values: list[float], log: bool) -> Axis:
    """From round number to round number."""
    low, high = min(values), max(values)
    if log and low > 0 and high / low > _LOG_RANGE:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        step = math.ceil((last - first) / 5)
        ticks = [10.0**e for e in range(first, last + 1, step)]
        return Axis(10.0**first, 10.0**last, _BOTTOM, _TOP, ticks, True)
    ticks = _ticks(*_widened(values), 4)
    return Axis(ticks[0], ticks[-1], _BOTTOM, _TOP, ticks)


def _widened(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > _DUST * max(abs(low), abs(high)):
        return low, high
    margin = (abs(low) or 1) / 2
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers around the range, without the dust of additions."""
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f'{i * step:.12g}') for i in range(first, last + 1)]


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(step))
    return next(f * size for f in (1, 2, 5, 10) if f * size >= step * 0.999)


def _grid(across: Axis, up: Axis) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up(tick)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">'
            f'{number(tick)}</text>'
        )
    for tick in across.ticks:
        x = across(tick)
        parts.append(
            f'<path class="axis" d="M{x:.1f} {_BOTTOM}v5"/>'
            f'<text x="{x:.1f}" y="{_BOTTOM + 21}" text-anchor="middle">'
            f'{number(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
    return parts


def _path(line: Line, across: Axis, up: Axis) -> str:
    """Path data; a point alone becomes a dot, drawn by its round cap."""
    commands, open_stretch = [], False
    for x, y in zip(line.x, line.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            open_stretch = False
            continue
        letter = 'L' if open_stretch else 'M'
        dot = '' if open_stretch else 'h0'
        commands.append(f'{letter}{across(x):.1f} {up(y):.1f}{dot}')
        open_stretch = True
    return ''.join(commands)
