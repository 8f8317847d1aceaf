"""Pictures of keyframes: what is drawn, where, and what is refused."""

import math
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData
from tool_modules import command

from mmprune.checkpoints.loading import build_model
from projects.VAD.data.keyframe_dataset import NuScenesKeyframeDataset
from projects.VAD.drawing.camera_view import CAMERA_WIDTH, draw_camera
from projects.VAD.drawing.keyframe import draw_bev, draw_keyframe
from projects.VAD.drawing.layers import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    Layer,
    box_corners,
    prediction_layer,
    truth_layer,
)
from projects.VAD.mini_world.keyframe import write_keyframe

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / 'projects/configs/VAD/VAD_tiny_stage_2.py')
# Looks along +y from the origin, 800 pixels focal length.
FORWARD_CAMERA = np.array(
    [[800, 400, 0, 0], [0, 225, -800, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]
)


@pytest.fixture(scope='module')
def keyframe(tmp_path_factory) -> Path:
    return write_keyframe(tmp_path_factory.mktemp('keyframe'), seed=1)


@pytest.fixture
def results(keyframe) -> dict:
    dataset = NuScenesKeyframeDataset(str(keyframe), test_mode=True)
    return dataset.get_data_info(0)


def one_box(x=0.0, y=10.0, yaw=math.pi / 2, size=(4.0, 2.0, 1.0)) -> Layer:
    boxes = LiDARInstance3DBoxes([[x, y, -0.5, *size, yaw]])
    return Layer(
        name='prediction',
        colour=PREDICTION_COLOUR,
        corners=box_corners(boxes),
        labels=np.array([0]),
        paths=[np.zeros((0, 2))],
        lines=[],
        plans={},
    )


# ---- layers


def test_corners_begin_at_the_front_left():
    corners = one_box(x=3.0).corners[0]
    # Heading along +y: the front is at y = 12, its left side at x = 2.
    expected = [(2, 12), (4, 12), (4, 8), (2, 8)]
    assert corners[:4, :2] == pytest.approx(np.array(expected), abs=1e-5)
    assert corners[:4, 2] == pytest.approx([-0.5] * 4)
    assert corners[4:, 2] == pytest.approx([0.5] * 4)


def prediction() -> Det3DDataSample:
    trajs = torch.zeros(2, 6, 6, 2)
    trajs[:, 4] = torch.tensor([[1.0, y] for y in range(11, 17)])
    traj_scores = torch.zeros(2, 6)
    traj_scores[:, 4] = 1
    boxes = LiDARInstance3DBoxes(
        [[1.0, 10, 0, 4, 2, 1, 0, 0, 0], [5, 5, 0, 4, 2, 1, 0, 0, 0]],
        box_dim=9,
    )
    sample = Det3DDataSample()
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=boxes,
        scores_3d=torch.tensor([0.9, 0.2]),
        labels_3d=torch.tensor([8, 0]),
        trajs=trajs,
        traj_scores=traj_scores,
    )
    sample.pred_map = InstanceData(
        pts=torch.ones(2, 20, 2) * torch.tensor([2.0, 3.0])[:, None, None],
        bboxes=torch.zeros(2, 4),
        scores=torch.tensor([0.1, 0.8]),
        labels=torch.tensor([0, 2]),
    )
    plans = torch.stack([torch.full((6, 2), float(i)) for i in range(3)])
    sample.pred_ego = BaseDataElement(plans=plans, command=1)
    return sample


def test_only_what_scores_enough_is_shown():
    layer = prediction_layer(prediction(), 0.5)
    assert layer.labels.tolist() == [8]
    assert layer.corners.shape == (1, 8, 3)
    assert [name for name, _ in layer.lines] == ['boundary']
    assert (layer.lines[0][1] == 3).all()
    assert len(prediction_layer(prediction(), 0.1).corners) == 2
    assert len(prediction_layer(prediction(), 0.95).paths) == 0


def test_an_agent_is_shown_on_its_likeliest_trajectory():
    (path,) = prediction_layer(prediction(), 0.5).paths
    assert path[:, 0] == pytest.approx([1.0] * 7)
    assert path[:, 1] == pytest.approx([10, 11, 12, 13, 14, 15, 16])


