"""timm models as mmengine models, and weights that move into them."""

import copy
import math

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmprune.adapters import vit_groups
from mmprune.cost import count_params
from mmprune.importance import Random
from mmprune.models import build_model, pruned_model_config
from mmprune.models.pretrained import move_weights
from mmprune.plan import PruningPlan
from mmprune.pruners import StructuredPruner
from mmprune.registry import MODELS
from mmprune.surgery import apply_plan

TINY = dict(
    type='mmprune.TimmClassifier',
    model='vit_tiny_patch16_224',
    img_size=32,
    patch_size=8,
    embed_dim=24,
    depth=2,
    num_heads=3,
    num_classes=4,
)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def build(**options):
    return MODELS.build({**TINY, **options})


def test_the_keys_are_those_of_timm():
    options = {k: v for k, v in TINY.items() if k not in ('type', 'model')}
    plain = timm.create_model(TINY['model'], **options)
    model = build()
    assert list(model.state_dict()) == list(plain.state_dict())
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.eval()(IMAGES), plain.eval()(IMAGES))


def test_the_three_modes():
    model = build().eval()
    logits = model(IMAGES)
    assert logits.shape == (2, 4)
    labels = torch.tensor([1, 3])
    loss = model(IMAGES, labels, mode='loss')['loss']
    expected = -logits.log_softmax(1)[[0, 1], labels].mean()
    assert torch.allclose(loss, expected)
    first, second = model(IMAGES, labels, mode='predict')
    assert torch.allclose(first.pred_scores, logits[0].softmax(0))
    assert second.gt_label == 3
    assert second.pred_label == logits[1].argmax().item()
    with pytest.raises(ValueError, match="mode must be one of 'tensor'"):
        model(IMAGES, mode='test')
    with pytest.raises(ValueError, match='the loss needs labels'):
        model(IMAGES, mode='loss')


def test_a_training_step_changes_the_weights():
    model = build(
        data_preprocessor=dict(
            type='ImgDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3
        )
    )
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = dict(
        inputs=torch.full((2, 3, 32, 32), 255, dtype=torch.uint8),
        data_samples=torch.tensor([0, 1]),
    )
    log = model.train_step(data, OptimWrapper(optimizer))
    assert log['loss'].item() == pytest.approx(math.log(4), abs=0.3)
    assert not torch.equal(before['head.weight'], model.head.weight)


def test_a_copy_is_of_the_same_class_and_its_own():
    model = build()
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert type(model).__name__ == 'VisionTransformerClassifier'
    twin.head.weight.data.zero_()
    assert model.head.weight.any()


def test_widths_follow_after_surgery():
    model = build()
    groups = tuple(vit_groups(model))
    keep = {
        g.name: [1] if g.granularity == 'head' else [0, 5, 95] for g in groups
    }
    apply_plan(model, PruningPlan(groups, keep))
    attention = model.blocks[0].attn
    assert (attention.num_heads, attention.attn_dim) == (1, 8)
    assert attention.qkv.weight.shape == (24, 24)
    assert model.blocks[1].mlp.fc2.weight.shape == (24, 3)
    assert model(IMAGES).shape == (2, 4)


def test_init_weights_leaves_timms_own():
    model = build()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    for name, value in before.items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (dict(model='vit_minuscule'), "has no model 'vit_minuscule'; it has"),
        (dict(deepness=3), 'timm cannot build vit_tiny_patch16_224'),
        (dict(num_heads=5), 'timm cannot build vit_tiny_patch16_224'),
        (dict(pretrained='nowhere.pth'), 'there is no checkpoint at nowhere'),
    ],
)
def test_what_cannot_be_built_is_said(options, says):
    with pytest.raises(ValueError, match=says):
        build(**options)


