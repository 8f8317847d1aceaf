"""Criteria against numbers worked out by hand.

One module: all of them score the same few groups, and a new one comes here.
"""

import pytest
import torch
from torch import nn

from mmprune.calibration import calibrate, surviving_weights
from mmprune.criteria import criterion_config
from mmprune.groups import PruneGroup, Slice
from mmprune.importance import (
    FPGM,
    LAMP,
    RIA,
    Activation,
    BNScale,
    Fisher,
    GroupNormalized,
    Magnitude,
    Random,
    Remain,
    Saliency,
    Taylor,
    Wanda,
    WandaVariant,
)
from mmprune.pruners import StructuredPruner, WeightPruner
from mmprune.registry import TASK_UTILS
from mmprune.run.options import PruningOptions
from mmprune.statistics import Statistics

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
    with pytest.raises(ValueError, match='fisher'):
        calibrate(model(), [GROUP], {'fisher'})


def test_random_depends_on_seed_and_group_only():
    empty = Statistics({})
    one = Random(seed=1)(GROUP, empty)
    assert torch.equal(one, Random(seed=1)(GROUP, empty))
    assert not torch.equal(one, Random(seed=2)(GROUP, empty))
    other = PruneGroup('h', 'neuron', 2, ())
    assert not torch.equal(one, Random(seed=1)(other, empty))


NAMES = (
    *('Activation', 'BNScale', 'Magnitude', 'Random', 'Remain', 'Saliency'),
    *('Taylor', 'Fisher', 'FPGM', 'GroupNormalized', 'LAMP'),
)


@pytest.mark.parametrize('name', NAMES)
def test_a_config_finds_every_criterion(name):
    assert type(TASK_UTILS.build({'type': f'mmprune.{name}'})).__name__ == name


# Heads of width 2 of a fused projection, and neurons.
HEADS = PruneGroup(
    'attn',
    'head',
    2,
    (
        Slice('qkv.weight', 0, block=2, copies=3),
        Slice('qkv.bias', 0, block=2, copies=3),
    ),
    (Slice('proj.weight', 1, block=2),),
)
NEURONS = PruneGroup(
    'mlp',
    'neuron',
    3,
    (Slice('fc1.weight'), Slice('fc1.bias')),
    (Slice('fc2.weight', 1),),
)


def block() -> nn.ModuleDict:
    sizes = dict(qkv=(3, 12), proj=(4, 3), fc1=(3, 3), fc2=(3, 3))
    net = nn.ModuleDict({k: nn.Linear(*size) for k, size in sizes.items()})
    with torch.no_grad():
        net['qkv'].weight.copy_(torch.arange(12.0)[:, None].expand(12, 3))
        net['fc1'].weight.copy_(
            torch.tensor([[1.0, -2, 0], [0, 3, 4], [0, 0, 1]])
        )
        net['proj'].weight.fill_(1)
        net['fc2'].weight.fill_(2)
    return net


def test_sums_count_the_rows_of_a_head_and_the_row_of_a_neuron():
    found = calibrate(block(), (), set())
    rows = Magnitude(reduce='sum', sides='producers')
    # head 0: rows 0, 1 (q), 4, 5 (k), 8, 9 (v), three columns each
    assert rows(HEADS, found).tolist() == [3 * 27, 3 * 39]
    assert rows(NEURONS, found).tolist() == [3, 7, 1]
    sides = Magnitude(reduce='sum')
    assert sides(HEADS, found).tolist() == [81 + 6, 117 + 6]
    assert sides(NEURONS, found).tolist() == [9, 13, 7]
    euclidean = Magnitude(p=2, reduce='sum', sides='producers')
    assert euclidean(NEURONS, found).tolist() == [5**0.5, 5, 1]


def test_sums_have_no_score_without_a_matrix():
    group = PruneGroup('b', 'channel', 2, (Slice('0.bias'),))
    assert Magnitude(reduce='sum')(group, stats()) is None
    with pytest.raises(ValueError, match="found 'consumers'"):
        Magnitude(sides='consumers')(GROUP, stats())
    with pytest.raises(ValueError, match="found 'median'"):
        Magnitude(reduce='median')


def test_remain_counts_the_weights_that_survive():
    net = block()
    with torch.no_grad():
        net['fc2'].weight.zero_()
        net['fc1'].weight.copy_(
            torch.tensor([[1.0, 2, 3], [4, 0, 0], [5, 6, 0]])
        )
    # of 18 weights 14 (13.5) go, and 3; 4; 5 and 6 stay
    survivors = surviving_weights(
        dict(net.named_parameters()), [NEURONS], 0.75
    )
    assert sum(int(m.sum()) for m in survivors.values()) == 4
    found = calibrate(net, [NEURONS], {'survivors'}, sparsity=0.75)
    assert Remain()(NEURONS, found).tolist() == [1, 1, 2]


