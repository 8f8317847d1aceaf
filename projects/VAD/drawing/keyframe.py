"""Draws a keyframe: six cameras and the bird's-eye view, in one PNG."""

import io
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle

from mmprune.atomic_file import write_whole
from projects.VAD.data.keyframe_dataset import CAMERAS, MAP_CLASSES
from projects.VAD.drawing.camera_view import draw_camera
from projects.VAD.drawing.layers import Layer

# Left to right as seen from the vehicle: the front row, then the rear row.
MOSAIC = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
PLAN_COLOUR, EGO_COLOUR = '#d6006e', '#20242c'
MAP_COLOURS = dict(
    divider='#1769c9', ped_crossing='#8a3fc2', boundary='#c8261c'
)
# x from, x to, y from, y to in metres: VAD's region, and what is drawn.
REGION = (-15.0, 15.0, -30.0, 30.0)
VIEW = (-22.0, 22.0, -34.0, 34.0)
EGO_LENGTH, EGO_WIDTH, EGO_FORWARD = 4.084, 1.85, 0.5
PANEL_INCHES = (21.2, 6.2)


def draw_keyframe(
    results: dict, panels: Sequence[tuple[str, Sequence[Layer]]], path: str
) -> None:
    """Draws one row per panel: six cameras, bird's-eye view, legend.

    The picture is written beside its place and then renamed, so that no
    reader meets half a file.

    Args:
        results: What ``NuScenesKeyframeDataset.get_data_info`` gives.
        panels: Title and layers of each row.
        path: The PNG to write.

    Raises:
        ValueError: If a picture of a camera cannot be decoded.
    """
    _save(_keyframe_figure(results, panels, 150), path, describe(panels))


def render_keyframe(
    results: dict,
    panels: Sequence[tuple[str, Sequence[Layer]]],
    dpi: int = 90,
) -> np.ndarray:
    """Returns what :func:`draw_keyframe` draws, ``[H, W, 3]`` uint8 RGB.

    Args:
        results: What ``NuScenesKeyframeDataset.get_data_info`` gives.
        panels: Title and layers of each row.
        dpi: The width is 21.2 times this, a row's height 6.2 times.

    Raises:
        ValueError: If a picture of a camera cannot be decoded.
    """
    figure = _keyframe_figure(results, panels, dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def describe(panels: Sequence[tuple[str, Sequence[Layer]]]) -> str:
    """Returns the picture in words, for those who do not see it."""
    rows = '; '.join(title for title, _ in panels)
    return f"Six cameras and the bird's-eye view. From the top: {rows}."


def _keyframe_figure(
    results: dict, panels: Sequence[tuple[str, Sequence[Layer]]], dpi: int
) -> Figure:
    pictures = _load_pictures(results)
    scan = _load_scan(results)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width, height * len(panels)), dpi=dpi)
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(panels), 1, squeeze=False)[:, 0]
    for row, (title, layers) in zip(rows, panels, strict=True):
        row.text(
            0.08 / width, 1 - 0.3 / height, title, fontsize=16, weight='bold'
        )
        _draw_row(row, results['lidar2img'], pictures, scan, layers)
    return figure


def _draw_row(
    row: SubFigure,
    lidar2img: Sequence[np.ndarray],
    pictures: dict[str, np.ndarray],
    scan: np.ndarray | None,
    layers: Sequence[Layer],
) -> None:
    for i, names in enumerate(MOSAIC):
        for j, name in enumerate(names):
            axes = _add_axes(row, 0.08 + 4.76 * j, 3.0 - 2.9 * i, 4.7, 2.6)
            matrix = lidar2img[CAMERAS.index(name)]
            picture = draw_camera(pictures[name], matrix, layers)
            axes.imshow(picture[..., ::-1])
            axes.set_title(name, fontsize=11, pad=3)
            axes.set_axis_off()
    draw_bev(_add_axes(row, 14.95, 0.45, 3.42, 5.2), layers, scan)
    row.legend(
        handles=_legend(layers, scan is not None),
        loc='center left',
        bbox_to_anchor=(18.4 / PANEL_INCHES[0], 0.5),
        fontsize=11,
        frameon=False,
    )


def _add_axes(
    row: SubFigure, left: float, bottom: float, width: float, height: float
) -> Axes:
    """Adds axes to a panel; all numbers in inches."""
    across, up = PANEL_INCHES
    return row.add_axes(
        (left / across, bottom / up, width / across, height / up)
    )


