"""Adapters on a pruned model: apart, under its mask, merged, on disk."""

import json

import numpy as np
import pytest
import torch
from tiny_llm import GPT2, LLAMA, dense, lm_config, save_sparse, sparse, tokens
from tiny_training import differing, final, run, run_with_crash

from mmprune.models.lora import (
    add_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from mmprune.registry import MODELS

SEED = dict(type='mmprune.SeedHook')


def shake(model, scale: float = 0.2) -> None:
    """Gives the adapters values, as a training would."""
    torch.manual_seed(1)
    for name, param in model.named_parameters():
        if '.lora_' in name:
            param.data = torch.randn_like(param) * scale


def adapted(settings=LLAMA, **options):
    """Returns a sparse model with shaken adapters."""
    model = sparse(settings)
    add_adapters(model, **options)
    shake(model)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def zeros(model) -> int:
    return sum(
        int((p == 0).sum())
        for n, p in model.named_parameters()
        if p.ndim > 1 and 'lora' not in n
    )


def test_only_the_adapters_of_queries_and_values_train():
    model = adapted()
    mine = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(mine) == 2 * 2 * 2
    assert all('.lora_' in n and '_proj' in n for n in mine)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.lora_A['default'].weight.shape == (8, 16)
    assert layer.scaling['default'] == 2
    assert layer.lora_dropout['default'].p == 0.05


def test_apart_the_output_is_that_of_both_summands():
    model = adapted(targets=['q_proj'])
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 16)
    a, b = layer.lora_A['default'].weight, layer.lora_B['default'].weight
    expected = x @ layer.base_layer.weight.T + 2 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected)


def test_under_the_mask_the_product_is_masked():
    model = adapted(targets=['q_proj'], under_mask=True)
    layer = model.model.layers[0].self_attn.q_proj
    x, weight = torch.randn(3, 16), layer.base_layer.weight
    a, b = layer.lora_A['default'].weight, layer.lora_B['default'].weight
    masked = weight + (weight != 0) * (2 * b @ a)
    torch.testing.assert_close(layer(x), x @ masked.T)
    # In training the dropout of the adapter leaves the base as it is.
    layer.train().lora_dropout['default'].p = 1.0
    torch.testing.assert_close(layer(x), x @ weight.T)


@pytest.mark.parametrize('settings', [LLAMA, GPT2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_merging_under_the_mask_is_exact(settings, dtype):
    model = sparse(settings).to(dtype)
    before = zeros(model)
    add_adapters(model, targets='all', under_mask=True)
    shake(model)
    model.eval()
    expected, base = logits(model), logits(sparse(settings).to(dtype))
    merge_adapters(model)
    assert torch.equal(logits(model), expected)
    assert not torch.allclose(expected, base, atol=1e-2)
    assert zeros(model) == before > 0
    names = dict(model.named_parameters()).keys()
    assert names == dict(dense(settings).named_parameters()).keys()


def test_merging_without_the_mask_loses_the_zeros():
    model = adapted(targets='all')
    expected, before = logits(model), zeros(model)
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert zeros(model) < before / 100


def test_gradients_reach_the_adapters_through_the_mask():
    model = adapted(targets=['q_proj'], under_mask=True)
    model(input_ids=tokens(), mode='loss')['loss'].backward()
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.lora_A['default'].weight.grad.abs().max() > 0
    assert layer.base_layer.weight.grad is None


@pytest.mark.parametrize('under_mask', [False, True])
def test_a_saved_adapter_is_loaded_into_its_base(tmp_path, under_mask):
    model = adapted(under_mask=under_mask)
    save_adapter(model, tmp_path, base='somewhere')
    again = sparse()
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again.eval()), logits(model))
    assert not any(p.requires_grad for p in again.parameters())
    # Half precision is still the same base.
    load_adapter(sparse().to(torch.bfloat16), tmp_path)