def test_plans_start_at_the_vehicle_and_name_their_command():
    layer = prediction_layer(prediction(), 0.5)
    assert list(layer.plans) == ['turn right', 'turn left', 'go straight']
    assert layer.command == 'turn left'
    assert layer.plans['go straight'].tolist() == [[0, 0]] + [[2, 2]] * 6
    unknown = prediction()
    unknown.pred_ego = BaseDataElement(
        plans=torch.zeros(3, 6, 2), command=None
    )
    assert prediction_layer(unknown, 0.5).command is None


def test_a_sample_without_predictions_is_an_empty_layer():
    layer = prediction_layer(Det3DDataSample(), 0.3)
    assert len(layer.corners) == len(layer.lines) == len(layer.plans) == 0


def test_the_truth_holds_futures_map_and_drive(results):
    layer = truth_layer(results)
    assert len(layer.corners) == len(layer.paths) == 19
    assert len(layer.lines) == 8
    # To the right in 3 s, behind a car at a little more than 5 m/s.
    drive = layer.plans['turn right'][-1]
    assert drive == pytest.approx(np.array([9.09, 11.61]), abs=0.01)
    velocity = results['all_gt_bboxes_3d'].tensor[0, 7:].numpy()
    assert velocity == pytest.approx(np.array([4.19, 3.2]), abs=0.01)
    moved = layer.paths[0][-1] - layer.paths[0][0]
    # It turns.
    assert moved == pytest.approx(velocity * 3, abs=2.0)


def test_the_truth_of_an_agent_ends_with_its_mask(results):
    attributes = results['all_attr_labels'].copy()
    attributes[0, 12:18] = [1, 1, 0, 0, 0, 0]
    layer = truth_layer(dict(results, all_attr_labels=attributes))
    assert len(layer.paths[0]) == 3


def test_a_keyframe_without_futures_has_boxes_alone(results):
    for key in ('all_attr_labels', 'gt_map', 'gt_ego'):
        del results[key]
    layer = truth_layer(results)
    assert len(layer.corners) == 19
    assert not layer.plans and not layer.lines
    assert all(len(path) == 0 for path in layer.paths)


# ---- the camera


def painted(picture: np.ndarray) -> np.ndarray:
    return picture.any(-1)


def test_a_box_is_drawn_where_it_projects():
    black = np.zeros((450, 800, 3), np.uint8)
    drawn = painted(draw_camera(black, FORWARD_CAMERA, [one_box()]))
    # Rear face, 8 m away: x = 400 +- 800 / 8, y = 225 +- 400 / 8.
    for x, y in ((300, 175), (500, 175), (300, 275), (500, 275)):
        assert drawn[y - 1 : y + 2, x - 1 : x + 2].any()
    rows, columns = np.nonzero(drawn)
    assert columns.min() >= 298 and columns.max() <= 502
    assert rows.max() <= 277


def test_the_front_face_is_the_tinted_one():
    black = np.zeros((450, 800, 3), np.uint8)
    # Seen from behind the front is the far face, 12 m away.
    drawn = painted(draw_camera(black, FORWARD_CAMERA, [one_box()]))
    assert drawn[225, 400]
    towards = one_box(yaw=-math.pi / 2)
    faced = painted(draw_camera(black, FORWARD_CAMERA, [towards]))
    assert faced.sum() > 1.5 * drawn.sum()


def test_the_picture_is_scaled_with_its_matrix():
    black = np.zeros((900, 1600, 3), np.uint8)
    matrix = np.diag([2, 2, 1, 1]) @ FORWARD_CAMERA
    drawn = draw_camera(black, matrix, [one_box()])
    small = np.zeros((450, 800, 3), np.uint8)
    assert drawn.shape == (450, CAMERA_WIDTH, 3)
    assert np.array_equal(
        drawn, draw_camera(small, FORWARD_CAMERA, [one_box()])
    )


def test_a_box_behind_the_camera_is_not_drawn():
    black = np.zeros((450, 800, 3), np.uint8)
    layer = one_box(y=-10)
    assert not draw_camera(black, FORWARD_CAMERA, [layer]).any()


