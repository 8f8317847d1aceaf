"""Boxes on a camera's picture, worked out by hand."""

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes

from projects.VAD.data.keyframe_dataset import CAMERAS, CLASSES
from projects.VAD.data.picture_boxes import picture_boxes, write_coco
from projects.VAD.drawing.layers import box_corners

SIZE = (200, 100)
# Looks along x, 100 pixels of focal length, the axis in the middle.
FORWARD = np.array(
    [
        [100.0, -100.0, 0.0, 0.0],
        [50.0, 0.0, -100.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def cubes(*middles, side=2.0):
    """Upright cubes around ``(x, y, 0)``, ``x`` metres ahead."""
    rows = [[x, y, -side / 2, side, side, side, 0.0] for x, y in middles]
    return LiDARInstance3DBoxes(torch.tensor(rows))


def found(*middles, side=2.0, least=8.0):
    corners = box_corners(cubes(*middles, side=side))
    boxes, kept = picture_boxes(corners, FORWARD, SIZE, least)
    return boxes.round(3).tolist(), kept.tolist()


def test_the_nearer_face_of_a_box_is_the_box_on_the_picture():
    # The face is 10 m away: 20 pixels wide and high around the middle.
    assert found((11, 0)) == ([[90, 40, 110, 60]], [0])
    # Three metres to the left is 30 pixels at 10 m; the side that is seen
    # ends a metre to the left at 12 m.
    assert found((11, 2)) == ([[70, 40, 91.667, 60]], [0])


def test_what_is_outside_of_the_picture_is_cut_off():
    # The face spans 9 to 11 m to the left: pixels -10 to 10; the far face,
    # at 12 m, ends at 25.
    assert found((11, 10)) == ([[0, 40, 25, 60]], [0])
    assert found((11, 30)) == ([], [])
    assert found((-11, 0)) == ([], [])


def test_a_box_that_begins_behind_the_camera_fills_the_picture():
    boxes, _ = found((0.5, 0), side=4.0)
    assert boxes == [[0, 0, 200, 100]]


def test_small_boxes_and_hidden_ones_are_left_out():
    assert found((31, 0)) == ([], [])  # 6.7 pixels
    assert found((31, 0), least=6.0)[1] == [0]
    # The second stands behind the first; the third looks out by half.
    assert found((16, 0), (11, 0), (16, 1.5))[1] == [1, 2]


WHOLE = {name: [name] for name in CLASSES}


@pytest.fixture
def frame(tmp_path):
    """A keyframe with two boxes, as the data set gives it."""
    folder = tmp_path / 'samples'
    folder.mkdir()
    images = {}
    for camera in CAMERAS:
        images[camera] = dict(img_path=str(folder / f'{camera}.jpg'))
        cv2.imwrite(images[camera]['img_path'], np.zeros((100, 200, 3)))
    return dict(
        images=images,
        lidar2img=[FORWARD] * len(CAMERAS),
        gt_bboxes_3d=cubes((11, 0), (11, 4)),
        gt_labels_3d=np.array([0, 8]),
    )


def test_the_file_is_what_coco_reads(frame, tmp_path):
    from pycocotools.coco import COCO

    file = tmp_path / 'boxes.json'
    cameras = CAMERAS[:2]
    assert write_coco([frame], file, cameras, tmp_path, WHOLE) == (2, 4)
    coco = COCO(str(file))
    assert [image['file_name'] for image in coco.loadImgs([0, 1])] == [
        f'samples/{camera}.jpg' for camera in cameras
    ]
    first, second = coco.loadAnns(coco.getAnnIds([0]))
    assert first['bbox'] == [90, 40, 20, 20]
    numbers = [first['category_id'], second['category_id']]
    names = [c['name'] for c in coco.loadCats(numbers)]
    assert names == ['car', 'pedestrian']


def test_classes_are_put_together_and_left_out(frame, tmp_path):
    from pycocotools.coco import COCO

    # A barrier hides the car, and is not written itself.
    frame['gt_bboxes_3d'] = cubes((11, 0), (16, 0), (16, 1.5), (11, 6))
    frame['gt_labels_3d'] = np.array([5, 0, 1, 7])
    file = tmp_path / 'boxes.json'
    kinds = dict(vehicle=['car', 'truck'], cyclist=['motorcycle', 'bicycle'])
    write_coco([frame], file, CAMERAS[:1], tmp_path, kinds)
    coco = COCO(str(file))
    assert coco.dataset['categories'] == [
        dict(id=1, name='vehicle'),
        dict(id=2, name='cyclist'),
    ]
    assert [a['category_id'] for a in coco.dataset['annotations']] == [1, 2]


def test_a_broken_picture_is_named(frame, tmp_path):
    (tmp_path / 'samples' / 'CAM_FRONT.jpg').write_bytes(b'nothing')
    file = tmp_path / 'boxes.json'
    with pytest.raises(ValueError, match='CAM_FRONT.*cannot be decoded'):
        write_coco([frame], file, ['CAM_FRONT'], tmp_path, WHOLE)
    assert not file.exists()