class Branch(nn.Module):
    """One group of two neurons with known outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(1, 2), nn.Linear(2, 1)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor([[1.0], [-2.0]]))
            self.fc1.bias.zero_()
            self.fc2.weight.copy_(torch.tensor([[3.0, 5.0]]))
            self.fc2.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x))


PAIR = PruneGroup(
    'mlp',
    'neuron',
    2,
    (Slice('fc1.weight'), Slice('fc1.bias')),
    (Slice('fc2.weight', 1),),
)


@pytest.mark.parametrize('split', [False, True], ids=['one', 'two'])
@pytest.mark.parametrize(
    ('criterion', 'expected'),
    [
        (Activation(), [2, 4]),  # mean |x w| of x = 1, 3
        (Activation(p=2), [5**0.5, 20**0.5]),
        # d(sum of outputs) / d fc1 = fc2 * sum of x: |1*3*4|, |-2*5*4|
        (Saliency(), [12, 40]),
    ],
)
def test_outputs_and_gradients_give_the_number_of_a_hand(
    criterion, expected, split
):
    batch = torch.tensor([[1.0], [3.0]])
    # Two batches: outputs are averaged, gradients of a sum halved.
    batches = batch.split(1) if split else [batch]
    found = calibrate(
        Branch(), [PAIR], criterion.needs, batches, lambda net, x: net(x).sum()
    )
    if split and isinstance(criterion, Saliency):
        expected = [value / 2 for value in expected]
    assert criterion(PAIR, found).tolist() == pytest.approx(expected)


def test_an_output_that_was_not_seen_has_no_score():
    assert Activation()(GROUP, stats()) is None
    with pytest.raises(ValueError, match='activations needs a loss'):
        calibrate(model(), [GROUP], {'activation'}, [torch.ones(1, 2)])


def test_single_weights_are_scored_one_by_one():
    found = calibrate(
        model(), (), {'grad'}, [torch.ones(1, 2)], loss, weights=['1.weight']
    )
    # d loss / d consumer = the hidden units, 99 and 102
    assert Taylor().weights('1.weight', found).tolist() == [[2 * 99, 6 * 102]]
    assert Saliency().weights('1.weight', found).tolist() == [[198, 612]]
    assert Magnitude(p=2).weights('1.weight', found).tolist() == [[2, 6]]
    drawn = Random(seed=1).weights('1.weight', found)
    assert drawn.shape == (1, 2)
    assert torch.equal(drawn, Random(seed=1).weights('1.weight', found))
    with pytest.raises(ValueError, match="weight '0.weight'.*not depend"):
        calibrate(
            model(),
            (),
            {'grad'},
            [torch.ones(1, 2)],
            lambda net, x: net[1].weight.sum(),
            weights=['0.weight'],
        )


def read(values, weight, kind=nn.Linear):
    """Statistics of a layer whose inputs have these squares."""
    found = Statistics(tensors={'fc.weight': weight}, kinds={'fc': kind})
    shape = (-1, 1) if kind is not nn.Linear else (1, -1)
    found.inputs['fc.weight'] = torch.tensor(values).view(shape)
    return found


def test_wanda_multiplies_a_weight_by_the_norm_of_its_input():
    weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    found = Wanda().weights('fc.weight', read([9.0, 4.0], weight))
    assert found.tolist() == [[3.0, 4.0], [9.0, 8.0]]


def test_wanda_scores_a_unit_by_the_weights_that_read_it():
    net = model()
    found = calibrate(
        net,
        [GROUP],
        {'inputs'},
        [torch.tensor([[1.0, 0.0]])],
        lambda m, x: m(x).sum(),
    )
    # The first layer gives 103 and 101; they are read by -2 and 6.
    assert Wanda()(GROUP, found).tolist() == [206.0, 606.0]


def test_the_variant_is_the_part_of_a_row_that_is_gone():
    weight = torch.tensor([[1.0, -2.0, 5.0], [1.0, 1.0, 2.0]])
    found = WandaVariant().weights('fc.weight', read([1.0] * 3, weight))
    assert found.tolist() == [[0.125, 0.375, 1.0], [0.25, 0.5, 1.0]]


def test_the_variant_prunes_what_a_common_alpha_does():
    """With bisection as in the paper, at the sparsity that it ends with."""
    weight = torch.randn(40, 30)
    score = WandaVariant().weights('fc.weight', read([1.0] * 30, weight))
    ordered, order = weight.abs().sort(dim=1)
    parts = ordered.cumsum(1) / ordered.sum(1, keepdim=True)
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        gone = parts <= alpha
        sparsity = gone.float().mean().item()
        if abs(sparsity - 0.5) <= 0.001 or high - low < 0.001:
            break
        low, high = (low, alpha) if sparsity > 0.5 else (alpha, high)
        alpha = (low + high) / 2
    theirs = torch.zeros_like(gone).scatter(1, order, gone)
    ours = torch.zeros(1200, dtype=torch.bool)
    ours[score.flatten().argsort()[: int(theirs.sum())]] = True
    assert torch.equal(ours.view(40, 30), theirs)


def test_ria_adds_the_parts_of_row_and_column():
    weight = torch.tensor([[1.0, -3.0], [3.0, 1.0]])
    found = RIA().weights('fc.weight', read([16.0, 1.0], weight))
    # (1/4 + 1/4) * 2 and (3/4 + 3/4) * 1 in the first row.
    assert found.tolist() == [[1.0, 1.5], [3.0, 0.5]]


@pytest.mark.parametrize('criterion', [Wanda(), WandaVariant(), RIA()])
def test_a_transposed_weight_has_transposed_scores(criterion):
    """GPT-2 holds weights as [in, out]."""

    class Conv1D(nn.Module):
        pass

    weight, squares = torch.randn(5, 3), [1.0, 4.0, 9.0]
    rows = criterion.weights('fc.weight', read(squares, weight))
    turned = read(squares, weight.T.contiguous(), Conv1D)
    assert torch.allclose(criterion.weights('fc.weight', turned), rows.T)


def test_ria_without_a_power_is_refused():
    with pytest.raises(ValueError, match='power is at least 0'):
        RIA(power=-1)


def test_inputs_of_grouped_convolutions_are_those_of_their_rows():
    net = nn.Sequential(nn.Conv2d(4, 2, 1, groups=2, bias=False))
    found = calibrate(
        net,
        [],
        {'inputs'},
        [torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)],
        lambda m, x: m(x).sum(),
        weights=['0.weight'],
    )
    assert found.inputs['0.weight'].flatten(1).tolist() == [
        [1.0, 4.0], [9.0, 16.0],
    ]  # fmt: skip


@pytest.mark.parametrize('kind', ['WandaVariant', 'RIA'])
def test_what_scores_only_weights_prunes_no_units(kind):
    with pytest.raises(ValueError, match=f'{kind} scores single weights'):
        StructuredPruner(0.5, importance=dict(type=f'mmprune.{kind}'))


def test_the_command_refuses_it_too():
    with pytest.raises(ValueError, match='--importance ria scores single'):
        PruningOptions(importance='ria', mode='both')


def test_fisher_weighs_squares_by_squared_gradients_of_batches():
    batches = [torch.ones(1, 2), torch.zeros(1, 2)]
    found = calibrate(model(), [GROUP], Fisher().needs, batches, loss)
    # d loss / d consumer is 99 and 102, then 100 and 100; of the first layer
    # it is -2 and 6 times the input, 1 and then 0. Biases do not count.
    readers = [4 * (99**2 + 100**2) / 2, 36 * (102**2 + 100**2) / 2]
    writers = [(9 + 16) * 4 / 2, (1 + 1) * 36 / 2]
    assert Fisher(sides='producers')(GROUP, found).tolist() == writers
    both = [a + b for a, b in zip(readers, writers, strict=True)]
    assert Fisher()(GROUP, found).tolist() == both
    assert Fisher().weights('1.weight', found).tolist() == [readers]


def test_fisher_prunes_single_weights():
    net = nn.Sequential(nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[2.0, 1.0]])
    pruner = WeightPruner(0.5, importance=dict(type='mmprune.Fisher'))
    # The gradient is the input: 4 * 1 against 1 * 9.
    pruner(net, [torch.tensor([[1.0, 3.0]])], lambda m, x: m(x).sum())
    assert net[0].weight.tolist() == [[0, 1]]


def test_fpgm_is_the_distance_to_all_others():
    group = PruneGroup('g', 'channel', 3, (Slice('w'), Slice('b')))
    tensors = dict(
        w=torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]]),
        b=torch.tensor([7.0, 8.0, 9.0]),
    )
    # 5 between the first two, 10 to the third, sqrt(9 + 36) between the rest
    found = FPGM()(group, Statistics(tensors)).tolist()
    assert found == pytest.approx([15, 5 + 45**0.5, 10 + 45**0.5])


def test_fpgm_of_heads_compares_whole_heads():
    # Rows of a head differ by 2 from those of the other: 6 rows, 3 columns.
    found = FPGM()(HEADS, calibrate(block(), (), set())).tolist()
    assert found == pytest.approx([(18 * 4) ** 0.5] * 2)


def test_fpgm_has_no_score_without_a_matrix():
    group = PruneGroup('b', 'channel', 2, (Slice('0.bias'),))
    assert FPGM()(group, stats()) is None
    assert LAMP()(group, stats()) is None
    assert GroupNormalized()(group, stats()) is None


def test_lamp_divides_a_square_by_those_that_are_not_smaller():
    weight = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    found = LAMP().weights('w', Statistics(dict(w=weight)))
    # Ties in order: the first 2 still has the second beside it.
    assert found.tolist() == [[1 / 18, 1], [4 / 17, 4 / 13]]


def test_lamp_of_units_takes_their_summed_squares():
    # 25 + 4 and 2 + 36
    assert LAMP()(GROUP, stats()).tolist() == pytest.approx([29 / 67, 1])


def test_lamp_lets_layers_compare_as_they_are():
    """Ten times as large, a layer loses as much; one whose weights are more
    alike loses none before."""
    tensors = dict(
        small=torch.tensor([[1.0], [2.0], [4.0], [8.0]]),
        large=torch.tensor([[10.0], [20.0], [40.0], [80.0]]),
        alike=torch.tensor([[5.0], [5.0], [5.0], [6.0]]),
    )
    groups = [
        PruneGroup(name, 'channel', 4, (Slice(name),)) for name in tensors
    ]
    plan = StructuredPruner(0.5, importance=LAMP())(
        nn.Module(), groups, stats=Statistics(tensors)
    )
    # 1/85, 4/84, 16/80 and 1 of the first two, 25/111 at least of the third:
    # divided by their means it would lose two.
    assert plan.keep == dict(small=[3], large=[3])


def test_group_normalized_is_the_groups_norm_by_its_mean():
    # 9 + 16 + 4 and 1 + 1 + 36; biases do not count
    expected = [29 / 33.5, 38 / 33.5]
    found = GroupNormalized()(GROUP, stats())
    assert found.tolist() == pytest.approx(expected)
    net = model()
    for layer in net:
        layer.weight.data *= 1000
    found = GroupNormalized()(GROUP, stats(net))
    assert found.tolist() == pytest.approx(expected)


def test_group_normalized_counts_scales_of_norms_unless_told_not_to():
    slices = (Slice('0.weight'), Slice('1.weight'), Slice('1.bias'))
    group = PruneGroup('g', 'channel', 2, slices)
    known = Statistics(
        {
            '0.weight': torch.tensor([[1.0], [2.0]]),
            '1.weight': torch.tensor([3.0, 1.0]),
            '1.bias': torch.tensor([50.0, 0.0]),
        }
    )
    # 1 + 9 and 4 + 1
    found = GroupNormalized()(group, known).tolist()
    assert found == pytest.approx([10 / 7.5, 5 / 7.5])
    found = GroupNormalized(norms=False)(group, known).tolist()
    assert found == pytest.approx([1 / 2.5, 4 / 2.5])


def test_group_normalized_takes_another_criterion():
    ones = GroupNormalized(dict(type='mmprune.Magnitude', p=1), power=1)
    # 3 + 4 + 2 and 1 + 1 + 6
    expected = [9 / 8.5, 8 / 8.5]
    assert ones(GROUP, stats()).tolist() == pytest.approx(expected)


def test_group_taylor_sums_the_sizes_of_first_order_changes():
    known = Statistics(
        {
            '0.weight': torch.tensor([[1.0, -1.0], [2.0, 0.0]]),
            '0.bias': torch.tensor([9.0, 9.0]),
            '1.weight': torch.tensor([[1.0, 3.0]]),
        },
        grad={
            '0.weight': torch.tensor([[2.0, 2.0], [1.0, 5.0]]),
            '0.bias': torch.tensor([9.0, 9.0]),
            '1.weight': torch.tensor([[-4.0, 1.0]]),
        },
    )
    # 2 + 2 + 4 and 2 + 0 + 3
    found = TASK_UTILS.build(criterion_config('group_taylor'))(GROUP, known)
    assert found.tolist() == pytest.approx([8 / 6.5, 5 / 6.5])


def test_group_taylor_leaves_out_what_the_loss_does_not_reach():
    known = Statistics(
        {'0.weight': torch.ones(2, 2), '1.weight': torch.ones(1, 2)},
        grad={'1.weight': torch.tensor([[1.0, 3.0]])},
    )
    taylor = TASK_UTILS.build(criterion_config('group_taylor'))
    assert taylor(GROUP, known).tolist() == [0.5, 1.5]
    assert taylor(GROUP, Statistics(known.tensors)) is None


def test_group_normalized_needs_a_criterion_of_single_weights():
    with pytest.raises(ValueError, match='FPGM does not score single'):
        GroupNormalized(dict(type='mmprune.FPGM'))


@pytest.mark.parametrize('kind', ['FPGM', 'GroupNormalized'])
def test_what_scores_only_units_prunes_no_weights(kind):
    with pytest.raises(ValueError, match=f'{kind} scores whole units'):
        WeightPruner(0.5, importance=dict(type=f'mmprune.{kind}'))
