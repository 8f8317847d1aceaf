"""Pruning block by block: counts, shared inputs, resuming, streaming."""

import copy

import pytest
import torch
from tiny_llm import ARCHITECTURES, LLAMA, SMALL, dense, tokens
from torch import nn

from mmprune.blocks import find_blocks
from mmprune.groups import named_tensors
from mmprune.importance import Magnitude, Random, Wanda
from mmprune.inputs import InputSums
from mmprune.layers import input_dim
from mmprune.pruners import LayerwisePruner, OutlierRatios, SparseGPT
from mmprune.pruners.stores import Kept, MemoryStore, StreamedStore

BATCHES = tokens(6).split(2)


def run(model: nn.Module, batch: torch.Tensor):
    return model(input_ids=batch, mode='loss')


def weights(model: nn.Module, plan) -> dict[str, torch.Tensor]:
    """The sparse weights, a row per output."""
    found = {}
    for name in plan.sparse:
        layer = model.get_submodule(name.removesuffix('.weight'))
        weight = layer.weight.detach()
        found[name] = weight.T if input_dim(type(layer)) == 0 else weight
    return found


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_every_row_of_every_layer_in_blocks_loses_exactly_half(name):
    model = dense(ARCHITECTURES[name])
    outside = model.get_input_embeddings().weight.detach().clone()
    plan = LayerwisePruner(0.5)(model, BATCHES, run)
    # Of two blocks: seven layers of a LLaMA, six of OPT, four with a fused
    # projection of query, key and value.
    assert len(plan.sparse) == 2 * dict(opt=6, gpt2=4, neox=4).get(name, 7)
    for weight in weights(model, plan).values():
        zeros = (weight == 0).sum(1)
        assert (zeros * 2 == weight.shape[1]).all()
    assert torch.equal(model.get_input_embeddings().weight, outside)


@pytest.mark.parametrize('solver', [None, SparseGPT()])
@pytest.mark.parametrize(('pattern', 'kept', 'size'), [
    ('2:4', 2, 4), ('4:8', 4, 8), ('1:3', 1, 3), ('3:5', 3, 5),
])  # fmt: skip
def test_any_pattern_is_exact_in_every_whole_group(
    pattern, kept, size, solver
):
    model = dense()
    before = {n: t.clone() for n, t in named_tensors(model).items()}
    pruner = LayerwisePruner(
        pattern=pattern,
        importance=None if solver else Wanda(),
        reconstruct=solver,
    )
    plan = pruner(model, BATCHES, run)
    for name, weight in weights(model, plan).items():
        whole = weight.shape[1] // size * size
        groups = weight[:, :whole].reshape(-1, size)
        assert ((groups != 0).sum(1) == kept).all()
        if solver is None:  # what fills no group stays
            assert torch.equal(weight[:, whole:], before[name][:, whole:])


def test_ties_do_not_change_the_count():
    """All weights alike: the first of each row go."""
    model = dense()
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1 and 'layers' in name:
            nn.init.ones_(tensor)
    plan = LayerwisePruner(0.25, importance=Magnitude())(model)
    for weight in weights(model, plan).values():
        quarter = weight.shape[1] // 4
        assert (weight[:, :quarter] == 0).all()
        assert (weight[:, quarter:] == 1).all()


def test_equal_inputs_make_wanda_a_magnitude_of_each_row():
    model = dense()
    alike = copy.deepcopy(model)

    class Flat(Wanda):
        def weights(self, name, stats):
            stats.inputs[name] = torch.ones_like(stats.inputs[name])
            return super().weights(name, stats)

    LayerwisePruner(0.5, importance=Flat())(model, BATCHES, run)
    LayerwisePruner(0.5, importance=Magnitude())(alike)
    for name, tensor in named_tensors(model).items():
        assert torch.equal(tensor, named_tensors(alike)[name])


