"""Drives the ONNX files of a VAD over a sequence of frames.

    python deploy/run.py FOLDER_OF_FRAMES [--out pictures]

The host part of VAD in plain numpy: what stands before, between and behind
the graphs, as a reference for whoever writes it for another machine. It
needs numpy, opencv and onnxruntime, and the folder that it lies in; it is one
file, for it is copied there and read as a whole.

The folder of frames has a `frames.json`: a list of frames in order, each with
``pictures`` (camera -> file, absolute or in that folder), ``lidar2img``
([cameras, 4, 4] for the pictures as they are), ``can_bus`` ([18], absolute:
0:3 the position in metres, 16 the heading in radians, 17 in degrees) and
``scene_token``; where the planner reads it ``ego_status`` ([9]), and
``command`` (index) where it is known.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
# Of can_bus, what counts from the frame before: position and heading (deg).
MOVING = [0, 1, 2, 17]


class Driver:
    """Runs the graphs frame by frame and remembers what the next one reads.

    Args:
        about: What `deploy.json` holds.
        run: Runs a graph by its name, arrays by name in and out.
    """

    def __init__(
        self, about: dict, run: Callable[[str, Arrays], Arrays]
    ) -> None:
        self.about, self.run = about, run
        self.forget()

    def forget(self) -> None:
        """The next frame begins a scene."""
        self.scene: str | None = None
        self.can_bus: np.ndarray | None = None
        self.bev: np.ndarray | None = None

    def step(
        self,
        img: np.ndarray,
        lidar2img: np.ndarray,
        can_bus: np.ndarray,
        scene_token: str,
        ego_status: np.ndarray | None = None,
    ) -> Arrays:
        """Returns the raw outputs of the next frame.

        Args:
            img: ``[1, cameras, 3, H, W]`` float32, prepared.
            lidar2img: ``[cameras, 4, 4]`` for the prepared pictures.
            can_bus: ``[18]``, absolute.
            scene_token: Another than before begins a scene.
            ego_status: ``[9]``, where the planner reads some of it.
        """
        can_bus = np.array(can_bus, np.float64)
        name, since = 'head_first', can_bus
        if self.scene == scene_token:
            name, since = 'head', self.can_bus
        moved = can_bus.copy()
        moved[MOVING] -= since[MOVING]
        given = self.run('image', {'img': img})
        given['can_bus'] = moved[None].astype(np.float32)
        given['shift'] = shift(moved, self.about['pc_range'])
        given['lidar2img'] = np.asarray(lidar2img, np.float32)[None]
        if self.about['ego_columns']:
            status = np.asarray(ego_status, np.float32)
            given['ego_status'] = status[self.about['ego_columns']][None]
        if name == 'head':
            index, inside = turn(
                moved[17], self.about['bev_shape'], self.about['rotate_center']
            )
            given |= dict(
                prev_bev=self.bev, turn_index=index, turn_inside=inside
            )
        outs = self.run(name, given)
        self.scene, self.can_bus = scene_token, can_bus
        self.bev = outs['bev_embed']
        return outs

    def decode(self, outs: Arrays) -> Arrays:
        """Returns what was seen, forecast and planned; see :func:`decode`."""
        return decode(outs, self.about)


def shift(moved: np.ndarray, pc_range: list[float]) -> np.ndarray:
    """``[1, 2]``: motion since the last frame as fractions of the region.

    Args:
        moved: ``[18]``, can_bus relative to that frame.
        pc_range: Region x, y, z minima, then maxima, metres.
    """
    dx, dy, heading = moved[[0, 1, 16]]
    sin, cos = np.sin(heading), np.cos(heading)
    metres = np.array([dx * sin - dy * cos, dx * cos + dy * sin])
    size = np.subtract(pc_range[3:5], pc_range[:2])
    return (metres / size)[None].astype(np.float32)


def turn(
    degrees: float, shape: list[int], centre: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each BEV cell was in the frame before, nearest cell.

    Args:
        degrees: Counter-clockwise in the image of the BEV.
        shape: Rows and columns.
        centre: (x, y) of the cell corner that stays.

    Returns:
        ``[HW]`` int64, and ``[HW]`` float32: 0 where it was outside.
    """
    height, width = shape
    theta = degrees * (math.pi / 180)
    cos, sin = np.cos(theta), np.sin(theta)
    y = (np.arange(height) + 0.5 - centre[1])[:, None]
    x = (np.arange(width) + 0.5 - centre[0])[None]
    column = np.round(cos * x - sin * y + centre[0] - 0.5).astype(np.int64)
    row = np.round(sin * x + cos * y + centre[1] - 0.5).astype(np.int64)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = ((row * width + column) * inside).ravel()
    return index, inside.ravel().astype(np.float32)