def draw_bev(
    axes: Axes, layers: Sequence[Layer], scan: np.ndarray | None = None
) -> None:
    """Draws layers as seen from above: x to the right, y (forward) up.

    Args:
        axes: Where to draw.
        layers: Drawn in order.
        scan: LiDAR points ``[k, >= 2]`` for the background, metres.
    """
    if scan is not None:
        axes.scatter(*scan[:, :2].T, s=0.5, c='#848b94', linewidths=0)
    x0, x1, y0, y1 = REGION
    axes.add_patch(
        Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec='#70767e', ls=':')
    )
    for layer in layers:
        _draw_layer(axes, layer)
    half = EGO_LENGTH / 2
    nose = EGO_FORWARD + half
    axes.add_patch(
        Rectangle(
            (-EGO_WIDTH / 2, EGO_FORWARD - half),
            EGO_WIDTH,
            EGO_LENGTH,
            fc=EGO_COLOUR,
            alpha=0.85,
            zorder=5,
        )
    )
    arrow = [(-0.55, nose - 1.3), (0.55, nose - 1.3), (0, nose - 0.2)]
    axes.add_patch(Polygon(arrow, fc='white', zorder=6))
    axes.set(xlim=VIEW[:2], ylim=VIEW[2:], aspect='equal')
    axes.set_xlabel('x to the right (m)', fontsize=10, labelpad=1)
    axes.set_ylabel('y forward (m)', fontsize=10, labelpad=-4)
    axes.set_title("bird's-eye view (LiDAR frame)", fontsize=11, pad=3)
    axes.tick_params(labelsize=9)
    axes.grid(color='#d9dce0', lw=0.5)
    axes.set_axisbelow(True)


def _draw_layer(axes: Axes, layer: Layer) -> None:
    style = (0, (4, 2)) if layer.dashed else '-'
    for name, line in layer.lines:
        axes.plot(*line.T, color=MAP_COLOURS[name], lw=1.8, ls=style, zorder=2)
    for corners, path in zip(layer.corners, layer.paths, strict=True):
        ground = corners[:4, :2]
        axes.add_patch(
            Polygon(ground, fc=layer.colour, ec='none', alpha=0.14, zorder=3)
        )
        axes.add_patch(
            Polygon(ground, fill=False, ec=layer.colour, lw=1.4, zorder=3)
        )
        heading = np.stack([ground.mean(0), ground[:2].mean(0)])
        axes.plot(*heading.T, color=layer.colour, lw=1.4, zorder=3)
        if len(path) > 1:
            axes.plot(
                *path.T, '.-', color=layer.colour, lw=1, ms=3.5, zorder=4
            )
    for name, plan in layer.plans.items():
        chosen = name == layer.command
        colour = layer.colour if layer.dashed else PLAN_COLOUR
        axes.plot(
            *plan.T,
            'o-' if chosen else '--',
            color=colour,
            lw=2.4 if chosen else 1.1,
            ms=4,
            alpha=1.0 if chosen or layer.command is None else 0.55,
            zorder=7,
        )


def _legend(layers: Sequence[Layer], has_scan: bool) -> list[Line2D]:
    """Only what the row shows."""
    entries = []

    def add(label, colour, lw=2.0, ls='-', **style):
        line = Line2D([], [], color=colour, lw=lw, ls=ls, label=label, **style)
        entries.append(line)

    for layer in layers:
        add(f'{layer.name} ({len(layer.corners)})', layer.colour, 3)
        if any(len(path) > 1 for path in layer.paths):
            add('  its trajectory', layer.colour, 1, marker='.', ms=5)
    for layer in layers:
        style = '--' if layer.dashed else '-'
        for name in MAP_CLASSES:
            if any(name == found for found, _ in layer.lines):
                text = f'{name} ({"truth" if layer.dashed else "predicted"})'
                add(text, MAP_COLOURS[name], ls=style)
        for name in layer.plans:
            if layer.dashed:
                add(f'driven: {name}', layer.colour, marker='o', ms=4)
            elif name == layer.command:
                add(f'plan: {name}', PLAN_COLOUR, marker='o', ms=4)
        if not layer.dashed and set(layer.plans) - {layer.command}:
            which = 'other commands' if layer.command else 'each command'
            add(f'plan: {which}', PLAN_COLOUR, 1.1, '--')
    add('ego vehicle', EGO_COLOUR, 6)
    if has_scan:
        add('LiDAR points', '#9aa0a8', 0, marker='.', ms=3)
    add("VAD's region", '#70767e', 1, ':')
    return entries


def _load_pictures(results: dict) -> dict[str, np.ndarray]:
    pictures = {}
    for name in CAMERAS:
        path = results['images'][name]['img_path']
        pictures[name] = cv2.imread(path)
        if pictures[name] is None:
            raise ValueError(
                f'picture {path} of {name} cannot be decoded; copy it again.'
            )
    return pictures


def _load_scan(results: dict) -> np.ndarray | None:
    """LiDAR points ``[k, features]``, where the scan is there."""
    if 'lidar_path' not in results:
        return None
    values = np.fromfile(results['lidar_path'], dtype=np.float32)
    features = results['num_pts_feats']
    return values[: len(values) // features * features].reshape(-1, features)


def _save(figure: Figure, path: str, description: str) -> None:
    stream = io.BytesIO()
    metadata = {'Description': description}
    figure.savefig(stream, format='png', metadata=metadata)
    write_whole(path, stream.getvalue())
