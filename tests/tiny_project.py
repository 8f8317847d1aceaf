"""A project of twenty lines: a model, its family and its config.

Configs name it by ``custom_imports``, as a user's own project would be.
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from mmprune.adapters import ffn_groups, traced_groups
from mmprune.registry import TASK_UTILS

CONFIG = """
family = 'tiny'
custom_imports = dict(imports=['mmprune', 'tiny_project'])
model = dict(type='TinyModel', width=16)
pruning = dict(type='mmprune.TinyFamily')
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='TinyImages'),
)
test_cfg = dict()
test_evaluator = dict(type='TinyMean')
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='TinyImages'),
)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""
IMAGE = torch.linspace(-1, 1, 3 * 12 * 12).view(1, 3, 12, 12)


@MODELS.register_module()
class TinyModel(BaseModel):
    """Convolutions with norms, a linear branch, and a frozen stem."""

    def __init__(self, width: int, data_preprocessor=None) -> None:
        super().__init__(data_preprocessor)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stem.requires_grad_(False)
        self.one = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.two = nn.Conv2d(2 * width, width, 3, stride=2, padding=1)
        self.branch = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 3)
        )
        self.scored = nn.Sequential(
            nn.Linear(width, 8), nn.LayerNorm(8), nn.Linear(8, 2)
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        """Returns logits, predictions or the loss."""
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        x = self.norm(self.one(self.stem(inputs).relu())).relu()
        x = self.two(x).relu().mean((2, 3))
        outs = {'classes': self.branch(x), 'scores': self.scored(x)}
        if mode == 'loss':
            target = torch.zeros(len(inputs), dtype=torch.long)
            return {
                'loss': F.cross_entropy(outs['classes'], target)
                + outs['scores'].square().mean()
            }
        return list(outs['classes']) if mode == 'predict' else outs


@TASK_UTILS.register_module()
class TinyFamily:
    """Groups, example and loss of the tiny model."""

    source = 'a constant image'

    def __init__(self, cfg, ann_file=None, wrong=False) -> None:
        self.cfg = cfg
        self.wrong = wrong

    def groups(self, model):
        """Yields the groups; on request one that forgets its readers."""
        for group in traced_groups(model, lambda m: m(IMAGE)):
            if self.wrong and group.name == 'two':
                group = dataclasses.replace(group, consumers=())
            yield group
        yield from ffn_groups(model)

    def dense_reason(self, tensor):
        """Returns why a tensor is not covered."""
        return 'an output'

    def batches(self):
        """Returns the calibration batches."""
        return [IMAGE]

    def forward(self, model):
        """Returns all outputs."""
        return model(IMAGE)

    single_frame = forward

    def loss(self, model, batch):
        """Returns the calibration loss."""
        return model(batch, mode='loss')['loss']


@DATASETS.register_module()
class TinyImages(BaseDataset):
    """Three images."""

    def load_data_list(self):
        """Returns their numbers."""
        return [{'number': i} for i in range(3)]

    def prepare_data(self, idx):
        """Returns one image."""
        return {'inputs': IMAGE[0] * (idx + 1), 'data_samples': idx}


@METRICS.register_module()
class TinyMean(BaseMetric):
    """The mean logit."""

    def process(self, data_batch, data_samples):
        """Keeps the logits."""
        self.results.extend(x.mean().item() for x in data_samples)

    def compute_metrics(self, results):
        """Returns their mean."""
        return {'mean': sum(results) / len(results)}


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """Writes the config into a folder."""
    path = folder / 'tiny_config.py'
    path.write_text(text)
    return path


def write_checkpoint(folder: Path, **meta) -> Path:
    """Writes a checkpoint of a model with lively weights."""
    torch.manual_seed(1)
    model = TinyModel(16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    path = folder / 'dense.pth'
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, path)
    return path