def test_the_guides_model_has_the_size_of_a_hand_after_70_percent():
    with torch.device('meta'):
        model = timm.create_model(
            'vit_small_patch16_224', img_size=32, patch_size=4, num_classes=10
        )
    pruner = StructuredPruner(0.7, importance=Random())
    plan = pruner(model, list(vit_groups(model)))
    assert count_params(model.blocks) == 21_293_568
    apply_plan(model, plan)
    # 22 heads of 98,496, 5,530 neurons of 769, and what stays in any case
    assert count_params(model.blocks) == (
        22 * 98_496 + 5_530 * 769 + 12 * (384 + 384 + 2 * 768)
    )


# ---------------------------------------------------------------- pretrained


def test_148_tensors_move_into_the_model_of_the_guide():
    with torch.device('meta'):
        source = timm.create_model('vit_small_patch16_224')
        target = timm.create_model(
            'vit_small_patch16_224', img_size=32, patch_size=4, num_classes=10
        )
    source, target = (m.to_empty(device='cpu') for m in (source, target))
    moved = move_weights(target, source.state_dict())
    assert moved.count == len(moved.same) == 148
    assert sorted(moved.left) == [
        'head.bias',
        'head.weight',
        'patch_embed.proj.weight',
        'pos_embed',
    ]
    assert sorted(moved.new) == sorted(moved.left)


def source(folder, std: float = 0.06, **options):
    """A checkpoint of a ViT with images of 64 and patches of 16."""
    torch.manual_seed(5)
    model = build(img_size=64, patch_size=16, num_classes=7, **options)
    for name, value in model.named_parameters():
        if value.ndim > 1 and 'blocks' in name:
            torch.nn.init.normal_(value, std=std)
    path = folder / 'source.pth'
    torch.save({'model': model.state_dict()}, path)
    return model, path


def test_weights_of_another_size_move(tmp_path):
    model, path = source(tmp_path)
    target = build(pretrained=str(path))
    # 12 tensors in each of two blocks, norm, class token, bias of patches
    assert target.pretrained_tensors == 2 * 12 + 2 + 1 + 1 + 1
    for name in ('blocks.1.mlp.fc1.weight', 'cls_token', 'norm.bias'):
        assert torch.equal(target.state_dict()[name], model.state_dict()[name])
    moved = move_weights(target, model.state_dict())
    assert moved.std == pytest.approx(0.06, rel=0.05)
    assert 'head.weight (7x24, not 4x24)' in str(moved)


def test_embeddings_are_resized_on_request(tmp_path):
    model, path = source(tmp_path)
    with torch.no_grad():
        model.patch_embed.proj.weight.fill_(1.0)
        model.pos_embed.fill_(0.5)
    target = build(img_size=48)  # 6 x 6 patches of 8 instead of 4 x 4 of 16
    moved = move_weights(target, model.state_dict(), resize=True)
    assert sorted(moved.resized) == ['patch_embed.proj.weight', 'pos_embed']
    assert target.pos_embed.shape == (1, 37, 24)
    assert torch.allclose(target.pos_embed, torch.tensor(0.5), atol=1e-5)
    # a constant kernel keeps its answer to a constant image: 4 x the weight
    assert torch.allclose(
        target.patch_embed.proj.weight.sum((2, 3)),
        torch.tensor(256.0),
        rtol=0.02,  # resampling is a least-squares fit
    )


def test_a_file_that_gives_nothing_stops_the_run(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'state_dict': {'conv.weight': torch.ones(3, 3)}}, path)
    with pytest.raises(ValueError, match='gave no tensor to the model'):
        build(pretrained=str(path))


def test_a_file_of_fresh_weights_stops_the_run(tmp_path):
    _, path = source(tmp_path, std=0.02)
    with pytest.raises(ValueError, match=r'looks untrained.*0\.0[12]\d+, bel'):
        build(pretrained=str(path))
    given = dict(source=str(path), min_std=0.01)
    assert build(pretrained=given).pretrained_tensors > 0


def test_a_checkpoint_needs_no_file_of_the_weights_before_training():
    cfg = Config(dict(model=dict(TINY, pretrained='of_another_machine.pth')))
    assert build_model(cfg).pretrained_tensors == 0
    model = MODELS.build(
        pruned_model_config(cfg.model, PruningPlan((), {}).to_dict())
    )
    assert model.pretrained_tensors == 0
