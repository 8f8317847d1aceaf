"""Sparse files: smaller, and the same bits when they are read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llm import GPT2, LLAMA, sparse, tokens

from mmprune.checkpoints.packed import (
    is_packed,
    load_packed,
    pack_folder,
    pack_state,
    unpack_folder,
    unpack_state,
)

HALF = torch.float16


def raw(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor, also those of NaN and minus zero."""
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def halved(rows: int, columns: int, pattern: bool, dtype=HALF):
    """A matrix with half of its weights zero."""
    weight = torch.randn(rows, columns)
    if pattern:
        order = weight.abs().view(-1, 4).argsort(1)[:, :2]
        weight.view(-1, 4).scatter_(1, order, 0)
    else:
        order = weight.abs().flatten().argsort()[: weight.numel() // 2]
        weight.view(-1)[order] = 0
    return weight.to(dtype)


def test_a_matrix_of_four_by_hand():
    weight = torch.tensor([[0, 5, 0, 7], [8, 0, 0, 0]], dtype=HALF)
    stored, entries = pack_state(dict(w=weight))
    assert entries == {'w': dict(kind='2:4', shape=[2, 4], dim=1)}
    assert stored['w.values'].tolist() == [5, 7, 8, 0]
    # Positions 1, 3 and 0, 1, two bits each from the lowest on.
    assert stored['w.positions'].tolist() == [0b01_00_11_01]
    weight = torch.tensor([[1, 2, 3, 0, 0, 0, 0, 0]], dtype=HALF)
    stored, entries = pack_state(dict(w=weight))
    assert entries == {'w': dict(kind='bits', shape=[1, 8])}
    assert stored['w.values'].tolist() == [1, 2, 3]
    assert stored['w.bits'].tolist() == [0b1110_0000]


@pytest.mark.parametrize('pattern', [False, True])
@pytest.mark.parametrize('dtype', [HALF, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('shape', [(64, 128), (6, 20), (1, 4)])
@pytest.mark.parametrize('flip', [False, True])
def test_the_bits_come_back(pattern, dtype, shape, flip):
    weight = halved(*shape, pattern, dtype)
    weight = weight.T.contiguous() if flip else weight
    stored, entries = pack_state(dict(w=weight))
    again = unpack_state(stored, entries)
    assert again['w'].dtype == dtype
    assert again['w'].shape == weight.shape
    assert raw(again['w']) == raw(weight)


def test_odd_values_come_back():
    weight = torch.zeros(3, 10, dtype=HALF)
    odd = [-0.0, float('nan'), float('inf'), 6e-8, -6e-8]
    weight.view(-1)[:5] = torch.tensor(odd, dtype=HALF)
    stored, entries = pack_state(dict(w=weight))
    assert entries['w']['kind'] == 'bits'
    assert raw(unpack_state(stored, entries)['w']) == raw(weight)


@pytest.mark.parametrize('pattern', [False, True])
def test_half_of_the_weights_take_nine_sixteenths(pattern):
    weight = halved(256, 256, pattern)
    stored, entries = pack_state(dict(w=weight))
    assert entries['w']['kind'] == ('2:4' if pattern else 'bits')
    size = sum(t.numel() * t.element_size() for t in stored.values())
    assert size == 9 / 16 * 2 * weight.numel()


def test_what_is_not_sparse_is_stored_as_it_is():
    state = dict(dense=torch.randn(8, 8), norm=torch.zeros(8))
    stored, entries = pack_state(state)
    assert entries == {}
    assert stored.keys() == state.keys()


@pytest.mark.parametrize('settings', [LLAMA, GPT2])
@pytest.mark.parametrize('shards', [False, True])
def test_a_folder_is_packed_and_unpacked(tmp_path, settings, shards):
    model = sparse(settings).half()
    size = dict(max_shard_size='10KB') if shards else {}
    model.save_pretrained(tmp_path / 'model', **size)
    (tmp_path / 'model' / 'tokenizer.json').write_text('{}')
    sizes = pack_folder(tmp_path / 'model', tmp_path / 'packed')
    assert sizes['sparse_packed'] <= 0.57 * sizes['sparse_dense']
    files = [sorted((tmp_path / n).iterdir()) for n in ('model', 'packed')]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert is_packed(tmp_path / 'packed')
    assert not is_packed(tmp_path / 'model')
    found = load_packed(tmp_path / 'packed')
    for path in (tmp_path / 'model').glob('*.safetensors'):
        for name, tensor in load_file(path).items():
            assert raw(found.pop(name)) == raw(tensor)
    assert found == {}
    unpack_folder(tmp_path / 'packed', tmp_path / 'again')
    for path in files[0]:
        assert (tmp_path / 'again' / path.name).read_bytes() == (
            path.read_bytes()
        )


def test_a_packed_folder_is_a_model(tmp_path):
    from mmprune.registry import MODELS

    model = sparse().half()
    model.save_pretrained(tmp_path / 'model')
    pack_folder(tmp_path / 'model', tmp_path / 'packed')
    again = MODELS.build(
        dict(
            type='mmprune.HuggingFaceCausalLM',
            pretrained=str(tmp_path / 'packed'),
        )
    )
    assert next(again.parameters()).dtype == HALF
    for name, value in model.state_dict().items():
        assert raw(again.state_dict()[name]) == raw(value)
    ids = tokens()
    assert torch.equal(
        again(input_ids=ids).logits, model(input_ids=ids).logits
    )


def test_what_is_not_packed_or_damaged_is_refused(tmp_path):
    sparse().half().save_pretrained(tmp_path / 'model')
    with pytest.raises(ValueError, match='is not packed'):
        load_packed(tmp_path / 'model')
    pack_folder(tmp_path / 'model', tmp_path / 'packed')
    with pytest.raises(ValueError, match='is packed already'):
        pack_folder(tmp_path / 'packed', tmp_path / 'twice')
    path = tmp_path / 'packed' / 'model.safetensors'
    stored = load_file(path)
    text = json.dumps({'gone.weight': dict(kind='bits', shape=[2, 2])})
    save_file(stored, path, {'mmprune_packed': text})
    with pytest.raises(ValueError, match='damaged'):
        load_packed(tmp_path / 'packed')
    shutil.rmtree(tmp_path / 'packed')


def test_semi_structured_layers_are_found_and_refused_on_a_cpu():
    from mmprune.models.semi_structured import (
        runs_semi_structured,
        semi_structured_layers,
        to_semi_structured,
    )

    model = torch.nn.Sequential(
        *(torch.nn.Linear(64, 64, dtype=HALF) for _ in range(3))
    )
    model[0].weight.data = halved(64, 64, True)
    model[1].weight.data = halved(64, 64, False)
    assert semi_structured_layers(model) == ['0']
    assert not runs_semi_structured('cpu')
    with pytest.raises(ValueError, match='need a CUDA device'):
        to_semi_structured(model)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() < (8, 0),
    reason='needs a GPU of compute capability 8.0 or later',
)
def test_a_semi_structured_layer_computes_the_same():
    from mmprune.models.semi_structured import to_semi_structured

    layer = torch.nn.Linear(256, 512, dtype=HALF)
    layer.weight.data = halved(512, 256, True)
    model = torch.nn.Sequential(layer).cuda()
    inputs = torch.randn(64, 256, dtype=HALF, device='cuda')
    with torch.no_grad():
        expected = model(inputs)
        assert list(to_semi_structured(model, 64, always=True)) == ['0']
        torch.testing.assert_close(
            model(inputs), expected, rtol=1e-2, atol=1e-2
        )
