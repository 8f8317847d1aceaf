"""When the benchmarks say that a goal is met, worked out by hand."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """Benchmarks import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    yield
    for name, module in list(sys.modules.items()):
        file = getattr(module, '__file__', None)
        if file and Path(file).parent == ROOT / 'benchmarks':
            del sys.modules[name]


def passed(**stages):
    """All of our stages, but for what is said."""
    ours = ('build', 'prune', 'reload', 'train')
    return dict(stages={**dict.fromkeys(ours, 'ok'), **stages})


@pytest.mark.parametrize(
    'stages, expected',
    [
        (dict(export='ok'), True),
        (dict(export='- (the dense one does not)'), True),
        (dict(export='differs by 0.1'), False),
        (dict(export='ok', train='a parameter has not moved'), False),
        (dict(export='ok', torch_pruning='nothing was pruned'), True),
    ],
)
def test_a_family_passes_if_it_exports_where_the_dense_one_does(
    stages, expected
):
    from zoo_verdicts import success

    assert success(passed(**stages)) is expected


def test_a_family_that_was_not_trained_has_not_passed():
    from zoo_verdicts import success

    assert not success(dict(stages=dict(build='ok', prune='ok', reload='ok')))


def test_of_what_is_prunable_as_much_goes_as_the_ratio_says():
    from zoo_verdicts import least

    assert least(0.3) == pytest.approx(0.25)
    assert least(0.6) == pytest.approx(0.5)


@pytest.fixture
def known(tmp_path):
    """Every method of the CIFAR tables is right about 50 of 100 pictures."""
    import cifar_table

    store = cifar_table.Store(tmp_path)
    for name in (*cifar_table.OURS, *cifar_table.THEIRS):
        for ratio in cifar_table.RATIOS:
            write(store, name, ratio, '10' * 50)
    return store


def write(store, name, ratio, right):
    import cifar_table

    store.write(
        cifar_table.key(20, name, ratio, 'before'),
        accuracy=100 * right.count('1') / len(right),
        right=right,
    )


ASKED = Namespace(depths=[20], stages=['before'])
PEER = 'torch-pruning: Taylor, global'
EVERY = 9  # three ratios by three kinds


@pytest.mark.parametrize(
    'more, code',
    [
        # Of n pictures on which the two differ the peer names all. 9
        # comparisons share 5 %: sure where n > 2.77 sqrt(n), from 8 on.
        (7, 0),
        (8, 1),
    ],
)
def test_the_peer_is_ahead_by_more_pictures_than_chance_explains(
    known, more, code
):
    import cifar_table

    write(known, PEER, 0.5, '11' * more + '10' * (50 - more))
    ahead, compared = cifar_table.behind(known, ASKED)
    assert compared == EVERY
    assert len(ahead) == 2
    assert all('ResNet-20, 50%' in point for point, _ in ahead)
    assert cifar_table.verdict(ahead, compared, EVERY)[0] == code


def test_how_likely_a_lead_is_by_chance(known):
    import cifar_table

    write(known, PEER, 0.5, '11' * 4 + '10' * 46)
    (_, first), (_, second) = cifar_table.behind(known, ASKED)[0]
    # 4 of 4 are two standard deviations: 4.55 % of a normal distribution.
    assert first == second == pytest.approx(0.0455, abs=1e-4)


def test_as_many_pictures_are_not_behind(known):
    import cifar_table

    write(known, PEER, 0.5, '01' * 50)
    assert cifar_table.behind(known, ASKED) == ([], EVERY)


def test_what_is_not_measured_is_not_compared(known):
    import cifar_table

    (path,) = known.folder.glob('20_fisher_0.7_*')
    path.unlink()
    ahead, compared = cifar_table.behind(known, ASKED)
    assert (ahead, compared) == ([], EVERY - 2)
    assert cifar_table.verdict(ahead, compared, EVERY)[0] == 1
    assert cifar_table.verdict(ahead, EVERY, EVERY)[0] == 0


@pytest.mark.parametrize(
    'longer, recovered, goal',
    [(40.0, 39.5, 0), (40.0, 39.4, 1), (40.0, 41.0, 0), (4.9, 4.9, 1)],
)
def test_the_detector_may_be_half_a_point_behind(longer, recovered, goal):
    import mini_world_detector as benchmark

    code, text = benchmark.verdict(longer, recovered)
    assert code == goal
    assert f'{recovered - longer:+.1f} AP' in text