# From outputs to metres.


def decode(outs: Arrays, about: dict) -> Arrays:
    """Returns boxes, lines, trajectories and plans of one frame.

    ``boxes`` ``[n, 9]``: x, y, z of the middle of the bottom, length, width,
    height in metres, heading (radians, 0 along x), velocity x, y in m/s;
    ``scores``, ``labels``, ``queries`` ``[n]``; ``trajs`` ``[n, modes, steps,
    2]`` positions and ``traj_scores`` ``[n, modes]``; ``line_pts`` ``[m,
    points, 2]``, ``line_scores``, ``line_labels`` ``[m]``; ``plans``
    ``[commands, steps, 2]`` positions. All in metres, in the LiDAR frame: x
    to the right, y forward; steps of 0.5 s.
    """
    last = {name: x[-1, 0] for name, x in outs.items() if 'all_' in name}
    scores, labels, queries = _top(last['all_cls_scores'], about['most_boxes'])
    boxes = _boxes(last['all_bbox_preds'][queries])
    low, high = np.split(np.float32(about['box_centre_range']), 2)
    centre = boxes[:, :3]
    keep = ((centre >= low) & (centre <= high)).all(1)
    boxes[:, 2] -= boxes[:, 5] / 2
    boxes, queries = boxes[keep], queries[keep]
    steps = last['all_traj_preds'][queries]
    steps = steps.reshape(*steps.shape[:2], -1, 2).cumsum(-2)
    return dict(
        boxes=boxes,
        scores=scores[keep],
        labels=labels[keep],
        queries=queries,
        trajs=steps + boxes[:, None, None, :2],
        traj_scores=_sigmoid(last['all_traj_cls_scores'][queries]),
        plans=outs['ego_fut_preds'][0].cumsum(-2),
        **_lines(last, about),
    )


def _lines(last: Arrays, about: dict) -> Arrays:
    scores, labels, vectors = _top(
        last['map_all_cls_scores'], about['most_lines']
    )
    region = np.float32(about['pc_range'])
    low, size = region[:2], region[3:5] - region[:2]
    pts = last['map_all_pts_preds'][vectors] * size + low
    centre, extent = np.split(last['map_all_bbox_preds'][vectors], 2, axis=1)
    first, second = (
        (centre + sign * extent / 2) * size + low for sign in (-1, 1)
    )
    corners = np.concatenate((first, second), 1)
    least, most = np.split(np.float32(about['line_corner_range']), 2)
    keep = ((corners >= least) & (corners <= most)).all(1)
    return dict(
        line_pts=pts[keep], line_scores=scores[keep], line_labels=labels[keep]
    )


def _boxes(code: np.ndarray) -> np.ndarray:
    """``[n, 9]`` from (x, y, log w, log l, z, log h, sin, cos, vx, vy).

    The network's heading is that of another convention: it turns the other
    way and begins at -y.
    """
    x, y, log_w, log_l, z, log_h, sin, cos = code[:, :8].T
    yaw = -np.arctan2(sin, cos) - np.float32(math.pi / 2)
    yaw = np.remainder(yaw + np.pi, 2 * np.pi) - np.pi
    sizes = (np.exp(log_l), np.exp(log_w), np.exp(log_h))
    boxes = np.stack((x, y, z, *sizes, yaw), 1)
    return np.concatenate((boxes, code[:, 8:]), 1).astype(np.float32)


