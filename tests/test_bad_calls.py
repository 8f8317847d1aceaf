"""A day as a new user: whatever is wrong ends in one sentence and exit 2.

Each call runs the real command in a folder of its own, in which it must
leave nothing behind.
"""

import resource
import runpy
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_project import CONFIG, write_checkpoint, write_config

# A run of each command in which only what a test changes is wrong.
PRUNE = 'prune_and_retrain tiny_config.py dense.pth --output-dir out'
PRUNE += ' --latency-runs 0'
TUNE = f'{PRUNE} --no-eval --fine-tune --fine-tune-epochs 1'
TRAIN = 'train tiny_config.py --work-dir work'
TEST = 'test tiny_config.py dense.pth --work-dir work'
DOOR = 'guides/main_imp_fillback --dataset digits --workers 0 --save_dir run'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a config and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    write_checkpoint(tmp_path, momentum=True, epoch=1)
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Runs a command that is to be refused; returns its sentence."""

    def call(line: str, *more: str) -> str:
        name, *words = line.split()
        before = tree()
        main = runpy.run_path(str(ROOT / 'tools' / f'{name}.py'))['main']
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        text = capsys.readouterr().err
        assert end.value.code == 2, text
        (error,) = [x for x in text.splitlines() if x.startswith('error: ')]
        assert 'Traceback' not in text
        assert tree() == before, 'something was left behind'
        return error

    return call


def tree() -> list[str]:
    """All that is in the current folder."""
    return sorted(str(path) for path in Path('.').rglob('*'))


# -- configs ---------------------------------------------------------------


@pytest.mark.parametrize('command', [PRUNE, TRAIN, TEST])
@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('x = nowhere', "line 23: name 'nowhere' is not defined"),
        ('1 / 0', 'line 23: division by zero'),
        ("raise RuntimeError('mine')", 'line 23: RuntimeError: mine'),
        ('exit(3)', 'line 23: SystemExit: 3'),
        ('def f(:', 'line 23: SyntaxError: invalid syntax'),
        ("open('no.txt')", 'line 23: no.txt: there is no such file'),
        ('model = 3', '`model` of tiny_config.py has to be a dict, found 3'),
        ("_base_ = 'no.py'", 'no.py: there is no such file'),
        (
            "custom_imports = dict(imports=['nowhere'])",
            "custom modules from {'imports': ['nowhere']}",
        ),
    ],
)
def test_a_config_that_fails_is_named_with_the_line(
    folder, refused, command, text, message
):
    write_config(folder, f'{CONFIG}{text}\n')
    error = refused(command)
    assert message in error
    assert 'tiny_config.py' in error


def test_an_error_in_a_base_config_names_that_file(folder, refused):
    (folder / 'base.py').write_text('x = 1\ny = x.z\n')
    write_config(folder, f"_base_ = 'base.py'\n{CONFIG}")
    assert f'{folder / "base.py"}, line 2: AttributeError' in refused(TRAIN)


@pytest.mark.parametrize('name', ['nowhere.py', '.', 'dense.pth', 'x.json'])
def test_what_is_no_config_is_named(folder, refused, name):
    (folder / 'x.json').write_text('{"model": }')
    assert name in refused(TRAIN.replace('tiny_config.py', name))


@pytest.mark.parametrize(
    ('command', 'option', 'message'),
    [
        (TRAIN, 'train_dataloader=5', '`train_dataloader`'),
        (PRUNE, 'env_cfg=3', '`env_cfg`'),
        (TEST, 'env_cfg.dist_cfg=3', '`env_cfg.dist_cfg`'),
        (PRUNE, 'pruning=None', 'has no `pruning` entry'),
        (PRUNE, 'pruning=3', '`pruning`'),
        (PRUNE, 'model.width=[3', "'model.width=[3': its brackets"),
        (PRUNE, '=', "takes KEY=VALUE, found '='"),
        (TRAIN, 'model..width=3', "takes KEY=VALUE, found 'model..width=3'"),
        (TRAIN, 'custom_hooks=[3]', '`custom_hooks.0`'),
        (TRAIN, 'default_hooks.logger=3', '`default_hooks.logger`'),
        (TRAIN, 'optim_wrapper.optimizer=3', '`optim_wrapper.optimizer`'),
        (TRAIN, 'optim_wrapper.optimizer.lr=nan', '.lr` of tiny_config.py'),
        (TRAIN, 'train_cfg.max_epochs=0', '`train_cfg.max_epochs`'),
        (TRAIN, 'randomness.seed=x', '`randomness.seed`'),
        (TRAIN, 'log_level=LOUD', '`log_level`'),
        (PRUNE, 'family=a/b', '`family`'),
        (TRAIN, 'model.width.x=1', '--cfg-options model.width.x=1 does not'),
        # Built only when it is needed; the key is found all the same.
        (TRAIN, 'model.depth=3', 'at model: TypeError: TinyModel'),
        (TRAIN, 'optim_wrapper.optimizer.lr=-1', 'at optim_wrapper.optimizer'),
        (
            TRAIN,
            'optim_wrapper.optimizer.type=No',
            '`optim_wrapper.optimizer`',
        ),
        (TRAIN, 'param_scheduler.type=No', 'param_scheduler'),
        (
            TRAIN,
            'train_dataloader.sampler.type=No',
            'at train_dataloader.sampler: No is not in',
        ),
        (TEST, 'test_evaluator.type=No', 'at test_evaluator: No is not in'),
        # The model runs, and fails: its module is named.
        (TRAIN, 'model.width=0', 'cannot be trained, at stem: Given groups=1'),
        (TRAIN, 'load_from=no.pth', 'no checkpoint at no.pth'),
        # A training that cannot be is refused before anything is pruned.
        (TUNE, 'optim_wrapper.optimizer.type=No', '`optim_wrapper.optimizer`'),
        (TUNE, 'test_evaluator.type=No', 'at test_evaluator'),
        (TUNE, 'train_dataloader.dataset.folder=/no', '; nothing was done'),
    ],
)
def test_an_entry_of_the_config_is_named(
    folder, refused, command, option, message
):
    error = refused(command, '--cfg-options', option)
    assert message in error
    if command is not PRUNE or 'cfg-options' not in error:
        assert (
            'tiny_config.py' in error
            or '--cfg-options' in error
            or ('no.pth' in error)
        )


# -- checkpoints -----------------------------------------------------------


def damage(path: str, change) -> None:
    checkpoint = torch.load(path)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    'change',
    [
        lambda c: c['optimizer'].update(param_groups=3),
        lambda c: c['optimizer'].update(param_groups=[]),
        lambda c: c['optimizer'].update(state=[1]),
        lambda c: c['optimizer'].update(state={0: 3}),
        lambda c: c['optimizer'].update(state={99: {'a': torch.ones(1)}}),
    ],
)
def test_a_malformed_optimizer_is_refused_before_the_pruning(
    folder, refused, change
):
    damage('dense.pth', change)
    error = refused(TUNE)
    assert 'the `optimizer` of dense.pth cannot be carried on' in error
    assert '--retrain' in error


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.update(meta=[1]), 'dense.pth cannot be gone on from'),
        (lambda c: c['meta'].clear(), 'dense.pth cannot be gone on from: Key'),
        (
            lambda c: c['meta'].update(epoch=1, iter=2),
            'dense.pth cannot be gone on from',
        ),
    ],
)
def test_a_checkpoint_that_no_run_wrote_is_not_resumed(
    folder, refused, change, message
):
    damage('dense.pth', change)
    if 'iter' in torch.load('dense.pth')['meta']:
        damage('dense.pth', lambda c: c.update(optimizer=3))
    assert message in refused(TRAIN, '--resume', 'dense.pth')


@pytest.mark.parametrize('command', [PRUNE, TEST])
def test_weights_that_cannot_be_copied_are_the_files_fault(
    folder, refused, command
):
    damage(
        'dense.pth',
        lambda c: c['state_dict'].update(
            {k: v.to('meta') for k, v in c['state_dict'].items()}
        ),
    )
    assert 'dense.pth cannot be loaded' in refused(command)


# -- places ----------------------------------------------------------------


@pytest.mark.parametrize('command', [PRUNE, TRAIN, TEST])
@pytest.mark.parametrize(
    ('place', 'message'),
    [
        ('tiny_config.py', 'is a file; give a folder'),
        ('tiny_config.py/a/b', 'is a file; give a folder'),
        ('x' * 300, 'the name is too long'),
        ('/dev/null/x', 'is a file; give a folder'),
        ('link', 'is a file; give a folder'),
        ('a\0b', 'embedded null'),
    ],
)
def test_where_nothing_can_be_written(
    folder, refused, command, place, message
):
    (folder / 'link').symlink_to('nowhere')
    flag = '--output-dir' if command is PRUNE else '--work-dir'
    error = refused(command, flag, place)
    assert message in error
    assert 'Errno' not in error


@pytest.fixture
def small_disk():
    """A disk on which no large file fits."""
    # Python ignores the signal that comes with it.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (PRUNE, 'tiny_pruned.pth: the file would be larger than is allowed'),
        (TRAIN, 'epoch_1.pth could not be written (File too large)'),
    ],
)
def test_a_full_disk_leaves_nothing_half(
    folder, refused, small_disk, command, message
):
    assert message in refused(command)


def test_what_was_finished_before_a_failure_stays_and_is_named(folder, capsys):
    main = runpy.run_path(str(ROOT / 'tools/prune_and_retrain.py'))['main']
    unreadable = ['--cfg-options', 'train_dataloader.dataset.noise=x']
    with pytest.raises(SystemExit) as end:
        main([*TUNE.split()[1:], *unreadable])
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert 'tiny_config.py cannot be trained: TypeError: ' in error
    assert error.endswith(
        'the pruned models in out are good, go on with --resume'
    )
    assert (folder / 'out' / 'tiny_structured_pruned.pth').exists()
    assert not (folder / 'out' / 'fine_tuned').exists()


# -- flags -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (f'{PRUNE} --gpus 0', '--gpus is at least 1, found 0'),
        (f'{PRUNE} --gpus x', "--gpus: invalid int value: 'x'"),
        (f'{PRUNE} --importance l3', "--importance: invalid choice: 'l3'"),
        (f'{PRUNE} --nothing', 'unrecognized arguments: --nothing'),
        (f'{PRUNE} --seed -1', '--seed must not be negative, found -1'),
        (f'{TUNE} --distill inf', '--distill is finite, found inf'),
        (f'{TUNE} --max-keep-ckpts -5', '--max-keep-ckpts is at least -1'),
        (f'{PRUNE} --device xyz', '--device is cpu, cuda or cuda:N'),
        (f'{PRUNE} --device cpu:3', 'the last one is cpu:0'),
        ('prune_and_retrain', 'are required: config, checkpoint'),
        ('demo --epochs 0', '--epochs is at least 1'),
        ('sweep_vit nowhere.py', 'no config at nowhere.py'),
        ('make_keyframe a --image-size 3', 'give the size as WxH'),
        ('make_keyframe a --seed -1', '--seed must not be negative'),
        ('visualize c.py x.pth --score-thr 2', 'must lie in [0, 1]'),
        ('report nowhere', 'nowhere is no folder'),
        ('compare_rounds nowhere', 'nowhere has no rounds.json'),
        (f'{DOOR} --lr nan', '--lr must not be negative, found nan'),
        (f'{DOOR} --lr inf', '--lr is finite, found inf'),
        (f'{DOOR} --epochs 0', '--epochs is at least 1'),
        (f'{DOOR} --rate nan', '--rate must lie in [0, 1), found nan'),
        (f'{DOOR} --batch_size 0', '--batch_size is at least 1'),
        (f'{DOOR} --print_freq 0', '--print_freq is at least 1'),
        (f'{DOOR} --init .', '--init . is a folder'),
        (
            f'{DOOR} --arch vit_tiny --vit_structured --rate 0.7',
            'every group keeps one, which lets only 24 (66.7%) be removed; '
            'lower the sparsity',
        ),
    ],
)
def test_a_flag_that_cannot_be_is_named(folder, refused, line, message):
    assert message in refused(line)


@pytest.mark.parametrize(
    ('name', 'text', 'line'),
    [
        ('report.json', '{', 'report .'),
        ('report.json', '{"models": 3}', 'report .'),
        ('report.json', '{"metrics": 3, "title": "x"}', 'report .'),
        ('rounds.json', '{', 'compare_rounds . --out o'),
        ('rounds.json', '[]', 'compare_rounds . --out o'),
        (
            'rounds.json',
            '{"rounds": [{"metrics": {"Acc@1": 1}}]}',
            'compare_rounds . --out o',
        ),
        ('w/c/rounds.json', '{', 'sweep_vit c.py --work-dir w'),
        ('out/report.json', '{', f'{PRUNE} --resume'),
    ],
)
def test_damaged_results_are_named(folder, refused, name, text, line):
    (folder / 'c.py').touch()
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    error = refused(line)
    assert Path(name).name in error or 'what . holds' in error


@pytest.mark.parametrize('flag', [['--debug'], []])
def test_debug_shows_the_cause(folder, monkeypatch, flag):
    write_config(folder, f'{CONFIG}1 / 0\n')
    main = runpy.run_path(str(ROOT / 'tools' / 'train.py'))['main']
    if not flag:
        monkeypatch.setenv('MMPRUNE_TRACEBACK', '1')
    with pytest.raises(ValueError, match='division by zero') as caught:
        main(['tiny_config.py', *flag])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
