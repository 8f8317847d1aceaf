"""Four-bit weights: by hand, packed in a file, and learnt."""

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from tiny_models import CASES
from tiny_training import TinyMLP, config, differing, final, run
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

from mmprune.adapters import ffn_groups
from mmprune.checkpoints.guard import check_plan_matches
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.models import load_model
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner
from mmprune.pruners.verify import relative_difference
from mmprune.quantization import (
    FakeQuantLinear,
    PackedLinear,
    Scheme,
    choose_layers,
    gptq,
    pack,
    packed_copy,
    save_quantized,
    scales,
    to_float,
    to_integers,
    unpack,
)
from mmprune.quantization.layers import rounded_weight
from mmprune.quantization.packing import sizes
from mmprune.registry import MODELS
from mmprune.surgery import apply_plan

FOUR = Scheme(group_size=4)


def rounded(weight, group_size=4):
    scale = scales(weight, group_size)
    integers = to_integers(weight, scale, group_size)
    return to_float(integers, scale, group_size, weight.shape[1])


def test_integers_by_hand():
    weight = torch.tensor([[7.5, -3.0, 1.4, 0.0, 0.75, -0.16, 0.3, 0.04]])
    scale = scales(weight, 4)
    assert scale[0].tolist() == pytest.approx([1.0, 0.1], rel=1e-3)
    # 7.5 is beyond the largest integer.
    integers = to_integers(weight, scale, 4)
    assert integers.tolist() == [[7, -3, 1, 0, 7, -2, 3, 0]]
    found = to_float(integers, scale, 4, 8)
    assert found[0, :4].tolist() == [7, -3, 1, 0]


def test_a_group_of_zeros_gives_zeros():
    weight = torch.randn(3, 8)
    weight[1] = 0
    weight[0, 4:] = 0
    found = rounded(weight)
    assert found.isfinite().all()
    assert not found[1].any() and not found[0, 4:].any()
    learnt = weight.clone().requires_grad_()
    again = rounded_weight(learnt, FOUR)
    assert torch.equal(again.detach(), found)
    again.sum().backward()
    assert torch.equal(learnt.grad, torch.ones(3, 8))  # straight through


def test_any_number_of_inputs_goes():
    weight = torch.randn(2, 7)
    found = rounded(weight)
    assert found.shape == (2, 7)
    alone = rounded(weight[:, 4:])
    assert torch.equal(found[:, 4:], alone)


def test_two_integers_share_a_byte():
    integers = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    packed = pack(integers)
    assert packed.tolist() == [[0 + 16 * 15, 8 + 16 * 7]]
    assert torch.equal(unpack(packed), integers)


def test_integers_are_those_of_torchao():
    layer = nn.Sequential(nn.Linear(64, 16, bias=False))
    weight = layer[0].weight.detach().clone()
    quantize_(layer, IntxWeightOnlyConfig(torch.int4, PerGroup(32)))
    theirs = layer[0].weight
    mine = to_integers(weight, theirs.scale, 32)
    assert torch.equal(mine, theirs.qdata)
    assert torch.allclose(scales(weight, 32).float(), theirs.scale, rtol=1e-3)


def test_gptq_changes_the_output_less_than_rounding():
    torch.manual_seed(0)
    mixing = torch.randn(16, 16)
    x = torch.randn(200, 16) @ mixing  # inputs that depend on each other
    weight = torch.randn(8, 16)
    integers, scale = gptq(weight, x.T @ x, 8)
    found = to_float(integers, scale, 8, 16)
    error = (x @ (found - weight).T).square().mean()
    plain = (x @ (rounded(weight, 8) - weight).T).square().mean()
    assert error < 0.6 * plain
    assert integers.min() >= -8 and integers.max() <= 7


def test_gptq_of_independent_inputs_rounds_to_nearest():
    weight = torch.randn(3, 6)
    integers, scale = gptq(weight, torch.eye(6), 4)
    assert torch.equal(scale, scales(weight, 4))
    assert torch.equal(integers, to_integers(weight, scale, 4))
    zeros, _ = gptq(weight * 0, torch.zeros(6, 6), 4)
    assert not zeros.any()