def test_peft_reads_an_adapter_that_stays_apart(tmp_path):
    from peft import PeftModel

    model = adapted()
    save_adapter(model, tmp_path)
    base = sparse()
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        found = theirs.base_model.model(input_ids=tokens()).logits
    torch.testing.assert_close(found, logits(model))


@pytest.mark.parametrize(
    ('base', 'message'),
    [
        (dict(seed=4), r'another base: \S+ of the model differs'),
        (dict(settings={**LLAMA, 'hidden_size': 8}), 'another base'),
        (dict(settings=GPT2), 'another base'),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path, base, message):
    save_adapter(adapted(), tmp_path)
    with pytest.raises(ValueError, match=message):
        load_adapter(sparse(**base), tmp_path)
    # The same without our note, as PEFT alone writes a folder.
    if 'seed' not in base:
        (tmp_path / 'mmprune_adapter.json').unlink()
        with pytest.raises(ValueError, match='another base'):
            load_adapter(sparse(**base), tmp_path)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [(None, 'it has no adapter_config.json'), ('IA3', "of type 'IA3'")],
)
def test_a_folder_without_lora_is_refused(tmp_path, kind, message):
    if kind:
        text = json.dumps(dict(peft_type=kind))
        (tmp_path / 'adapter_config.json').write_text(text)
        (tmp_path / 'adapter_model.safetensors').touch()
    with pytest.raises(ValueError, match=message):
        load_adapter(sparse(), tmp_path)


def test_targets_that_the_model_lacks_are_refused():
    with pytest.raises(ValueError, match="no linear layer 'c_attn'"):
        add_adapters(sparse(), targets=['c_attn'])


@pytest.fixture
def lora_config(tmp_path):
    """Makes configs of LoRA trainings on a folder of a sparse model."""
    save_sparse(tmp_path / 'base')
    np.save(tmp_path / 'text.npy', tokens(8).numpy())

    def make(name: str, **options):
        model = dict(
            type='mmprune.LoraModel',
            model=dict(
                type='mmprune.HuggingFaceCausalLM',
                pretrained=str(tmp_path / 'base'),
            ),
            dropout=0.1,
            **options,
        )
        hooks = [SEED, dict(type='mmprune.LoraHook')]
        return lm_config(
            tmp_path / name, model, tmp_path / 'text.npy', custom_hooks=hooks
        )

    return make


@pytest.mark.parametrize('under_mask', [False, True])
def test_training_writes_the_adapters_alone(tmp_path, lora_config, under_mask):
    runner = run(lora_config('run', under_mask=under_mask))
    model = runner.model.eval()
    saved = final(tmp_path / 'run')['state_dict']
    assert all('.lora_' in name for name in saved)
    assert any(v.abs().max() > 0 for n, v in saved.items() if 'lora_B' in n)
    again = MODELS.build(
        dict(
            type='mmprune.LoraModel',
            model=dict(
                type='mmprune.HuggingFaceCausalLM',
                pretrained=str(tmp_path / 'base'),
            ),
            adapter=str(tmp_path / 'run' / 'adapter'),
        )
    ).eval()
    assert torch.equal(logits(again), logits(model))
    history = runner.message_hub.get_scalar('train/sparsity').data[0]
    assert len(set(history)) == 1 and 0.3 < history[0] < 0.5


@pytest.mark.parametrize('under_mask', [False, True])
def test_a_resumed_lora_training_ends_bit_identical(
    tmp_path, lora_config, under_mask
):
    run(lora_config('whole', under_mask=under_mask))
    run_with_crash(lora_config('crashed', under_mask=under_mask), after=11)
    one, other = final(tmp_path / 'whole'), final(tmp_path / 'crashed')
    assert differing(one, other) == []


def test_a_training_without_adapters_is_refused(tmp_path, lora_config):
    cfg = lora_config('run')
    cfg.model = cfg.model.model
    with pytest.raises(ValueError, match='the model has no adapters'):
        run(cfg)
