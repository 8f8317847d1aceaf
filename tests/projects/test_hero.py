"""Models side by side: where boxes, lines and plan come to lie."""

import cv2
import numpy as np
import pytest

from projects.VAD.drawing.hero import (
    COLUMN,
    GAP,
    GROUND,
    TRUTH,
    draw_side_by_side,
)
from projects.VAD.drawing.keyframe import MAP_COLOURS, PLAN_COLOUR
from projects.VAD.drawing.layers import PREDICTION_COLOUR, TRUTH_COLOUR, Layer

# Looks along +y from the LiDAR, 100 pixels focal length, 160x90 pixels.
FORWARD = np.array(
    [[100, 80, 0, 0], [0, 45, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]
)
TITLE = 64


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def is_colour(picture: np.ndarray, colour: str) -> np.ndarray:
    return (np.abs(picture.astype(int) - rgb(colour)) < 12).all(-1)


def layer(centres=(), lines=(), plan=None, dashed=False) -> Layer:
    """Cubes of 2 m at (x, y) on the road."""
    unit = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])[:, ::-1]
    corners = [
        [(x + a, y + b, GROUND + z) for z in (0, 2) for a, b in unit]
        for x, y in centres
    ]
    return Layer(
        name='',
        colour=TRUTH_COLOUR if dashed else PREDICTION_COLOUR,
        corners=np.array(corners, dtype=float).reshape(-1, 8, 3),
        labels=np.zeros(len(centres), dtype=int),
        paths=[np.zeros((0, 2))] * len(centres),
        lines=[(name, np.array(line, dtype=float)) for name, line in lines],
        plans={} if plan is None else {'go': np.array(plan, dtype=float)},
        command=None if plan is None else 'go',
        dashed=dashed,
    )


@pytest.fixture
def results(tmp_path) -> dict:
    path = str(tmp_path / 'front.png')
    cv2.imwrite(path, np.full((90, 160, 3), 90, np.uint8))
    # CAM_FRONT is the first of the dataset's cameras.
    return dict(images={'CAM_FRONT': dict(img_path=path)}, lidar2img=[FORWARD])


def parts(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Camera and view from above of the first column."""
    height = round(90 * COLUMN / 160)
    above = TITLE + height + GAP // 2
    return (
        picture[TITLE : TITLE + height, :COLUMN],
        picture[above : above + COLUMN // 2, :COLUMN],
    )


def test_a_column_per_model_and_one_legend(results):
    one = draw_side_by_side(results, None, [('dense', layer())])
    two = draw_side_by_side(
        results, None, [('dense', layer()), ('pruned', layer())]
    )
    assert one.shape[1] == COLUMN
    assert two.shape[1] == 2 * COLUMN + GAP
    legend = two[-64:]
    for colour in (PREDICTION_COLOUR, PLAN_COLOUR, *MAP_COLOURS.values()):
        assert is_colour(legend, colour).sum() > 400
    # Not cut off on either side.
    assert (legend[:, :20] > 200).all() and (legend[:, -20:] > 200).all()


def test_a_box_lies_on_the_same_place_in_both_views(results):
    model = layer(centres=[(3.0, 12.0)])
    camera, above = parts(draw_side_by_side(results, None, [('m', model)]))
    scale = COLUMN / 160
    rows, columns = np.nonzero(is_colour(camera, PREDICTION_COLOUR))
    # The near side is 11 m away, from x = 2 to 4.
    assert columns.min() == pytest.approx((80 + 200 / 13) * scale, abs=8)
    assert columns.max() == pytest.approx((80 + 400 / 11) * scale, abs=4)
    assert rows.max() == pytest.approx((45 - 100 * GROUND / 11) * scale, abs=4)
    # From above forward is to the right and the right side is below.
    rows, columns = np.nonzero(is_colour(above, PREDICTION_COLOUR))
    metres = COLUMN / 60
    assert columns.mean() == pytest.approx((30 + 12) * metres, abs=8)
    assert rows.mean() == pytest.approx((15 + 3) * metres, abs=4)


def test_lines_and_plan_lie_on_the_road(results):
    model = layer(
        lines=[('divider', [(-2, 5), (-2, 25)])], plan=[(0, 4), (0, 20)]
    )
    camera, above = parts(draw_side_by_side(results, None, [('m', model)]))
    scale = COLUMN / 160
    rows, columns = np.nonzero(is_colour(camera, MAP_COLOURS['divider']))
    assert rows.min() == pytest.approx((45 - 100 * GROUND / 25) * scale, abs=5)
    assert (columns < COLUMN / 2).all()
    strip = is_colour(camera, PLAN_COLOUR).any(0).nonzero()[0]
    assert strip.mean() == pytest.approx(COLUMN / 2, abs=5)
    assert is_colour(above, PLAN_COLOUR).any()


def test_what_is_behind_the_camera_is_seen_from_above_alone(results):
    model = layer(
        centres=[(0.0, -10.0)],
        lines=[('boundary', [(1, -20), (1, -3)])],
    )
    camera, above = parts(draw_side_by_side(results, None, [('m', model)]))
    for colour in (PREDICTION_COLOUR, MAP_COLOURS['boundary']):
        assert not is_colour(camera, colour).any()
        assert is_colour(above, colour).any()


def test_the_truth_is_grey_and_from_above(results):
    truth = layer(centres=[(0.0, 12.0)], dashed=True)
    picture = draw_side_by_side(results, truth, [('m', layer())])
    camera, above = parts(picture)
    assert is_colour(above, TRUTH).sum() > 300
    assert (camera == 90).all()


def test_a_picture_that_is_none_is_named(results):
    path = results['images']['CAM_FRONT']['img_path']
    with open(path, 'wb') as file:
        file.write(b'no picture')
    with pytest.raises(ValueError, match='front.png of CAM_FRONT cannot'):
        draw_side_by_side(results, None, [('m', layer())])
