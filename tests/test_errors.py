"""What any command makes of an error, a stop and a log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprune.errors import blame, sentence
from mmprune.run.cli import fail_in_one_sentence


def test_what_nobody_foresaw_is_called_a_defect_and_kept_in_a_file(capsys):
    @fail_in_one_sentence
    def main(argv):
        raise RuntimeError('unforeseen')

    with pytest.raises(SystemExit) as end:
        main(['x'])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: RuntimeError: unforeseen; this is a defect')
    (log,) = [w for w in line.replace(',', '').split() if w.endswith('.log')]
    text = Path(log).read_text()
    os.unlink(log)
    assert 'Traceback (most recent call last)' in text
    with pytest.raises(RuntimeError, match='unforeseen'):
        main(['x', '--debug'])


def test_ctrl_c_is_no_traceback(capsys):
    @fail_in_one_sentence
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 130
    assert capsys.readouterr().err == 'stopped by Ctrl-C\n'


@pytest.mark.parametrize('asked', [None, '0'])
def test_a_log_has_no_bars_of_transformers_unless_asked_for(asked):
    code = (
        'from mmprune.run.cli import fail_in_one_sentence\n'
        '@fail_in_one_sentence\n'
        'def main(argv):\n'
        '    from transformers.utils import logging\n'
        '    print(logging.is_progress_bar_enabled())\n'
        'main([])'
    )
    name = 'HF_HUB_DISABLE_PROGRESS_BARS'
    env = {k: v for k, v in os.environ.items() if k != name}
    env |= {name: asked} if asked else {}
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=env
    )
    assert found.stdout.split() == [str(asked == '0')], found.stderr


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (OSError(28, 'No space left', 'a.pth'), 'a.pth: the disk is full'),
        (OSError(17, 'File exists', 'a'), 'a: something else has that name'),
        (OSError(5, 'Input/output error', 'a'), 'a: Input/output error'),
        (KeyError('meta'), 'KeyError: meta'),
        (KeyError('X is not in the registry. Please check'), 'X is not in'),
        (TypeError('f() got 3'), 'TypeError: f() got 3'),
        (ValueError('two\n  lines'), 'two lines'),
        (ValueError(), 'ValueError'),
        (ValueError('x ' * 999), 'x x x'),
    ],
)
def test_every_error_has_a_line(error, text):
    line = sentence(error)
    assert line.startswith(text)
    assert len(line) < 420


def test_blame_names_the_key_of_what_a_registry_could_not_build():
    from mmengine.config import Config
    from mmengine.registry import HOOKS

    cfg = Config(dict(custom_hooks=[dict(type='EMAHook'), dict(type='Nope')]))
    with (
        pytest.raises(ValueError, match=r'^a.py fails, at custom_hooks\.1: N'),
        blame('a.py fails', cfg),
    ):
        HOOKS.build(cfg.custom_hooks[1])