def test_later_blocks_see_what_pruned_blocks_give():
    """Ten lines of the algorithm, with the model's own forward."""
    model = dense()
    expected = copy.deepcopy(model)
    for path in find_blocks(expected):
        block, seen = expected.get_submodule(path), {}
        layers = {
            n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)
        }
        for name, layer in layers.items():
            layer.register_forward_pre_hook(
                lambda _, x, n=name, to=seen: to.setdefault(n, []).append(x[0])
            )
        with torch.no_grad():
            for batch in BATCHES:
                run(expected, batch)
        for name, layer in layers.items():
            x = torch.cat([each.flatten(0, -2) for each in seen[name]])
            score = layer.weight.abs() * x.square().sum(0).sqrt()
            lost = score.argsort(1)[:, : score.shape[1] // 2]
            layer.weight.data.scatter_(1, lost, 0)
    LayerwisePruner(0.5)(model, BATCHES, run)
    for name, tensor in expected.named_parameters():
        assert torch.equal(tensor, model.get_parameter(name)), name


def test_layers_that_read_one_tensor_share_their_sum():
    model = dense()
    block = model.get_submodule(find_blocks(model)[0])
    layers = {
        name: layer
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    }
    sums = InputSums(layers, products=True)
    with sums.watching():
        run(model, BATCHES[0])
    assert sorted(sums.sums) == [
        'mlp.down_proj', 'mlp.gate_proj', 'self_attn.o_proj',
        'self_attn.q_proj',
    ]  # fmt: skip
    squares, products = sums.means(2)
    assert products['self_attn.k_proj'] is products['self_attn.v_proj']
    assert squares['mlp.up_proj'].shape == (1, 16)
    assert products['mlp.down_proj'].shape == (24, 24)


def test_sums_are_those_of_the_inputs():
    layer = nn.Linear(2, 3)
    sums = InputSums({'fc.weight': layer}, products=True)
    with sums.watching():
        layer(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        layer(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    squares, products = sums.means(2)
    assert squares['fc.weight'].tolist() == [[5.5, 10.0]]
    assert products['fc.weight'].tolist() == [[11.0, 14.0], [14.0, 20.0]]


def test_a_layer_that_never_runs_is_an_error():
    sums = InputSums({'fc.weight': nn.Linear(2, 3)})
    with pytest.raises(ValueError, match='fc.weight was never used'):
        sums.means(1)


def test_inputs_that_are_not_finite_are_an_error():
    layer = nn.Linear(1, 1)
    sums = InputSums({'fc.weight': layer})
    with sums.watching():
        layer(torch.tensor([[float('nan')]]))
    with pytest.raises(ValueError, match='fc.weight is not finite'):
        sums.means(1)


def test_protected_weights_stay():
    model = dense()
    plan = LayerwisePruner(0.5, protect=['down_proj', r'layers\.0\.'])(
        model, BATCHES, run
    )
    assert all('layers.1.' in n and 'down' not in n for n in plan.sparse)
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1:
            assert (tensor == 0).any() == (name in plan.sparse), name


def test_the_plan_says_what_became_of_each_block():
    model = dense()
    plan = LayerwisePruner(0.5)(model, BATCHES, run)
    first, second = plan.provenance['blocks']
    assert first['block'] == 'model.layers.0'
    assert first['sparsity'] == 0.5
    assert first['layers']['mlp.down_proj.weight'] == dict(
        shape=[16, 24], zeros=192
    )
    assert 0 < first['error'] < second['error'] * 100


def test_magnitude_needs_no_data():
    plan = LayerwisePruner(0.5, importance=Magnitude())(dense())
    assert plan.provenance['blocks'][0]['error'] is None


def test_outlier_ratios_keep_the_sparsity_of_all_blocks():
    settings = dict(LLAMA, num_hidden_layers=4)
    model = dense(settings)
    # A block in which single weights stand out.
    wide = model.get_parameter('model.layers.2.mlp.up_proj.weight')
    wide.data[:, ::4] *= 30
    pruner = LayerwisePruner(0.5, ratios=OutlierRatios(limit=0.1))
    plan = pruner(model, BATCHES, run)
    asked = [block['asked'] for block in plan.provenance['blocks']]
    assert min(asked) == asked[2]
    assert max(asked) - min(asked) == pytest.approx(0.2)
    zeros = sum(int((w == 0).sum()) for w in weights(model, plan).values())
    total = sum(w.numel() for w in weights(model, plan).values())
    # Every row rounds by itself.
    assert zeros / total == pytest.approx(0.5, abs=0.02)


class Killed(Exception):
    """The power went away."""


def test_a_killed_pass_goes_on_at_its_block(tmp_path):
    settings = dict(LLAMA, num_hidden_layers=4)
    pruner = LayerwisePruner(0.5, ratios=OutlierRatios(limit=0.05))
    whole = dense(settings)
    expected = pruner(whole, BATCHES, run)

    def kill(line: str) -> None:
        if 'layers.1' in line:
            raise Killed

    model = dense(settings)
    store = MemoryStore(model, find_blocks(model), kept=Kept(tmp_path / 'k'))
    with pytest.raises(Killed):
        pruner(model, BATCHES, run, store, kill)
    assert sorted(p.name for p in (tmp_path / 'k').iterdir()) == [
        'block-00000.safetensors', 'block-00001.safetensors', 'progress.json',
    ]  # fmt: skip
    model, lines = dense(settings), []
    store = MemoryStore(model, find_blocks(model), kept=Kept(tmp_path / 'k'))
    plan = pruner(model, BATCHES, run, store, lines.append)
    assert len(lines) == 2
    assert plan.sparse == expected.sparse
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize('other', ['sparsity', 'data'])
def test_a_pass_with_other_options_does_not_go_on(tmp_path, other):
    model = dense()
    store = MemoryStore(model, find_blocks(model), kept=Kept(tmp_path))
    LayerwisePruner(0.5)(model, BATCHES, run, store)
    model = dense()
    store = MemoryStore(model, find_blocks(model), kept=Kept(tmp_path))
    batches = BATCHES if other == 'sparsity' else BATCHES[1:]
    pruner = LayerwisePruner(0.4 if other == 'sparsity' else 0.5)
    with pytest.raises(ValueError, match=f'a pass with another {other}'):
        pruner(model, batches, run, store)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_streamed_blocks_give_the_same_weights(tmp_path, name):
    from mmprune.models.huggingface_causal_lm import build_streamed_causal_lm

    model = dense(ARCHITECTURES[name])
    model.save_pretrained(tmp_path / 'dense', max_shard_size='8KB')
    LayerwisePruner(0.5)(model, BATCHES, run)
    streamed = build_streamed_causal_lm(tmp_path / 'dense')
    paths = find_blocks(streamed)
    kept = Kept(tmp_path / 'kept')
    store = StreamedStore(streamed, paths, tmp_path / 'dense', kept)
    LayerwisePruner(0.5)(streamed, BATCHES, run, store)
    for number, path in enumerate(paths):
        # Nothing is left in memory.
        assert all(
            p.is_meta for p in streamed.get_submodule(path).parameters()
        )
        for key, tensor in kept.read(number).items():
            own = key if key.startswith(path) else f'model.{key}'
            assert torch.equal(model.state_dict()[own], tensor), key


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'give a sparsity or a pattern'),
        (dict(sparsity=1.2), 'must be in'),
        (dict(sparsity=0.3, pattern='2:4'), '2:4 removes 0.5'),
        (dict(sparsity=0.5, importance=None), 'give `importance`'),
        (dict(sparsity=0.5, scope='global'), "'row', 'layer'"),
        (
            dict(pattern='2:4', ratios=OutlierRatios()),
            'the same fraction of every block',
        ),
    ],
)
def test_what_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LayerwisePruner(**options)


def test_without_data_wanda_is_refused():
    with pytest.raises(ValueError, match='no calibration data'):
        LayerwisePruner(0.5)(dense(), [], run)


def test_a_random_criterion_is_layerwise_too():
    model = dense(dict(LLAMA, **SMALL))
    plan = LayerwisePruner(0.5, importance=Random())(model)
    assert plan.provenance['blocks'][1]['sparsity'] == 0.5
