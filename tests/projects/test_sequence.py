"""Sequences: which frames, in what order, and files that open again."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tool_modules import command

from mmprune.checkpoints.loading import build_model
from projects.VAD.drawing import sequence
from projects.VAD.drawing.layers import TRUTH_COLOUR
from projects.VAD.drawing.sequence import sequence_kind, write_sequence
from projects.VAD.mini_world.keyframe import write_keyframe
from projects.VAD.model.vad import VAD

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / 'projects/configs/VAD/VAD_tiny_stage_2.py')
SIDE = (120, 200)


def pictures(count: int = 4, size: tuple[int, int] = SIDE) -> list[np.ndarray]:
    """Grey pictures, each brighter than the one before."""
    return [np.full((*size, 3), 40 * i + 20, np.uint8) for i in range(count)]


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# ---- files


def test_a_gif_has_all_pictures_their_pace_and_a_comment(tmp_path):
    path = tmp_path / 'a.gif'
    write_sequence(pictures(), path, 4, 'four greys')
    with Image.open(path) as gif:
        assert gif.n_frames == 4
        assert gif.info['duration'] == 250
        assert gif.info['comment'] == b'four greys'
        shades = []
        for i in range(4):
            gif.seek(i)
            shades.append(gif.convert('RGB').getpixel((9, 9))[0])
    assert shades == pytest.approx([20, 60, 100, 140], abs=6)
    assert left_behind(tmp_path) == ['a.gif']


def test_thin_lines_keep_their_colour_in_a_gif(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (*SIDE, 3), np.uint8)
    noise[60] = green = [int(TRUTH_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]
    write_sequence([noise, noise], tmp_path / 'a.gif', 2)
    with Image.open(tmp_path / 'a.gif') as gif:
        assert list(gif.convert('RGB').getpixel((100, 60))) == green


def test_a_gif_that_would_be_too_big_is_drawn_smaller(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (300, 900, 3), np.uint8) for _ in range(3)]
    write_sequence(noise, tmp_path / 'big.gif', 2)
    monkeypatch.setattr(sequence, 'GIF_BYTES', 400_000)
    write_sequence(noise, tmp_path / 'small.gif', 2)
    widths = [
        Image.open(tmp_path / f'{name}.gif').width for name in ('big', 'small')
    ]
    assert widths[0] == 900
    assert widths[1] in sequence.GIF_WIDTHS
    assert (tmp_path / 'big.gif').stat().st_size > 400_000
    assert (tmp_path / 'small.gif').stat().st_size <= 400_000


@pytest.mark.parametrize('size', [SIDE, (121, 201)])
def test_an_mp4_opens_again_with_all_pictures(tmp_path, size):
    path = tmp_path / 'a.mp4'
    write_sequence(pictures(5, size), path, 2)
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FPS) == 2
    shades = []
    while True:
        found, frame = reader.read()
        if not found:
            break
        assert frame.shape == (120, 200, 3)
        shades.append(frame.mean())
    assert shades == pytest.approx([20, 60, 100, 140, 180], abs=4)
    assert left_behind(tmp_path) == ['a.mp4']


def test_an_mp4_keeps_red_red(tmp_path):
    red = np.zeros((*SIDE, 3), np.uint8)
    red[..., 0] = 220
    write_sequence([red], tmp_path / 'a.mp4', 2)
    frame = cv2.VideoCapture(str(tmp_path / 'a.mp4')).read()[1]
    blue, _, found = frame.mean((0, 1))
    assert found > 180 and blue < 40


def test_another_codec_is_taken_where_the_first_is_missing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sequence, 'CODECS', ('none', 'mp4v'))
    write_sequence(pictures(), tmp_path / 'a.mp4', 2)
    assert cv2.VideoCapture(str(tmp_path / 'a.mp4')).read()[0]
    monkeypatch.setattr(sequence, 'CODECS', ('none',))
    with pytest.raises(ValueError, match='none of the codecs none; choose'):
        write_sequence(pictures(), tmp_path / 'b.mp4', 2)
    assert left_behind(tmp_path) == ['a.mp4']


def test_a_folder_has_one_png_each_and_none_of_an_older_run(tmp_path):
    folder = tmp_path / 'drive'
    write_sequence(pictures(4), folder, 2)
    (folder / 'notes.txt').write_text('mine')
    write_sequence(pictures(2), folder, 2)
    assert sorted(left_behind(folder)) == [
        'frame_0000.png',
        'frame_0001.png',
        'notes.txt',
    ]
    assert (cv2.imread(str(folder / 'frame_0001.png')) == 60).all()


@pytest.mark.parametrize('name', ['a.gif', 'a.mp4'])
def test_a_failure_leaves_the_old_file(tmp_path, name):
    (tmp_path / name).write_text('old')

    def failing():
        yield from pictures(2)
        raise OSError('a picture is gone')

    with pytest.raises(OSError, match='a picture is gone'):
        write_sequence(failing(), tmp_path / name, 2)
    assert left_behind(tmp_path) == [name]
    assert (tmp_path / name).read_text() == 'old'


@pytest.mark.parametrize('name', ['a.gif', 'a.mp4', 'folder'])
def test_no_picture_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match='picture'):
        write_sequence([], tmp_path / name, 2)
    assert left_behind(tmp_path) == []


def test_the_kind_is_told_by_the_name(tmp_path):
    assert sequence_kind(tmp_path / 'a.GIF') == 'gif'
    assert sequence_kind(tmp_path / 'a.mp4') == 'mp4'
    assert sequence_kind(tmp_path / 'a.png') == 'png'
    assert sequence_kind(tmp_path) == 'folder'
    with pytest.raises(ValueError, match='must name a PNG file, a GIF, an'):
        sequence_kind(tmp_path / 'a.avi')


# ---- the command


@pytest.fixture(scope='module')
def drive(tmp_path_factory) -> Path:
    """Five keyframes of two scenes: three and two, 2 m apart."""
    folder = tmp_path_factory.mktemp('drive')
    content = None
    for seed in range(5):
        part = pickle.loads(write_keyframe(folder, seed).read_bytes())
        (info,) = part['data_list']
        scene = int(seed > 2)
        info.update(
            sample_idx=seed,
            scene_token=f'token{scene}',
            scene_name=f'scene-{scene:04d}',
        )
        info['ego2global'] = np.eye(4).tolist()
        info['ego2global'][0][3] = 2.0 * seed
        if content is None:
            content = part
        else:
            content['data_list'].append(info)
    path = folder / 'drive.pkl'
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


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
            'model.pts_bbox_head.num_query': 20,
            'model.pts_bbox_head.num_map_vectors': 10,
            'model.pts_bbox_head.bbox_coder.max_num': 20,
            'model.pts_bbox_head.map_coder.max_num': 10,
        }
    )
    cfg.test_dataloader.dataset.pipeline[4].scales = [0.1]
    cfg.dump(folder / 'small.py')
    weights = build_model(cfg).state_dict()
    torch.save(dict(meta={}, state_dict=weights), folder / 'small.pth')
    return str(folder / 'small.py'), str(folder / 'small.pth')


@pytest.fixture
def tool():
    return command('visualize')


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, int, bool]]:
    """Model, frame and whether it remembered, of every prediction."""
    calls = []
    predict = VAD.predict

    def spy(self, inputs, data_samples, **kwargs):
        meta = data_samples[0].metainfo
        remembers = (
            self._memory is not None
            and self._memory.scene_token == meta['scene_token']
        )
        frame = Path(meta['img_path'][0]).name[10:14]
        calls.append((id(self), int(frame), remembers))
        return predict(self, inputs, data_samples, **kwargs)

    monkeypatch.setattr(VAD, 'predict', spy)
    return calls


def test_each_model_drives_through_the_frames_once_and_in_order(
    drive, small_vad, tool, seen, tmp_path, capsys
):
    config, checkpoint = small_vad
    out = tmp_path / 'drive.gif'
    tool.main(
        [config, checkpoint, '--dense', checkpoint, '--ann-file', str(drive)]
        + ['--frames', '3', '--index', '2', '--out', str(out)]
    )
    models = list(dict.fromkeys(call[0] for call in seen))
    assert len(models) == 2
    for model in models:
        # 0 and 1 lead up to 2; 3 begins another scene.
        mine = [call[1:] for call in seen if call[0] == model]
        assert mine == [
            (0, False),
            (1, True),
            (2, True),
            (3, False),
            (4, True),
        ]
    with Image.open(out) as gif:
        assert gif.n_frames == 3
        assert gif.width > gif.height
        assert b'dense, pruned' in gif.info['comment']
    output = capsys.readouterr()
    assert output.out.strip() == str(out)
    assert '[3/3] keyframe 4' in output.err


@pytest.mark.parametrize(
    ('asked', 'names'),
    [
        ('1', ['frame_0000.png', 'frame_0001.png']),
        ('token1', ['frame_0000.png', 'frame_0001.png']),
        ('token0', ['frame_0000.png', 'frame_0001.png', 'frame_0002.png']),
    ],
)
def test_a_scene_is_drawn_by_token_or_number(
    drive, tool, tmp_path, asked, names
):
    flags = ['--gt-only', '--ann-file', str(drive), '--scene', asked]
    tool.main([CONFIG, *flags, '--out', str(tmp_path / 'pngs')])
    assert sorted(left_behind(tmp_path / 'pngs')) == names


def test_a_scene_can_be_cut_short_and_become_an_mp4(drive, tool, tmp_path):
    out = tmp_path / 'a.mp4'
    flags = ['--gt-only', '--ann-file', str(drive), '--scene', '0']
    tool.main([CONFIG, *flags, '--frames', '2', '--out', str(out)])
    reader = cv2.VideoCapture(str(out))
    assert [reader.read()[0] for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--frames', '2'], 'vad.png holds one keyframe'),
        (['--scene', '0'], 'vad.png holds one keyframe'),
        (['--frames', '0', '--out', 'a.gif'], 'at least 1, found 0'),
        (['--frames', '9', '--out', 'a.gif'], 'ask for at most 5'),
        (['--fps', '0', '--out', 'a.gif'], r'--fps must lie in [0.1, 50]'),
        (['--scene', '7', '--out', 'a.gif'], 'has 2 scenes: '),
        (['--scene', 'x', '--out', 'a.gif'], 'a number from 0 to 1'),
        (
            ['--scene', '0', '--index', '1', '--out', 'a.gif'],
            'leave out --index or --scene',
        ),
    ],
)
def test_what_makes_no_sequence_is_refused(
    drive, tool, tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        tool.main([CONFIG, '--gt-only', '--ann-file', str(drive), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert left_behind(tmp_path) == []


def test_another_dataset_is_refused(tool, tmp_path, capsys):
    cfg = Config.fromfile(CONFIG)
    cfg.test_dataloader.dataset = dict(type='mmengine.BaseDataset')
    cfg.dump(tmp_path / 'other.py')
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'other.py'), '--gt-only'])
    assert 'expected a NuScenesKeyframeDataset' in capsys.readouterr().err
