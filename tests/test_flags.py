"""The flags of all commands: help, defaults, checks, each written once."""

import argparse
import subprocess
import sys
from dataclasses import dataclass

import pytest
from conftest import ROOT
from test_docs import parse

from mmprune.run.flags import (
    argument,
    build,
    check_values,
    make_parser,
    option,
    read,
)
from mmprune.run.options import (
    PruningOptions,
    RunOptions,
    TrainingOptions,
)

COMMANDS = sorted((ROOT / 'tools').glob('*.py')) + sorted(
    (ROOT / 'tools' / 'guides').glob('*.py')
)
# What makes each of them read its flags.
WORDS = {
    'compare_rounds': ['run'],
    'create_data': ['nuscenes'],
    'export': ['config', 'checkpoint'],
    'make_keyframe': ['out'],
    'make_mini_world': ['out'],
    'prune_and_retrain': ['config', 'checkpoint'],
    'quantize': ['config', 'checkpoint'],
    'report': ['folder'],
    'sensitivity': ['config', 'checkpoint'],
    'test': ['config', 'checkpoint'],
    'train': ['config'],
    'visualize': ['config'],
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """One of each kind."""

    name: str = argument('a name')
    level: float = option(0.5, 'how much', flag='--how-much', least=0, below=1)
    count: int = option(3, 'how many', least=1)
    kind: str = option('a', 'which', choices=('a', 'b'))
    quick: bool = option(False, 'whether')
    words: tuple[str, ...] = option((), 'some', action='append')
    place: str | None = option(None, 'where', shown='here')

    def __post_init__(self) -> None:
        check_values(self)


# -- all commands ----------------------------------------------------------


@pytest.mark.parametrize('script', COMMANDS, ids=lambda p: p.stem)
def test_every_flag_has_a_help_text_and_shows_its_default(script, monkeypatch):
    parser = parse(monkeypatch, script, WORDS.get(script.stem, [])).parser
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = '/'.join(action.option_strings) or action.dest
        assert action.help, f'{name} has no help'
        shown = formatter._expand_help(action)
        if action.option_strings or action.nargs in ('?', '*'):
            assert 'default: ' in shown, f'{name} hides its default'
        plain = isinstance(action.default, str | int | float)
        if plain and not isinstance(action.default, bool):
            assert f'default: {action.default}' in shown, name


@pytest.mark.parametrize('name', ['prune_and_retrain', 'train', 'test'])
def test_help_does_not_wait_for_pytorch(name):
    code = (
        'import runpy, sys\n'
        f'sys.argv = ["{name}", "--help"]\n'
        'try:\n'
        f'    runpy.run_path("tools/{name}.py", run_name="__main__")\n'
        'except SystemExit:\n'
        '    print({"torch", "mmengine"} & set(sys.modules))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.endswith('set()\n'), done.stdout + done.stderr


# -- one definition --------------------------------------------------------


def test_a_field_is_flag_default_type_and_value():
    words = ['x', '--how-much', '0.25', '--words', 'p', '--words', 'q']
    (found,) = read('', (Options,), [*words, '--quick'])
    assert found == Options(name='x', level=0.25, quick=True, words=('p', 'q'))
    assert isinstance(found.level, float)
    assert found.count == 3


def test_two_parses_share_no_list():
    parser = make_parser('', Options)
    assert parser.parse_args(['x', '--words', 'p']).words == ['p']
    assert parser.parse_args(['x']).words == []


def test_help_shows_what_the_field_says():
    text = make_parser('', Options).format_help()
    for line in (
        'how much (default: 0.5)',
        'whether (default: off)',
        'some (default: none)',
        'where (default: here)',
    ):
        assert line in text


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(level=1.0), r'--how-much must lie in \[0, 1\), found 1.0'),
        (dict(level=float('nan')), 'found nan'),
        (dict(count=0), '--count is at least 1, found 0'),
        (dict(kind='c'), "--kind is one of a, b, found 'c'"),
    ],
)
def test_the_same_check_holds_from_python_and_from_a_shell(values, message):
    with pytest.raises(ValueError, match=message):
        Options(name='x', **values)
    if 'kind' not in values:
        found = argparse.Namespace(**{**vars(Options(name='x')), **values})
        with pytest.raises(ValueError, match=message):
            build(Options, found)


# -- pruning ---------------------------------------------------------------


@pytest.mark.parametrize(
    'text', ['2', '4:2', '2:2', '0:4', 'a:b', '2:', '-1:4']
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match='--pattern: a pattern is N:M with'):
        PruningOptions(pattern=text)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(mode='structured', scope='row'), '--mode structured removes'),
        (dict(mode='both', scope='row'), '--mode both removes whole units'),
        (
            dict(mode='structured', pattern='2:4'),
            '--pattern 2:4 is one of single weights',
        ),
        (dict(pattern_from=256), '--pattern-from 256 says which layers get'),
        (
            dict(mode='unstructured', importance='bn_scale'),
            '--importance bn_scale scores channels',
        ),
        (
            dict(mode='unstructured', scope='isomorphic'),
            '--scope isomorphic compares the units of equal layers',
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PruningOptions(**values)


def test_with_both_models_weights_fall_back_to_magnitude():
    assert PruningOptions(importance='bn_scale').weight_importance() == 'l1'
    assert PruningOptions(importance='taylor').weight_importance() == 'taylor'
    assert PruningOptions(scope='isomorphic').weight_scope() == 'global'
    assert PruningOptions(scope='layer').weight_scope() == 'layer'


# -- training --------------------------------------------------------------


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(fine_tune_iters=5), '--fine-tune-iters goes with --fine-tune'),
        (
            dict(fine_tune=True, fine_tune_iters=5, fine_tune_epochs=1),
            'two lengths of one training',
        ),
        (dict(fine_tune=True, fine_tune_iters=0), 'at least 1, found 0'),
    ],
)
def test_lengths_of_a_training_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**values)


def test_a_run_has_a_folder():
    with pytest.raises(ValueError, match='--output-dir is empty'):
        RunOptions(config='c', checkpoint='x', output_dir='')
