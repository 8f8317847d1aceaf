"""Writing the drawn world: the same bytes for a seed, no half worlds."""

import hashlib
from pathlib import Path

import pytest
from tool_modules import command

from projects.VAD.mini_world import world as world_module
from projects.VAD.mini_world.world import write_world


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_the_seed_decides_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, 'FRAMES', 3)
    folders = [tmp_path / name for name in 'abc']
    for folder, seed in zip(folders, (0, 0, 3), strict=True):
        write_world(folder, seed, 1, (48, 27))
    first, same, other = (digests(folder) for folder in folders)
    assert len(first) == 13 + 3 * 7 + 8 + 3
    assert first == same
    changed = [
        name for name, digest in first.items() if other.get(name) != digest
    ]
    assert any(name.endswith('sample_annotation.json') for name in changed)
    assert any(name.endswith('.jpg') for name in changed)
    assert 'maps/expansion/boston-seaport.json' in changed


def test_two_processes_draw_the_same_bytes_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, 'FRAMES', 2)
    for name, workers in (('one', 1), ('two', 2)):
        write_world(tmp_path / name, 0, 3, (32, 18), workers=workers)
    assert digests(tmp_path / 'one') == digests(tmp_path / 'two')


def test_a_folder_with_files_is_kept_unless_forced(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(world_module, 'FRAMES', 2)
    out = tmp_path / 'world'
    out.mkdir()
    (out / 'mine').write_text('keep')
    argv = [str(out), '--scenes', '1', '--image-size', '32x18']
    with pytest.raises(SystemExit) as stop:
        command('make_mini_world').main(argv)
    assert stop.value.code == 2
    assert 'is not empty' in capsys.readouterr().err
    assert (out / 'mine').read_text() == 'keep'
    command('make_mini_world').main([*argv, '--force'])
    assert not (out / 'mine').exists()
    assert (out / 'v1.0-mini' / 'sample.json').is_file()
    assert [p.name for p in tmp_path.iterdir()] == ['world']


@pytest.mark.parametrize(
    'options, text',
    [
        (['--scenes', '0'], 'a world of 0 scenes'),
        (['--scenes', '5000'], 'a world of 5000 scenes'),
        (['--image-size', '0x9'], 'pixels'),
        (['--image-size', 'big'], 'WxH'),
        (['--seed', '-1'], '--seed'),
        (['--image-size', '4001x16'], 'pixels'),
    ],
)
def test_wrong_options_are_said_in_one_line(tmp_path, capsys, options, text):
    with pytest.raises(SystemExit) as stop:
        command('make_mini_world').main([str(tmp_path / 'world'), *options])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_no_half_world(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(world_module, '_write_map', fail)
    monkeypatch.setattr(world_module, 'FRAMES', 1)
    with pytest.raises(OSError, match='disk full'):
        write_world(tmp_path / 'world', 0, 1, (32, 18))
    assert list(tmp_path.iterdir()) == []


def test_folders_beside_the_world_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, 'FRAMES', 1)
    (tmp_path / 'world').mkdir()
    for name in ('world.tmp', 'world.old'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'mine').write_text('keep')
    write_world(tmp_path / 'world', 0, 1, (32, 18))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['world', 'world.old', 'world.tmp']
    for name in ('world.tmp', 'world.old'):
        assert (tmp_path / name / 'mine').read_text() == 'keep'
