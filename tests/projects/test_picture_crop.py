"""Pictures without their sky, and where points are on them afterwards."""

import numpy as np
import pytest

from projects.VAD.data.picture_crop import CropTopMultiViewImage


def results() -> dict:
    picture = np.arange(20 * 8 * 3, dtype=np.float32).reshape(20, 8, 3)
    return dict(
        img=[picture, picture + 1],
        lidar2img=[np.diag([2.0, 3.0, 1.0, 1.0]), np.eye(4)],
    )


def test_the_lower_rows_stay():
    before = results()
    after = CropTopMultiViewImage(6).transform(results())
    assert after['img_shape'] == [(14, 8, 3)] * 2
    for old, new in zip(before['img'], after['img'], strict=True):
        np.testing.assert_array_equal(new, old[6:])


def test_a_point_moves_up_by_as_many_pixels_at_any_depth():
    before, after = results(), CropTopMultiViewImage(6).transform(results())
    for point in ([1.0, 4.0, 2.0, 1.0], [3.0, -5.0, 7.0, 1.0]):
        for old, new in zip(
            before['lidar2img'], after['lidar2img'], strict=True
        ):
            u, v, depth, _ = old @ point
            x, y, same, _ = new @ point
            assert same == depth
            assert (x / depth, y / depth) == pytest.approx(
                (u / depth, v / depth - 6)
            )


@pytest.mark.parametrize('rows', [20, 25])
def test_a_picture_of_which_nothing_would_be_left_is_refused(rows):
    with pytest.raises(ValueError, match=f'drop {rows} rows of a picture'):
        CropTopMultiViewImage(rows).transform(results())


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match='found -1'):
        CropTopMultiViewImage(-1)
