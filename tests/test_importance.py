"""Criteria against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from mmprune.groups import PruneGroup, Slice
from mmprune.importance import BNScale, Magnitude, Random, Taylor
from mmprune.registry import TASK_UTILS
from mmprune.statistics import Statistics, calibrate

GROUP = PruneGroup(
    'g',
    'neuron',
    2,
    (Slice('0.weight'), Slice('0.bias')),
    (Slice('1.weight', 1),),
)


def model():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].weight.data = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
    net[0].bias.data = torch.tensor([100.0, 100.0])
    net[1].weight.data = torch.tensor([[-2.0, 6.0]])
    net[1].bias.data.zero_()
    return net


def stats(net=None):
    return calibrate(net or model(), [GROUP], set())


def test_l1_is_the_mean_size_of_producer_and_consumer_weights():
    # ((3 + 4) / 2 + 2) / 2 and ((1 + 1) / 2 + 6) / 2; biases do not count
    assert Magnitude()(GROUP, stats()).tolist() == [2.75, 3.5]


def test_l2_is_the_root_of_the_mean_square():
    expected = [(12.5**0.5 + 2) / 2, (1 + 6) / 2]
    assert Magnitude(p=2)(GROUP, stats()).tolist() == pytest.approx(expected)


def test_magnitude_of_a_group_without_matrices_takes_its_vectors():
    group = PruneGroup('b', 'channel', 2, (Slice('0.bias'),))
    assert Magnitude()(group, stats()).tolist() == [100, 100]


def test_only_l1_and_l2_exist():
    with pytest.raises(ValueError, match='found 3'):
        Magnitude(p=3)


def test_bn_scale_is_the_absolute_scale():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    net[1].weight.data = torch.tensor([0.5, -2.0, 1.0])
    slices = tuple(Slice(f'{i}.weight') for i in range(2))
    group = PruneGroup('c', 'channel', 3, slices)
    found = BNScale()(group, calibrate(net, [group], set()))
    assert found.tolist() == [0.5, 2.0, 1.0]


def test_bn_scale_has_no_score_without_a_batch_norm():
    assert BNScale()(GROUP, stats()) is None


def loss(net, x):
    return net(x).sum()


def test_taylor_is_the_squared_change_when_the_consumer_goes():
    # d loss / d consumer = the hidden units, 3 - 4 + 100 and 1 + 1 + 100
    found = calibrate(model(), [GROUP], {'grad'}, [torch.ones(1, 2)], loss)
    expected = [(-2 * 99) ** 2, (6 * 102) ** 2]
    assert Taylor()(GROUP, found).tolist() == expected


def test_taylor_uses_the_mean_gradient_over_batches():
    batches = [torch.ones(1, 2), torch.zeros(1, 2)]
    found = calibrate(model(), [GROUP], {'grad'}, batches, loss)
    expected = [(-2 * 99.5) ** 2, (6 * 101) ** 2]
    assert Taylor()(GROUP, found).tolist() == expected
    assert found.num_batches == 2


def test_taylor_reads_producers_where_a_consumer_is_a_logit():
    group = PruneGroup(
        'g', 'point', 2, (Slice('0.bias'),), (Slice('1.weight', 1, fill=-1.0),)
    )
    found = calibrate(model(), [group], {'grad'}, [torch.ones(1, 2)], loss)
    expected = [(100 * -2) ** 2, (100 * 6) ** 2]
    assert Taylor()(group, found).tolist() == expected


def test_calibration_sees_frozen_weights_and_leaves_no_trace():
    net = model()
    net[1].weight.requires_grad_(False)
    found = calibrate(net, [GROUP], {'grad'}, [torch.ones(1, 2)], loss)
    assert '1.weight' in found.grad
    assert not net[1].weight.requires_grad
    assert net[0].weight.grad is None


@pytest.mark.parametrize(
    ('batches', 'loss_fn', 'message'),
    [
        ([torch.ones(1, 2)], None, 'needs a loss'),
        ([], loss, 'needs calibration data'),
        ([torch.full((1, 2), float('nan'))], loss, 'calibration loss is nan'),
        (
            [torch.ones(1, 2)],
            lambda net, x: net[1].bias.sum(),
            'does not depend',
        ),
    ],
)
def test_calibration_that_cannot_work_is_refused(batches, loss_fn, message):
    with pytest.raises(ValueError, match=message):
        calibrate(model(), [GROUP], {'grad'}, batches, loss_fn)


def test_unknown_statistic_is_named():
    with pytest.raises(ValueError, match='hessian'):
        calibrate(model(), [GROUP], {'hessian'})


def test_random_depends_on_seed_and_group_only():
    empty = Statistics({})
    one = Random(seed=1)(GROUP, empty)
    assert torch.equal(one, Random(seed=1)(GROUP, empty))
    assert not torch.equal(one, Random(seed=2)(GROUP, empty))
    other = PruneGroup('h', 'neuron', 2, ())
    assert not torch.equal(one, Random(seed=1)(other, empty))


@pytest.mark.parametrize('name', ['Magnitude', 'BNScale', 'Taylor', 'Random'])
def test_a_config_finds_every_criterion(name):
    assert type(TASK_UTILS.build({'type': f'mmprune.{name}'})).__name__ == name
