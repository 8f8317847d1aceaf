"""Boxes on pictures, from the 3-D boxes of keyframes, as a COCO file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from mmprune.atomic_file import save_json
from projects.VAD.data.keyframe_dataset import CAMERAS, CLASSES
from projects.VAD.drawing.camera_view import EDGES, NEAR_METRES
from projects.VAD.drawing.layers import box_corners

# The part of a box that nearer boxes leave free, for it to count.
SEEN = 0.3


def write_coco(
    frames: Iterable[dict],
    path: Path,
    cameras: Sequence[str],
    root: Path,
    categories: Mapping[str, Sequence[str]],
    least: float = 8.0,
) -> tuple[int, int]:
    """Writes the boxes of some cameras as a COCO annotation file.

    Args:
        frames: What ``NuScenesKeyframeDataset.get_data_info`` gives.
        path: The file.
        cameras: Whose pictures.
        root: File names of pictures are relative to it.
        categories: The data set's classes that each category of the file
            holds; boxes of other classes are not written.
        least: Pixels that a box has at least, in width and in height.

    Returns:
        How many pictures and how many boxes were written.

    Raises:
        ValueError: If a picture cannot be decoded.
    """
    # Those of COCO begin with 1.
    numbers = {
        CLASSES.index(name): number
        for number, names in enumerate(categories.values(), 1)
        for name in names
    }
    images, annotations = [], []
    for frame in frames:
        corners = box_corners(frame['gt_bboxes_3d'])
        for camera in cameras:
            file = frame['images'][camera]['img_path']
            picture = cv2.imread(file)
            if picture is None:
                raise ValueError(
                    f'picture {file} of {camera} cannot be decoded; copy it '
                    'again'
                )
            height, width = picture.shape[:2]
            images.append(
                dict(
                    id=len(images),
                    file_name=str(Path(file).resolve().relative_to(root)),
                    width=width,
                    height=height,
                )
            )
            matrix = frame['lidar2img'][CAMERAS.index(camera)]
            boxes, kept = picture_boxes(
                corners, matrix, (width, height), least
            )
            for (x, y, right, bottom), i in zip(
                boxes.tolist(), kept.tolist(), strict=True
            ):
                number = numbers.get(int(frame['gt_labels_3d'][i]))
                if number is None:
                    continue
                wide, high = right - x, bottom - y
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=len(images) - 1,
                        category_id=number,
                        bbox=[x, y, wide, high],
                        area=wide * high,
                        iscrowd=0,
                    )
                )
    named = [dict(id=i, name=name) for i, name in enumerate(categories, 1)]
    save_json(
        dict(images=images, annotations=annotations, categories=named), path
    )
    return len(images), len(annotations)


def picture_boxes(
    corners: np.ndarray,
    lidar2img: np.ndarray,
    size: tuple[int, int],
    least: float = 8.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes that 3-D boxes are on a picture, and which those are.

    What is behind the camera or outside of the picture is cut off; boxes
    that nearer ones hide are left out.

    Args:
        corners: ``[n, 8, 3]`` metres, as ``box_corners`` orders them.
        lidar2img: ``[4, 4]``.
        size: Width and height of the picture, pixels.
        least: Pixels that a box has at least, in width and in height.

    Returns:
        ``[k, 4]`` left, top, right, bottom in pixels, and ``[k]`` indices.
    """
    limit = np.array([*size, *size], float)
    points = np.concatenate([corners, np.ones((len(corners), 8, 1))], -1)
    points = (points @ np.asarray(lidar2img).T)[..., :3]
    taken = np.zeros(size[::-1], bool)
    found = {}
    for i in np.argsort(points[..., 2].mean(1)):  # the nearest first
        seen = _in_front(points[i])
        if not len(seen):
            continue
        pixels = seen[:, :2] / seen[:, 2:]
        box = np.clip([*pixels.min(0), *pixels.max(0)], 0, limit)
        if min(box[2] - box[0], box[3] - box[1]) < least:
            continue
        left, top, right, bottom = box.round().astype(int)
        place = taken[top:bottom, left:right]
        if place.mean() <= 1 - SEEN:
            found[i] = box
        place[...] = True
    kept = np.array(sorted(found), int)
    return np.array([found[i] for i in kept]).reshape(-1, 4), kept


def _in_front(points: np.ndarray) -> np.ndarray:
    """Corners in front of the camera, and where edges come from behind it."""
    deep = points[:, 2]
    parts = [points[deep >= NEAR_METRES]]
    for a, b in EDGES:
        if (deep[a] < NEAR_METRES) != (deep[b] < NEAR_METRES):
            share = (NEAR_METRES - deep[a]) / (deep[b] - deep[a])
            parts.append((points[a] + share * (points[b] - points[a]))[None])
    return np.concatenate(parts)
