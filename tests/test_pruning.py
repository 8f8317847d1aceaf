"""Pruning from Python: `mmprune.prune` and `mmprune.load_model`."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from tiny_project import IMAGE, TinyModel, write_checkpoint, write_config
from torch import nn

import mmprune
import mmprune.pruning
from mmprune.adapters import ffn_groups
from mmprune.checkpoints.writing import save_pruned
from mmprune.cost import count_macs, count_params
from mmprune.masks import mask_plan
from mmprune.pruning import find_groups
from mmprune.surgery import apply_plan


def resnet():
    torchvision = pytest.importorskip('torchvision')
    return lively(torchvision.models.resnet18(num_classes=10))


def vit():
    timm = pytest.importorskip('timm')
    return timm.create_model(
        'vit_tiny_patch16_224',
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=6,
        num_classes=10,
    ).eval()


def lively(model):
    """Norms that do something: fresh ones are the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.eval()


PICTURE = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


@pytest.mark.parametrize('make', [resnet, vit])
def test_a_model_gets_smaller_in_one_call(make, tmp_path):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = mmprune.prune(model, PICTURE, ratio=0.3)
    assert type(small) is type(model)
    assert count_params(small) < 0.85 * count_params(model)
    assert len(small.pruning_plan.keep) >= 4
    # The given one is left as it is.
    assert not hasattr(model, 'pruning_plan')
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    # It computes what the masked model does.
    masked = make()
    masked.load_state_dict(before)
    mask_plan(masked, small.pruning_plan)
    with torch.no_grad():
        expected, found = masked(PICTURE), small(PICTURE)
    assert torch.allclose(expected, found, atol=1e-5)
    # Its file builds it again, without the code above.
    path = tmp_path / 'small.pth'
    save_pruned(small, small.pruning_plan, path)
    fresh = make()
    apply_plan(fresh, mmprune.PruningPlan.load(path))
    fresh.load_state_dict(torch.load(path)['state_dict'])
    with torch.no_grad():
        assert torch.equal(fresh(PICTURE), found)


def test_units_of_a_vit_are_heads_and_neurons():
    small = mmprune.prune(vit(), PICTURE, ratio=0.5)
    kinds = {g.granularity for g in small.pruning_plan.groups}
    assert kinds == {'head', 'neuron'}
    heads = sum(block.attn.num_heads for block in small.blocks)
    neurons = sum(block.mlp.fc1.out_features for block in small.blocks)
    assert (heads, neurons) == (6, 192)  # of 12 and 384


def test_the_target_is_macs_on_request():
    model = resnet()
    small = mmprune.prune(model, PICTURE, 0.5, target='macs')

    def run(net):
        return net(PICTURE)

    left = count_macs(small, run)[''] / count_macs(model, run)['']
    assert left == pytest.approx(0.5, abs=0.01)


def test_a_criterion_with_data_takes_batches_and_a_loss():
    model = TinyModel(16).eval()
    small = mmprune.prune(
        model,
        (IMAGE,),
        0.5,
        criterion='taylor',
        batches=[IMAGE, 2 * IMAGE],
        loss=lambda net, batch: net(batch, mode='loss')['loss'],
    )
    assert small.pruning_plan.provenance['calibration_batches'] == 2
    assert small.one.out_channels < 32


def test_named_arguments_are_a_dict_and_protected_groups_stay_whole():
    model = TinyModel(16).eval()
    small = mmprune.prune(model, {'inputs': IMAGE}, 0.5, protect=['^one'])
    assert 'one' not in small.pruning_plan.keep
    assert small.branch[0].out_features == 32


def test_the_mode_of_each_module_stays():
    model = TinyModel(16).train()
    model.norm.eval()
    small = mmprune.prune(model, IMAGE)
    assert small.training
    assert not small.norm.training


class Shuffled(nn.Module):
    """Its second layer reads the channels in an order of its own."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.one(x).movedim(1, -1)
        # Depends on the width: not the same for masked and pruned channels.
        x = self.net(x * x.shape[-1])
        return self.last(x.movedim(-1, 1))


def test_groups_that_fail_the_check_stay_whole():
    small = mmprune.prune(Shuffled().eval(), PICTURE, 0.5)
    assert list(small.pruning_plan.keep) == ['net.0', 'net.2']
    assert small.one.out_channels == 8


def test_a_dimension_of_a_tensor_belongs_to_one_adapter(monkeypatch):
    """What two adapters cut is the first one's; the other says so."""

    def again(model):
        for group in ffn_groups(model):
            yield dataclasses.replace(group, name='again')

    monkeypatch.setattr(mmprune.pruning, 'ADAPTERS', (ffn_groups, again))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    one, two, _ = find_groups(model, lambda net: net(torch.ones(1, 6)))
    assert (one.name, one.dense) == ('0', '')
    assert two.dense == 'dimension 0 of 0.bias belongs to 0'


def test_layers_of_adapters_and_traced_channels_go_together():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    ).eval()
    groups = find_groups(model, lambda net: net(PICTURE))
    assert [g.name for g in groups if not g.dense] == ['5', '0', '2']


def test_a_model_without_groups_is_refused_with_the_reason():
    with pytest.raises(ValueError, match='no units of Linear'):
        mmprune.prune(nn.Linear(3, 2), torch.ones(1, 3))


def test_an_unknown_criterion_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'l3'; there are l1, l2, bn_scale"):
        mmprune.prune(nn.Linear(3, 2), torch.ones(1, 3), criterion='l3')


def test_load_model_takes_the_path_of_a_config(tmp_path):
    config, checkpoint = write_config(tmp_path), write_checkpoint(tmp_path)
    model = mmprune.load_model(config, checkpoint)
    saved = torch.load(checkpoint)['state_dict']
    assert torch.equal(model.one.weight, saved['one.weight'])
    assert not model.training


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip('torchvision')
    text = (ROOT / 'docs' / 'python.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks[1:3]:
        exec(block, names)
    small, again = names['small'].state_dict(), names['again'].state_dict()
    assert small['layer1.0.conv1.weight'].shape[0] < 64
    assert all(torch.equal(again[k], v) for k, v in small.items())


def test_the_page_lists_all_keywords():
    text = (ROOT / 'docs' / 'python.md').read_text()
    rows = [line.split('|')[1] for line in text.splitlines() if '|' in line]
    listed = set(re.findall('`(\\w+)`', ' '.join(rows)))
    names = set(inspect.signature(mmprune.prune).parameters)
    assert listed == names - {'model', 'example'}


def test_importing_mmprune_imports_no_pytorch():
    code = 'import sys, mmprune; print("torch" in sys.modules)'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == 'False', done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = mmprune.prun