# -- models ------------------------------------------------------------------


class Odd(nn.Module):
    """One of each kind that has to stay in float."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.conv = nn.Conv1d(8, 8, 1)
        self.attn = nn.MultiheadAttention(8, 2)
        self.mid = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5, bias=False)
        self.tied = nn.Linear(8, 5, bias=False)
        self.tied.weight = self.embed.weight

    def forward(self, ids):
        """Returns scores."""
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        x = self.mid(self.attn(x, x, x)[0])
        return self.head(x) + self.tied(x)


def test_what_stays_in_float_says_why():
    model = Odd()
    found = choose_layers(model, lambda m: m(torch.tensor([[0, 1]])))
    assert found.layers == ('mid',)
    why = found.left
    assert 'an embedding' in why['embed.weight']
    assert 'a convolution' in why['conv.weight']
    assert 'another module reads' in why['attn.out_proj.weight']
    assert 'MultiheadAttention' in why['attn.in_proj_weight']
    assert 'an output layer' in why['head.weight']
    assert 'same tensor as embed.weight' in why['tied.weight']
    with pytest.raises(ValueError, match='no layer can be quantized'):
        choose_layers(model, keep=('.*',))


def pruned_mlp(path):
    """A pruned TinyMLP of a width that no group fits, in a file."""
    model = TinyMLP(width=8, dropout=0.0)
    groups = tuple(ffn_groups(model))
    keep = {g.name: [0, 2, 3, 5, 7] for g in groups}
    apply_plan(model, PruningPlan(groups, keep))
    choice = choose_layers(model, keep=())
    packed = packed_copy(model, choice, FOUR)
    save_quantized(packed, path)
    return model, packed


def test_a_packed_model_is_loaded_into_the_dense_config(tmp_path):
    path = tmp_path / 'quantized.pth'
    model, packed = pruned_mlp(path)
    cfg = Config(dict(model=dict(type='TinyMLP', width=8, dropout=0.0)))
    again = load_model(cfg, path)
    x = list(torch.randn(4, 4))
    assert torch.equal(again(x), packed(x))
    assert isinstance(again.net[0], PackedLinear)
    assert again.net[3].in_features == 5  # 8 with the rest of two groups
    assert again.net[3].packed.shape == (5, 4)
    # Rounded in training and packed: the same numbers.
    model.eval()
    for layer in (0, 3, 5):
        FakeQuantLinear.take_over(model.net[layer], FOUR)
    assert torch.allclose(model(x), packed(x), atol=1e-6)


def test_a_fresh_process_loads_it_from_its_file_alone(tmp_path):
    path = tmp_path / 'quantized.pth'
    _, packed = pruned_mlp(path)
    x = torch.linspace(-1, 1, 4)
    code = (
        'import sys, torch, mmprune; sys.path.insert(0, sys.argv[2])\n'
        'import tiny_training\n'
        'from mmengine.config import Config\n'
        'from mmprune.models import load_model\n'
        "cfg = Config(dict(model=dict(type='TinyMLP', width=8)))\n"
        'model = load_model(cfg, sys.argv[1])\n'
        'print(model([torch.linspace(-1, 1, 4)]).tolist())\n'
    )
    out = subprocess.run(
        [sys.executable, '-c', code, str(path), 'tests'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert eval(out.splitlines()[-1])[0] == pytest.approx(
        packed([x])[0].tolist()
    )


def test_packed_weights_do_not_slip_into_a_float_model(tmp_path):
    path = tmp_path / 'quantized.pth'
    model, packed = pruned_mlp(path)
    loaded = load_checkpoint_file(path)
    with pytest.raises(ValueError, match='are of 4 bits, those of the model'):
        check_plan_matches(model, loaded)
    check_plan_matches(packed, loaded)
    plan = model.pruning_plan.to_dict()
    with pytest.raises(ValueError, match='are of float, those of the model'):
        check_plan_matches(packed, dict(meta=dict(pruning_plan=plan)))


def test_bytes_are_counted():
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32))
    choice = choose_layers(model)
    found = sizes(packed_copy(model, choice, Scheme(group_size=32)))
    # 64 x 32 half bytes, 2 x 32 scales of two, 32 biases of four
    assert found['packed'] == 1024 + 128 + 128
    assert found['packed_float32'] == 4 * (64 * 32 + 32)
    assert found['packed'] < 0.2 * found['packed_float32']
    assert found['rest'] == 2 * 32 * 4


def test_activations_are_rounded_on_request():
    layer = nn.Sequential(nn.Linear(8, 8))
    choice = choose_layers(layer)
    x = torch.randn(2, 3, 8)
    exact = packed_copy(layer, choice, FOUR)(x)
    coarse = packed_copy(layer, choice, Scheme(4, 'int8'))(x)
    difference = (exact - coarse).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize('name', ['vit', 'llama', 'distilbert', 'bert'])
def test_pruned_models_of_other_families_are_packed(name):
    case = CASES[name]()
    model = case.model
    pruner = StructuredPruner(0.25)
    apply_plan(model, pruner(model, case.groups))
    choice = choose_layers(model, case.forward)
    blocks = {'vit': 4, 'llama': 7, 'distilbert': 6, 'bert': 6}
    assert len(choice.layers) == 2 * blocks[name] + (name == 'bert')
    if name == 'llama':
        assert 'same tensor as' in choice.left['lm_head.weight']
    packed = packed_copy(model, choice, Scheme(group_size=8))
    with torch.no_grad():
        one, other = case.forward(model), case.forward(packed)
    assert relative_difference(one, other) < 0.5
    assert sizes(packed)['packed'] < 0.3 * sizes(packed)['packed_float32']


def test_schemes_and_methods_are_checked():
    with pytest.raises(ValueError, match='an even number'):
        Scheme(group_size=3)
    with pytest.raises(ValueError, match='activations'):
        Scheme(activations='int4')
    layer = nn.Sequential(nn.Linear(8, 8))
    choice = choose_layers(layer)
    with pytest.raises(ValueError, match='method is one of'):
        packed_copy(layer, choice, FOUR, method='awq')
    with pytest.raises(ValueError, match='give batches and run'):
        packed_copy(layer, choice, FOUR, method='gptq')


# -- training ----------------------------------------------------------------


def qat(**changes) -> dict:
    return {
        **dict(
            type='mmprune.FakeQuantizedModel',
            model=dict(type='TinyMLP'),
            scheme=dict(group_size=4),
        ),
        **changes,
    }


def test_rounded_weights_learn_and_keep_their_names(tmp_path):
    model = MODELS.build(qat())
    assert list(model.state_dict()) == list(TinyMLP().state_dict())
    runner = run(config(tmp_path, model=qat()))
    assert isinstance(runner.model.net[0], FakeQuantLinear)
    losses = [
        v for v, _ in [runner.message_hub.get_scalar('train/loss').data]
    ][0]
    assert losses[-4:].mean() < losses[:4].mean()


@pytest.mark.parametrize('epoch', [1, 3])
def test_a_resumed_training_ends_bit_identical(tmp_path, epoch):
    hooks = [dict(type='mmprune.SeedHook')]
    run(config(tmp_path / 'one', model=qat(), custom_hooks=hooks))
    start = str(tmp_path / 'one' / f'epoch_{epoch}.pth')
    again = config(tmp_path / 'two', model=qat(), custom_hooks=hooks)
    again.load_from, again.resume = start, True
    run(again)
    assert differing(final(tmp_path / 'one'), final(tmp_path / 'two')) == []


def test_a_checkpoint_of_the_training_fits_the_float_model(tmp_path):
    cfg = config(tmp_path, model=qat())
    run(cfg)
    plain = Config(dict(model=dict(type='TinyMLP')))
    path = tmp_path / 'latest.pth'
    model = load_model(plain, path)
    assert type(model.net[0]) is nn.Linear
    assert 'quantization' not in load_checkpoint_file(path)['meta']