def _top(logits: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Scores, classes and queries of the best pairs, best first."""
    flat = _sigmoid(logits).ravel()
    best = np.argsort(-flat, kind='stable')[:count]
    return flat[best], best % logits.shape[1], best // logits.shape[1]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# From pictures to the network's input.


def prepare(
    pictures: list[np.ndarray], lidar2img: np.ndarray, steps: list[dict]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``img [1, cameras, 3, H, W]`` and ``lidar2img`` for it.

    Args:
        pictures: Per camera ``[h, w, 3]`` BGR, as opencv reads them.
        lidar2img: ``[cameras, 4, 4]`` for them.
        steps: `picture_steps` of deploy.json, done in order.
    """
    import cv2

    lidar2img = np.array(lidar2img, np.float64)
    pictures = [np.asarray(p, np.float32) for p in pictures]
    for step in steps:
        kind, to = step['do'], np.eye(4)
        if kind == 'normalize':
            order = np.eye(3)[::-1] if step['to_rgb'] else np.eye(3)
            mean, std = (np.array(step[k])[:, None] for k in ('mean', 'std'))
            matrix = np.hstack((order, -mean)) / std
            pictures = [cv2.transform(p, matrix) for p in pictures]
        elif kind == 'scale':
            factor = step['factor']
            to = np.diag([factor, factor, 1, 1])
            pictures = [
                cv2.resize(p, [int(n * factor) for n in p.shape[1::-1]])
                for p in pictures
            ]
        elif kind == 'crop_top':
            to[1, 2] = -step['rows']
            pictures = [p[step['rows'] :] for p in pictures]
        elif kind == 'pad':
            pictures = [_pad(p, step['multiple']) for p in pictures]
        else:
            raise ValueError(f'deploy.json: {kind} is no step of pictures')
        lidar2img = to @ lidar2img
    img = np.stack(pictures).transpose(0, 3, 1, 2)[None]
    return np.ascontiguousarray(img), lidar2img


def _pad(picture: np.ndarray, multiple: int) -> np.ndarray:
    bottom, right = (-n % multiple for n in picture.shape[:2])
    return np.pad(picture, ((0, bottom), (0, right), (0, 0)))


# The command.


def sessions(folder: Path, about: dict) -> Callable[[str, Arrays], Arrays]:
    """Opens the graphs in onnxruntime; returns what runs one by its name."""
    import onnxruntime

    opened = {
        name: onnxruntime.InferenceSession(
            str(folder / part['file']), providers=['CPUExecutionProvider']
        )
        for name, part in about['parts'].items()
    }

    def run(name: str, given: Arrays) -> Arrays:
        session = opened[name]
        feeds = {i.name: given[i.name] for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('frames', type=Path, help='folder with frames.json')
    parser.add_argument('--out', type=Path, help='folder for the pictures')
    parser.add_argument('--score-thr', type=float, default=0.3)
    args = parser.parse_args()
    folder = Path(__file__).resolve().parent
    about = json.loads((folder / 'deploy.json').read_text())
    driver = Driver(about, sessions(folder, about))
    out = args.out or args.frames / 'pictures'
    out.mkdir(parents=True, exist_ok=True)
    frames = json.loads((args.frames / 'frames.json').read_text())
    for number, frame in enumerate(frames):
        drive(driver, args.frames, frame, out / f'{number:04d}.png', args)


def drive(driver: Driver, folder: Path, frame: dict, path: Path, args) -> None:
    """Runs one frame, prints what was seen and draws it."""
    import cv2

    about = driver.about
    files = [str(folder / frame['pictures'][c]) for c in about['cameras']]
    pictures = [cv2.imread(file) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture is None:
            raise SystemExit(f'{file} is no picture that opencv can read')
    img, lidar2img = prepare(
        pictures, frame['lidar2img'], about['picture_steps']
    )
    outs = driver.step(
        img,
        lidar2img,
        frame['can_bus'],
        frame['scene_token'],
        frame.get('ego_status'),
    )
    found = driver.decode(outs)
    over = outs.get('overflow')
    if over is not None and over.any():
        print(f'{path.stem}: too many lanes or cells by {over.tolist()}')
    count = int((found['scores'] >= args.score_thr).sum())
    lines = int((found['line_scores'] >= args.score_thr).sum())
    print(f'{path.stem}: {count} boxes, {lines} map lines')
    picture = draw(pictures, frame, found, about, args.score_thr)
    cv2.imwrite(str(path), picture)


# Pictures: six cameras and the bird's-eye view.

_PIXELS, _WIDTH = 10, 480  # per metre from above; of a camera's picture
_VIEW = (-22.0, 22.0, -34.0, 34.0)  # x from, to, y from, to in metres
_MOSAIC = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
_BOX, _PLAN, _EGO = (0, 122, 255), (110, 0, 214), (44, 36, 32)  # BGR
_LINES = ((201, 105, 23), (194, 63, 138), (28, 38, 200))
_EDGES = [(i, (i + 1) % 4) for i in range(4)]
_EDGES += [(i + 4, j + 4) for i, j in _EDGES] + [(i, i + 4) for i in range(4)]


def draw(
    pictures: list[np.ndarray],
    frame: dict,
    found: Arrays,
    about: dict,
    score_thr: float,
) -> np.ndarray:
    """Returns the cameras with boxes and the view from above, BGR."""
    shown = found['scores'] >= score_thr
    corners = box_corners(found['boxes'][shown])
    labels = found['labels'][shown]
    views = {}
    for name, picture, matrix in zip(
        about['cameras'], pictures, np.array(frame['lidar2img']), strict=True
    ):
        views[name] = _camera(picture, matrix, corners, labels, about)
    rows = [np.hstack([views[n] for n in names]) for names in _MOSAIC]
    mosaic = np.vstack(rows)
    above = _above(corners, found, shown, frame.get('command'), score_thr)
    height = max(len(mosaic), len(above))
    both = [
        np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=255)
        for p in (mosaic, above)
    ]
    return np.hstack(both)


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """``[n, 8, 3]``: bottom from front left round to rear left, then top."""
    unit = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = unit * boxes[:, None, 3:5]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    x = boxes[:, :1] + local[..., 0] * cos - local[..., 1] * sin
    y = boxes[:, 1:2] + local[..., 0] * sin + local[..., 1] * cos
    bottom = np.stack((x, y, np.broadcast_to(boxes[:, 2:3], x.shape)), -1)
    top = bottom + boxes[:, None, 5:6] * np.array([0.0, 0.0, 1.0])
    return np.concatenate((bottom, top), 1)


def _camera(
    picture: np.ndarray,
    matrix: np.ndarray,
    corners: np.ndarray,
    labels: np.ndarray,
    about: dict,
) -> np.ndarray:
    import cv2

    scale = _WIDTH / picture.shape[1]
    size = (_WIDTH, round(picture.shape[0] * scale))
    out = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    matrix = np.diag([scale, scale, 1, 1]) @ matrix
    ones = np.ones((*corners.shape[:2], 1))
    seen = np.concatenate((corners, ones), -1) @ matrix.T
    for i in np.argsort(-seen[..., 2].mean(1)):
        if (seen[i, :, 2] < 0.1).any():
            continue
        pixels = np.round(seen[i, :, :2] / seen[i, :, 2:3])
        if np.abs(pixels).max() > 1e4:
            continue
        points = [tuple(map(int, p)) for p in pixels]
        for a, b in _EDGES:
            cv2.line(out, points[a], points[b], _BOX, 1, cv2.LINE_AA)
        x, y = min(points, key=lambda p: p[1])
        if 0 <= x < size[0] and 12 <= y < size[1]:
            name = about['classes'][labels[i]]
            font = cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(
                out, name, (x, y - 2), font, 0.35, _BOX, 1, cv2.LINE_AA
            )
    return out


def _above(
    corners: np.ndarray,
    found: Arrays,
    shown: np.ndarray,
    command: int | None,
    score_thr: float,
) -> np.ndarray:
    x0, x1, y0, y1 = _VIEW
    shape = (int((y1 - y0) * _PIXELS), int((x1 - x0) * _PIXELS), 3)
    out = np.full(shape, 255, np.uint8)
    keep = found['line_scores'] >= score_thr
    for label, pts in zip(
        found['line_labels'][keep], found['line_pts'][keep], strict=True
    ):
        _path(out, pts, _LINES[label], 2)
    best = found['traj_scores'][shown].argmax(1)
    trajs = found['trajs'][shown][np.arange(len(best)), best]
    for box, traj in zip(corners, trajs, strict=True):
        middle = box[:4, :2].mean(0, keepdims=True)
        _path(out, np.r_[box[:4, :2], box[:1, :2]], _BOX, 2)
        _path(out, np.r_[middle, traj], _BOX, 1)
    ego = np.array([[-0.9, 2.5], [0.9, 2.5], [0.9, -1.5], [-0.9, -1.5]])
    _path(out, np.r_[ego, ego[:1]], _EGO, 3)
    for number, plan in enumerate(found['plans']):
        wide = 3 if number == command else 1
        _path(out, np.r_[np.zeros((1, 2)), plan], _PLAN, wide)
    return out


def _path(
    out: np.ndarray, points: np.ndarray, colour: tuple, width: int
) -> None:
    import cv2

    x0, _, _, y1 = _VIEW
    pixels = (points - (x0, y1)) * (_PIXELS, -_PIXELS)
    pixels = np.round(pixels).astype(np.int32)[None]
    cv2.polylines(out, pixels, False, colour, width, cv2.LINE_AA)


if __name__ == '__main__':
    main()