def test_a_box_through_the_camera_is_drawn_in_front_only():
    black = np.zeros((450, 800, 3), np.uint8)
    # From y = -2 to y = 6, left of the camera.
    layer = one_box(x=-3, y=2, size=(8.0, 2.0, 1.0))
    drawn = painted(draw_camera(black, FORWARD_CAMERA, [layer]))
    assert drawn.any()
    # The inner side ends at x = -2, y = 6: pixel 400 - 800 * 2 / 6.
    assert np.nonzero(drawn)[1].max() <= 400 - 800 * 2 / 6 + 2


# ---- the bird's-eye view


def test_the_birds_eye_view_is_in_metres_with_the_front_up():
    axes = Figure().add_subplot()
    layer = one_box(x=5.0)
    line = np.array([[1.0, 2.0], [3.0, 4.0]])
    layer = layer._replace(
        lines=[('divider', line)],
        plans={'go straight': line},
        command='go straight',
    )
    draw_bev(axes, [layer], scan=np.array([[7.0, 8.0, 0.0]]))
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    assert left < right and low < high
    assert axes.get_aspect() == 1
    outlines = [
        patch.get_xy()
        for patch in axes.patches
        if isinstance(patch, Polygon) and len(patch.get_xy()) == 5
    ]
    expected = [(4, 12), (6, 12), (6, 8), (4, 8), (4, 12)]
    assert outlines[0] == pytest.approx(np.array(expected), abs=1e-5)
    drawn = [np.c_[entry.get_data()] for entry in axes.lines]
    assert sum(np.array_equal(data, line) for data in drawn) == 2
    # From the middle to the middle of the front.
    assert drawn[1] == pytest.approx(np.array([(5, 10), (5, 12)]), abs=1e-5)
    assert axes.collections[0].get_offsets().tolist() == [[7, 8]]


# ---- the whole picture


def test_one_row_per_panel_is_written(results, tmp_path):
    truth = truth_layer(results)
    predicted = prediction_layer(prediction(), 0.5)
    one, two = tmp_path / 'one.png', tmp_path / 'two.png'
    draw_keyframe(results, [('truth', [truth])], one)
    rows = [('dense', [truth, predicted]), ('pruned', [truth])]
    draw_keyframe(results, rows, two)
    height, width, _ = cv2.imread(str(one)).shape
    assert cv2.imread(str(two)).shape == (2 * height, width, 3)
    assert width >= 3 * 600


def count(picture: np.ndarray, colour: str) -> int:
    bgr = [int(colour[i : i + 2], 16) for i in (5, 3, 1)]
    return int((picture == bgr).all(-1).sum())


def test_predictions_and_truth_have_colours_of_their_own(results, tmp_path):
    path = tmp_path / 'out.png'
    truth = truth_layer(results)
    draw_keyframe(results, [('t', [truth])], path)
    alone = cv2.imread(str(path))
    draw_keyframe(
        results, [('t', [prediction_layer(prediction(), 0.5)])], path
    )
    other = cv2.imread(str(path))
    assert count(alone, TRUTH_COLOUR) > 1000
    assert count(alone, PREDICTION_COLOUR) == 0
    assert count(other, PREDICTION_COLOUR) > 100
    assert count(other, TRUTH_COLOUR) == 0


def test_a_failure_leaves_the_old_picture(results, tmp_path, monkeypatch):
    path = tmp_path / 'out.png'
    path.write_text('old')

    def fail(source, target):
        assert Path(source).stat().st_size > 0
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        draw_keyframe(results, [('t', [truth_layer(results)])], path)
    assert [entry.name for entry in tmp_path.iterdir()] == ['out.png']
    assert path.read_text() == 'old'


def test_a_picture_that_is_none_is_named(results, tmp_path):
    broken = tmp_path / 'broken.jpg'
    broken.write_text('no picture')
    results['images']['CAM_BACK']['img_path'] = str(broken)
    with pytest.raises(ValueError, match='broken.jpg of CAM_BACK cannot be'):
        draw_keyframe(results, [('t', [])], tmp_path / 'out.png')


# ---- the commands


