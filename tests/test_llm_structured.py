"""Language models that lost heads, neurons or blocks, and who loads them."""

import copy
import json

import pytest
import torch
from tiny_llm import ARCHITECTURES, LLAMA, OPT, dense, tokens
from torch import nn
from transformers import AutoModelForCausalLM

from mmprune.adapters import (
    block_groups,
    gpt2_groups,
    gpt_neox_groups,
    llama_groups,
    opt_groups,
)
from mmprune.checkpoints.loading import load_checkpoint, load_weights
from mmprune.checkpoints.model_folder import save_model_folder
from mmprune.checkpoints.plain_config import describe_shapes
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner, masked_difference
from mmprune.registry import MODELS
from mmprune.surgery import apply_plan

ADAPTERS = (llama_groups, opt_groups, gpt2_groups, gpt_neox_groups)
# Of those the config has an entry for heads of their own width.
HEADS = ('llama', 'tied', 'qwen2', 'mistral')


def groups_of(model: nn.Module, kind: str) -> list:
    found = [g for find in ADAPTERS for g in find(model)]
    return [g for g in found if g.granularity == kind]


def forward(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens(2), mode='tensor')


def replies(model: nn.Module) -> torch.Tensor:
    prompt = tokens(2, 4)
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )


def pruned(name: str, kind: str, sparsity: float = 0.5, **how):
    """A model without half of its units, uniformly, and the plan."""
    model = dense(ARCHITECTURES[name])
    pruner = StructuredPruner(sparsity, scope='layer', **how)
    plan = pruner(model, groups_of(model, kind))
    apply_plan(model, plan)
    return model, plan


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_fewer_neurons_load_in_plain_transformers(name, tmp_path):
    model, plan = pruned(name, 'neuron')
    save_model_folder(model, plan, tmp_path / 'm')
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / 'm')
    assert sum(p.numel() for p in plain.parameters()) < sum(
        p.numel() for p in dense(ARCHITECTURES[name]).parameters()
    )
    assert torch.equal(replies(plain), replies(model))
    notes = json.loads((tmp_path / 'm' / 'pruning_args.json').read_text())
    assert 'not_plain' not in notes


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_fewer_heads_load_in_plain_transformers_or_by_mmprune(name, tmp_path):
    model, plan = pruned(name, 'head')
    save_model_folder(model, plan, tmp_path / 'm')
    if name in HEADS:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / 'm')
        assert loaded.config.num_key_value_heads == 1
        assert loaded.config.num_attention_heads == 2
    else:
        notes = json.loads((tmp_path / 'm' / 'pruning_args.json').read_text())
        assert 'fit one config' in notes['not_plain']
        assert 'no plain config' in (tmp_path / 'm' / 'README.md').read_text()
        loaded = MODELS.build(
            dict(
                type='mmprune.HuggingFaceCausalLM',
                pretrained=str(tmp_path / 'm'),
            )
        )
    assert torch.equal(replies(loaded), replies(model))


def test_plans_that_differ_between_blocks_load_by_mmprune(tmp_path):
    model = dense()
    groups = groups_of(model, 'neuron')
    keep = {groups[0].name: list(range(10)), groups[1].name: list(range(20))}
    plan = PruningPlan(tuple(groups), keep)
    apply_plan(model, plan)
    save_model_folder(model, plan, tmp_path / 'm', dict(base_model='tiny'))
    path = str(tmp_path / 'm')
    loaded = MODELS.build(
        dict(type='mmprune.HuggingFaceCausalLM', pretrained=path)
    )
    assert torch.equal(replies(loaded), replies(model))
    # As a checkpoint of the dense config, too.
    dense_config = dict(type='mmprune.HuggingFaceCausalLM', config=LLAMA)
    other = MODELS.build(
        dict(type='mmprune.PrunedModel', model=dense_config, plan=path)
    )
    load_weights(other, load_checkpoint(path), path)
    assert torch.equal(forward(other), forward(model))


def without(model: nn.Module, *numbers: int) -> PruningPlan:
    groups = list(block_groups(model))
    keep = {g.name: [] if i in numbers else [0] for i, g in enumerate(groups)}
    return PruningPlan(tuple(groups), keep)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_a_masked_block_is_a_removed_block(name):
    model = dense(dict(ARCHITECTURES[name]))
    plan = without(model, 0)
    assert masked_difference(model, plan, forward) < 1e-5
    smaller = copy.deepcopy(model)
    apply_plan(smaller, plan)
    assert not torch.equal(forward(smaller), forward(model))


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_fewer_blocks_load_in_plain_transformers(name, tmp_path):
    settings = dict(ARCHITECTURES[name])
    settings['n_layer' if name == 'gpt2' else 'num_hidden_layers'] = 3
    model = dense(settings)
    plan = without(model, 1)
    apply_plan(model, plan)
    save_model_folder(model, plan, tmp_path / 'm')
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / 'm')
    assert plain.config.num_hidden_layers == 2
    assert torch.equal(replies(plain), replies(model))


def test_blocks_compete_with_each_other():
    model = dense(dict(LLAMA, num_hidden_layers=4))
    for name, param in model.named_parameters():
        if 'layers.2.' in name and param.ndim > 1:
            param.data *= 1e-3
    plan = StructuredPruner(0.25)(model, block_groups(model))
    assert plan.keep == {'model.layers.2': []}


def test_all_blocks_cannot_go():
    model = dense()
    with pytest.raises(ValueError, match='all 2 blocks of model.layers'):
        apply_plan(model, without(model, 0, 1))


def test_blocks_with_norms_behind_their_layers_stay():
    model = dense(dict(OPT, do_layer_norm_before=False))
    assert {g.dense for g in block_groups(model)} == {
        'its norms come after its layers'
    }


def test_a_plan_without_blocks_is_read_again(tmp_path):
    model = dense()
    without(model, 1).save(tmp_path / 'plan.json')
    plan = PruningPlan.load(tmp_path / 'plan.json')
    assert plan.keep['model.layers.1'] == []


def test_a_width_that_no_config_can_say_is_named():
    model, _ = pruned('opt', 'head')
    before = model.config.to_dict()
    assert 'q_proj' in describe_shapes(model) or 'k_proj' in (
        describe_shapes(model)
    )
    assert model.config.to_dict() == before


def test_heads_that_do_not_divide_the_width_are_no_plain_config():
    """transformers refuses such a LLaMA, so nothing is written that would
    not load."""
    settings = dict(LLAMA, num_attention_heads=8, num_key_value_heads=8)
    model = dense(settings)
    groups = groups_of(model, 'head')
    keep = {g.name: [0, 1, 2, 3, 4, 5] for g in groups}
    apply_plan(model, PruningPlan(tuple(groups), keep))
    assert 'not a multiple' in describe_shapes(model)
