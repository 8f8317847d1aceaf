"""Hugging Face classifiers as mmengine models, pruned and loaded again."""

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from mmprune.adapters import bert_groups, distilbert_groups
from mmprune.checkpoints.classifier_folder import save_folder
from mmprune.checkpoints.writing import save_pruned
from mmprune.models import load_model
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner, masked_difference
from mmprune.registry import MODELS
from mmprune.surgery import apply_plan

DISTILBERT = dict(
    model_type='distilbert',
    vocab_size=40,
    dim=32,
    n_heads=4,
    n_layers=2,
    hidden_dim=48,
    max_position_embeddings=16,
)
SMALL = dict(
    vocab_size=40,
    hidden_size=32,
    num_attention_heads=4,
    num_hidden_layers=2,
    intermediate_size=48,
    max_position_embeddings=16,
)
LABELS = torch.tensor([1, 0])


def batch() -> dict:
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    ids = torch.arange(2, 14).view(2, 6)
    return dict(input_ids=ids, attention_mask=mask)


def build(config=DISTILBERT, **options):
    return MODELS.build(
        dict(type='mmprune.HuggingFaceClassifier', config=config, **options)
    )


def loud(model):
    """Weights that are wide enough for every unit to matter."""
    for param in model.parameters():
        if param.ndim > 1:
            torch.nn.init.normal_(param, std=0.2)
    return model.eval()


def test_the_three_modes():
    model = build(num_labels=3).eval()
    scores = model(batch())
    assert scores.shape == (2, 3)
    expected = -scores.log_softmax(1)[[0, 1], LABELS].mean()
    loss = model(batch(), LABELS, mode='loss')['loss']
    assert torch.allclose(loss, expected)
    first, second = model(batch(), LABELS, mode='predict')
    assert first.pred_label == scores[0].argmax().item()
    assert second.gt_label == 0


@pytest.mark.parametrize(
    ('config', 'find'),
    [
        (DISTILBERT, distilbert_groups),
        (dict(SMALL, model_type='bert'), bert_groups),
        (dict(SMALL, model_type='roberta'), bert_groups),
    ],
    ids=lambda value: (
        value.get('model_type') if isinstance(value, dict) else ''
    ),
)
def test_layers_may_keep_different_numbers_of_heads(tmp_path, config, find):
    model = loud(build(config))
    groups = tuple(find(model))
    heads = [g for g in groups if g.granularity == 'head']
    assert [g.size for g in groups] == 2 * [48, 4] or 2 * [4, 48]
    keep = {g.name: [0, 7, 9] for g in groups if g.granularity == 'neuron'}
    keep |= {heads[0].name: [2], heads[1].name: [0, 1, 3]}
    plan = PruningPlan(groups, keep)
    run = lambda m: m(batch())  # noqa: E731
    assert masked_difference(model, plan, run) < 1e-5

    apply_plan(model, plan)
    path = tmp_path / 'pruned.pth'
    cfg = Config(
        dict(model=dict(type='mmprune.HuggingFaceClassifier', config=config))
    )
    save_pruned(model, plan, path, cfg)
    again = load_model(cfg, path)
    assert torch.equal(run(again), run(model.eval()))


def test_heads_and_neurons_have_targets_of_their_own():
    model = loud(build())
    pruner = StructuredPruner(dict(head=0.25, neuron=0.5))
    plan = pruner(model, list(distilbert_groups(model)))
    kinds = {g.name: g.granularity for g in plan.groups}
    lost = {'head': 0, 'neuron': 0}
    for group in plan.groups:
        lost[kinds[group.name]] += len(plan.removed(group))
    assert lost == {'head': 2, 'neuron': 48}  # of 8 and 96


def test_weights_come_from_a_folder(tmp_path):
    source = BertForSequenceClassification(BertConfig(**SMALL, num_labels=2))
    source.save_pretrained(tmp_path)
    model = build(str(tmp_path), pretrained=True)
    theirs = source.eval()(**batch()).logits
    assert torch.equal(model.eval()(batch()), theirs)
    assert list(model.state_dict()) == list(source.state_dict())
    fresh = build(str(tmp_path))
    assert not torch.equal(fresh.eval()(batch()), theirs)


def test_an_encoder_without_a_head_gets_one(tmp_path):
    BertForSequenceClassification(BertConfig(**SMALL)).bert.save_pretrained(
        tmp_path
    )
    model = build(str(tmp_path), pretrained=True, num_labels=3)
    assert model.eval()(batch()).shape == (2, 3)


def test_pickles_are_refused(tmp_path):
    BertConfig(**SMALL).save_pretrained(tmp_path)
    (tmp_path / 'pytorch_model.bin').write_bytes(b'a pickle')
    with pytest.raises(ValueError, match='weights only as pickles'):
        build(str(tmp_path), pretrained=True)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (dict(config=dict(dim=32)), 'the config has no `model_type`'),
        (dict(config=dict(DISTILBERT, n_heads=5)), 'must divide'),
        (dict(config='/nowhere'), 'is no sequence classifier'),
        (dict(pretrained=True), 'pretrained=True takes the weights of'),
        (dict(pretrained='./nowhere'), 'no model folder at ./nowhere'),
    ],
)
def test_what_cannot_be_built_is_said(options, says):
    with pytest.raises(ValueError, match=says):
        build(**options)


def test_plain_code_loads_the_folder_of_a_pruned_model(tmp_path):
    model = loud(build())
    groups = tuple(distilbert_groups(model))
    keep = {
        g.name: [1, 3] if g.granularity == 'head' else [4, 8, 40]
        for g in groups
    }
    keep[groups[0].name] = keep[groups[0].name][:1]
    apply_plan(model, PruningPlan(groups, keep))
    save_folder(model, tmp_path)

    small = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(tmp_path)
    )
    for name, weight in load_file(tmp_path / 'model.safetensors').items():
        path, _, leaf = name.rpartition('.')
        module = small.get_submodule(path)
        setattr(module, leaf, torch.nn.Parameter(weight))
    assert torch.equal(small.eval()(**batch()).logits, model(batch()))

    again = MODELS.build(
        dict(
            type='mmprune.PrunedModel',
            model=dict(
                type='mmprune.HuggingFaceClassifier', config=str(tmp_path)
            ),
            plan=str(tmp_path / 'plan.json'),
        )
    )
    again.load_state_dict(load_file(tmp_path / 'model.safetensors'))
    assert torch.equal(again.eval()(batch()), model(batch()))
