"""A stock Runner of mmengine for a tiny model on a few points."""

from pathlib import Path

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader


class Tiny(BaseModel):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(2, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, inputs, mode='tensor'):
        out = self.bn(self.fc(inputs))
        return dict(loss=out.pow(2).mean()) if mode == 'loss' else out


class Points(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'), palette=np.arange(6).reshape(2, 3))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.tensor([index, 1.0]))


def stock_runner(work_dir: Path, iters: int, ema: bool = True, **kwargs):
    loader = DataLoader(Points(), batch_size=4, sampler=None)
    return Runner(
        model=Tiny(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[
            dict(type='LinearLR', by_epoch=False, end=2),
            dict(
                type='OneCycleLR',
                eta_max=0.1,
                total_steps=9,
                end=9,
                by_epoch=False,
            ),
        ],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)
        ),
        custom_hooks=[dict(type='EMAHook')] if ema else None,
        default_scope='mmengine',
        experiment_name=f'compat_{work_dir.name}_{iters}',
        **kwargs,
    )
