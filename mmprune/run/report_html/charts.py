"""Line charts as inline SVG, coloured by the page's style sheet."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader

MAX_POINTS = 300
MAX_LINES = 6
WIDTH, HEIGHT = 520, 290
# Left, right, top, bottom of the plot within the picture.
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 494, 12, 240
# A range of values wider than this is drawn on a logarithmic axis.
_LOG_RANGE = 50
# A line of few points shows them.
_DOTTED = 20
TEMPLATES = Environment(
    loader=PackageLoader(__package__, '.'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
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
    dotted = len(lines) < MAX_LINES
    return TEMPLATES.get_template('chart.svg.j2').render(
        label=label,
        x_label=x_label,
        width=WIDTH,
        height=HEIGHT,
        across=across,
        up=up,
        number=number,
        lines=[_paths(line, across, up, dotted) for line in lines],
    )


def number(value: float) -> str:
    """Returns a number in few characters: ``0.00025``, ``1.2e-7``, ``12k``."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and 1e4 <= abs(value) < 1e9:
        size, letter = (1e6, 'M') if abs(value) >= 1e6 else (1e3, 'k')
        return f'{value / size:.4g}{letter}'
    return re.sub(r'e\+?(-?)0*', r'e\1', f'{value:.4g}')


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
    step = (high - low) / count
    size = 10.0 ** math.floor(math.log10(step))
    step = next(f * size for f in (1, 2, 5, 10) if f * size >= step * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f'{i * step:.12g}') for i in range(first, last + 1)]


def _paths(line: Line, across: Axis, up: Axis, dotted: bool) -> tuple:
    """Path data of a line, where a point alone becomes a dot, drawn by its
    round cap, and of the dots of a short one."""
    commands, dots, letter = [], [], 'M'
    for x, y in zip(line.x, line.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            letter = 'M'
            continue
        place = f'{across(x):.1f} {up(y):.1f}'
        dots.append(f'M{place}h0')
        commands.append(dots[-1] if letter == 'M' else f'L{place}')
        letter = 'L'
    short = dotted and len(line.x) <= _DOTTED
    return ''.join(commands), ''.join(dots) if short else ''
