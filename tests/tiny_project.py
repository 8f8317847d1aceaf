"""A project of twenty lines: a model, its family and its config.

Configs name it by ``custom_imports``, as a user's own project would be.
"""

import copy
import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from mmprune.discovery import discovered_groups
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
# Put behind CONFIG: training draws random numbers in the model and the data.
LIVELY = """
model = dict(type='TinyModel', width=16, dropout=0.3)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='TinyImages', count=8, noise=0.5),
)
"""
IMAGE = torch.linspace(-1, 1, 3 * 12 * 12).view(1, 3, 12, 12)


@MODELS.register_module()
class TinyModel(BaseModel):
    """Convolutions with norms, a linear branch, and a frozen stem."""

    def __init__(
        self,
        width: int,
        data_preprocessor=None,
        norm_eval: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(data_preprocessor)
        self.norm_eval = norm_eval
        self.dropout = nn.Dropout(dropout)
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

    def train(self, mode=True):
        """Leaves the statistics of the norm alone on request."""
        super().train(mode)
        self.norm.train(mode and not self.norm_eval)
        return self

    def forward(self, inputs, data_samples=None, mode='tensor'):
        """Returns logits, predictions or the loss."""
        if isinstance(inputs, list):
            inputs = torch.stack(inputs)
        x = self.norm(self.one(self.stem(inputs).relu())).relu()
        x = self.dropout(self.two(x).relu().mean((2, 3)))
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

    def __init__(self, cfg, wrong=False) -> None:
        self.cfg = cfg
        self.wrong = wrong

    def groups(self, model):
        """Yields the groups; on request one that forgets its readers."""
        for group in discovered_groups(model, lambda m: m(IMAGE)):
            if self.wrong and group.name == 'two':
                group = dataclasses.replace(group, consumers=())
            yield group

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
    """A few images, with noise on request; from a folder if one is named."""

    def __init__(self, count=3, noise=0.0, folder=None, **kwargs):
        self.count, self.noise, self.folder = count, noise, folder
        super().__init__(**kwargs)

    def load_data_list(self):
        """Returns their numbers."""
        if self.folder is not None:
            list(Path(self.folder).iterdir())
        return [{'number': i} for i in range(self.count)]

    def prepare_data(self, idx):
        """Returns one image."""
        image = IMAGE[0] * (idx + 1)
        image = image + self.noise * torch.rand_like(image)
        return {'inputs': image, 'data_samples': idx}


@METRICS.register_module()
class TinyParts(BaseMetric):
    """Mean and maximum of the logits, as asked for."""

    known = ('mean', 'most')

    def __init__(self, parts=known, collect_dir=None) -> None:
        super().__init__(collect_dir=collect_dir)
        if not set(parts) <= set(self.known):
            known = ', '.join(self.known)
            raise ValueError(f'parts are {known}, found {parts}')
        self.parts = parts

    def process(self, data_batch, data_samples):
        """Keeps the logits."""
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        """Returns what was asked for."""
        logits = torch.stack(results)
        found = dict(mean=logits.mean().item(), most=logits.max().item())
        return {part: found[part] for part in self.parts}


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


def write_checkpoint(folder: Path, momentum: bool = False, **meta) -> Path:
    """Writes a checkpoint of a model with lively weights.

    Args:
        folder: Where.
        momentum: Whether an optimizer comes with it, as training leaves it.
        meta: Of the checkpoint.
    """
    torch.manual_seed(1)
    model = TinyModel(16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    path = folder / 'dense.pth'
    checkpoint = {'meta': meta, 'state_dict': model.state_dict()}
    if momentum:
        sgd = torch.optim.SGD(model.parameters(), lr=7.0, momentum=0.9)
        for param in model.parameters():
            if param.requires_grad:
                param.grad = torch.randn_like(param)
        state = copy.deepcopy(model.state_dict())
        sgd.step()
        checkpoint['optimizer'] = sgd.state_dict()
        checkpoint['state_dict'] = state
    torch.save(checkpoint, path)
    return path