def test_the_command_draws_the_truth_without_a_model(
    keyframe, tmp_path, capsys
):
    out = tmp_path / 'truth.png'
    command('visualize').main(
        [CONFIG, '--gt-only', '--ann-file', str(keyframe), '--out', str(out)]
    )
    assert capsys.readouterr().out.strip().endswith(str(out))
    assert count(cv2.imread(str(out)), TRUTH_COLOUR) > 1000


def test_the_command_draws_a_real_keyframe(shared, tmp_path):
    infos = sorted((shared / 'nuscenes').glob('*.pkl'))
    if not infos:
        pytest.skip('no real keyframe')
    out = tmp_path / 'truth.png'
    flags = ['--gt-only', '--ann-file', str(infos[0]), '--out', str(out)]
    command('visualize').main([CONFIG, *flags])
    assert count(cv2.imread(str(out)), TRUTH_COLOUR) > 1000


@pytest.fixture(scope='module')
def small_vad(tmp_path_factory) -> tuple[str, str]:
    """A config and the checkpoint of a VAD of few cells and pixels."""
    folder = tmp_path_factory.mktemp('model')
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {
            'model.img_backbone.depth': 18,
            'model.img_neck.in_channels': [512],
            'model.pts_bbox_head.bev_h': 10,
            'model.pts_bbox_head.bev_w': 10,
        }
    )
    cfg.test_dataloader.dataset.pipeline[4].scales = [0.1]
    cfg.dump(folder / 'small.py')
    weights = build_model(cfg).state_dict()
    torch.save(dict(meta={}, state_dict=weights), folder / 'small.pth')
    return str(folder / 'small.py'), str(folder / 'small.pth')


def test_the_command_draws_dense_beside_pruned(keyframe, small_vad, tmp_path):
    config, checkpoint = small_vad
    out = tmp_path / 'both.png'
    # Untrained: every score is near that of the bias, so all pass 0.
    flags = ['--score-thr', '0', '--ann-file', str(keyframe), '--no-gt']
    files = ['--dense', checkpoint, '--out', str(out)]
    command('visualize').main([config, checkpoint, *flags, *files])
    picture = cv2.imread(str(out))
    half = len(picture) // 2
    assert count(picture[:half], PREDICTION_COLOUR) > 100
    # The same weights in both rows, so the same pictures below the titles.
    assert np.array_equal(picture[100:half], picture[half + 100 :])
    assert count(picture, TRUTH_COLOUR) == 0


@pytest.mark.parametrize(
    'flags, message',
    [
        ([], 'no checkpoint is given; name one or use --gt-only'),
        (['--gt-only', '--no-gt'], '--gt-only draws no model'),
        (['missing.pth'], 'missing.pth does not exist'),
        (['--gt-only', '--index', '1'], 'keyframes 0 to 0'),
        (['--gt-only', '--index', '-1'], '--index must not be negative'),
        (['--gt-only', '--score-thr', '1.5'], r'must lie in \[0, 1\]'),
        (['--gt-only', '--out', 'a.jpg'], 'must name a PNG file'),
        (['--gt-only', '--out', 'no/such/a.png'], 'no writable folder'),
        (['--gt-only', '--ann-file', 'no.pkl'], 'no.pkl does not exist'),
        (['--gt-only', '--device', 'cuda'], 'sees no CUDA device'),
    ],
)
def test_the_command_refuses_in_one_sentence(
    keyframe, tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as stop:
        command('visualize').main(
            [CONFIG, '--ann-file', str(keyframe), *flags]
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert re.search(message, error[0])
    assert not list(tmp_path.iterdir())


def test_the_other_command_draws_a_keyframe(tmp_path, capsys):
    tool = command('make_keyframe')
    tool.main([str(tmp_path / 'scene'), '--seed', '4'])
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / 'scene' / 'synthetic_0004.pkl'
    assert len(list(path.parent.glob('*.jpg'))) == 6


def test_the_other_command_refuses_a_place_that_is_no_folder(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    tool = command('make_keyframe')
    for words, message in (
        ([str(tmp_path / 'file')], 'something else has that name'),
        ([str(tmp_path), '--seed', '-1'], '--seed must not be negative'),
    ):
        with pytest.raises(SystemExit) as stop:
            tool.main(words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
