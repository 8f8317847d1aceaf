"""tools/create_data.py: what it writes, says, and refuses in a sentence."""

import json
import shutil
import subprocess
import sys

import pytest
from golden import ROOT
from tiny_infos import NAMES, read_infos

from projects.VAD.data import nuscenes_infos
from tools import create_data


def test_the_command_writes_both_splits(converted, tmp_path):
    arguments = [
        *('nuscenes', '--root-path', str(converted), '--version', 'v1.0'),
        *('--out-dir', str(tmp_path / 'out'), '--extra-tag', 'mine'),
        *('--canbus', str(converted), '--no-map'),
    ]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert '[2/2] scene-0103' in result.stderr
    written = read_infos(tmp_path / 'out', 'train', 'mine')
    assert 'gt_map_lines' not in written['infos'][0]
    assert written['metadata'] == dict(version='v1.0-mini')
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names == {f'mine_infos_temporal_{name}.pkl' for name in NAMES}


def test_an_absent_version_is_one_sentence(tmp_path, capsys):
    text = refused(capsys, '--root-path', str(tmp_path))
    assert 'no tables of nuScenes v1.0-trainval or v1.0-mini below' in text


def test_the_test_split_is_refused(converted, capsys):
    text = refused(
        capsys, '--root-path', str(converted), '--version', 'v1.0-test'
    )
    assert "'v1.0-test' cannot be converted" in text


def test_an_absent_can_bus_is_said_or_refused(converted, tmp_path, capsys):
    bare = tmp_path / 'bare'
    shutil.copytree(converted / 'v1.0-mini', bare / 'v1.0-mini')
    shutil.copytree(converted / 'maps', bare / 'maps')
    text = refused(capsys, '--root-path', str(bare), '--require-canbus')
    assert f'no CAN bus at {bare / "can_bus"}; unpack' in text
    create_data.main(['nuscenes', '--root-path', str(bare)])
    assert 'rotation rate and steering are zero' in capsys.readouterr().err
    infos = read_infos(bare, 'train')['infos']
    assert not infos[0]['can_bus'].any()
    # 4 m per step of 0.5 s, and none after the last of the four keyframes.
    assert [info['gt_ego_lcf_feat'][7] for info in infos] == [8, 8, 8, 4]


def test_an_absent_map_is_one_sentence(converted, tmp_path, capsys):
    bare = tmp_path / 'bare'
    shutil.copytree(converted / 'v1.0-mini', bare / 'v1.0-mini')
    text = refused(capsys, '--root-path', str(bare))
    assert 'no map expansion in' in text
    assert '--no-map' in text


def test_damaged_tables_are_one_sentence(converted, tmp_path, capsys):
    bare = tmp_path / 'bare'
    shutil.copytree(converted / 'v1.0-mini', bare / 'v1.0-mini')
    shutil.copytree(converted / 'maps', bare / 'maps')
    (bare / 'v1.0-mini' / 'scene.json').write_text('[{')
    text = refused(capsys, '--root-path', str(bare))
    assert 'cannot read the tables in' in text


def test_a_keyframe_without_a_camera_is_named(converted, tmp_path, capsys):
    bare = tmp_path / 'bare'
    shutil.copytree(converted / 'v1.0-mini', bare / 'v1.0-mini')
    shutil.copytree(converted / 'maps', bare / 'maps')
    path = bare / 'v1.0-mini' / 'sample_data.json'
    records = json.loads(path.read_text())
    kept = [r for r in records if r['token'] != 'scene-0061 1 CAM_BACK']
    path.write_text(json.dumps(kept))
    text = refused(capsys, '--root-path', str(bare))
    assert 'keyframe scene-0061 1 has no CAM_BACK' in text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'infos.pkl'
    path.write_text('old')
    with pytest.raises(AttributeError):
        nuscenes_infos.write_infos(path, [dict(a=lambda: 0)], {})
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools/create_data.py'), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(capsys, *arguments: str) -> str:
    """Runs the command, which must fail in one sentence."""
    with pytest.raises(SystemExit) as stopped:
        create_data.main(['nuscenes', *arguments])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    text = lines[-1]
    assert text.startswith('error: ')
    return text
