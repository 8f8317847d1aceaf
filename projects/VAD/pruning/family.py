"""What pruning needs to know about VAD: groups, an example, a loss."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from mmprune.groups import PruneGroup
from mmprune.registry import TASK_UTILS
from mmprune.tensor_path import TensorPath
from projects.VAD.data.config_datasets import set_info_file
from projects.VAD.export.options import VADExportOptions

from .groups import DENSE_REASONS, vad_groups
from .samples import (
    DRAWN,
    calibration_dataset,
    drawn_sample,
    example_dataset,
    info_file,
    read_samples,
)


@TASK_UTILS.register_module()
class VADPruning:
    """Groups, examples and calibration of VAD.

    Data are read, or drawn, when they are first asked for; groups need none.
    The example is the first keyframe of the config's test data. Calibration
    takes the first keyframes of its training data, through the pipeline of
    the test: with no augmentation and nothing random. Where the one or the
    other is not on this machine, a drawn frame of the mini world takes its
    place. Test data are not calibrated on, unless ``use_annotations`` names
    them.

    Args:
        cfg: The config of the model.
        num_batches: Keyframes used for calibration.
        picture_size: Width and height of a drawn picture, before the
            pipeline: that of the pictures that the config reads.
        calibration_file: Info file to calibrate on, in place of that of the
            training data; ``use_annotations`` sets it.
    """

    EXPORT_OPTIONS = VADExportOptions

    def __init__(
        self,
        cfg: Config,
        num_batches: int = 8,
        picture_size: Sequence[int] = (1600, 900),
        calibration_file: str | None = None,
    ) -> None:
        self.cfg = cfg
        self.calibration_file = calibration_file
        self.num_batches = num_batches
        self.picture_size = tuple(picture_size)

    @staticmethod
    def use_annotations(cfg: Config, ann_file: str | Path) -> None:
        """Lets a config test and calibrate on an info file, in place.

        What it trains on stays.

        Args:
            cfg: The config.
            ann_file: Info file of VAD or in mmdet3d's format.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The config has no dataset.
        """
        set_info_file(cfg, ann_file)
        if cfg.get('pruning') is not None:
            cfg.pruning['calibration_file'] = str(Path(ann_file).resolve())

    def tensor_path(
        self, model: nn.Module, asked: VADExportOptions | None = None
    ) -> TensorPath:
        """Returns the image part and the head without and with a BEV."""
        from projects.VAD.export.tensor_path import vad_path

        return vad_path(self, model, asked)

    @staticmethod
    def onnx_model(folder: Path) -> nn.Module:
        """Returns exported files as a model that a test loop runs."""
        from projects.VAD.export.onnx_model import open_exported

        return open_exported(folder)

    @property
    def source(self) -> str:
        """What the example is: an info file, or a drawn frame."""
        return info_file(example_dataset(self.cfg)) or DRAWN

    @property
    def calibration_source(self) -> str:
        """What the calibration batches are."""
        return info_file(self._calibration_dataset) or DRAWN

    @cached_property
    def example(self) -> dict:
        """The sample on which models are compared and cost is counted."""
        dataset = example_dataset(self.cfg)
        if info_file(dataset) is None:
            return self._drawn
        return read_samples(dataset, 1)[0]

    @cached_property
    def calibration_samples(self) -> list[dict]:
        """The samples to calibrate on."""
        dataset = self._calibration_dataset
        if info_file(dataset) is None:
            return [self._drawn]
        return read_samples(dataset, self.num_batches)

    @property
    def _calibration_dataset(self) -> dict | None:
        return calibration_dataset(self.cfg, self.calibration_file)

    @cached_property
    def _drawn(self) -> dict:
        return drawn_sample(example_dataset(self.cfg), self.picture_size)

    def groups(self, model: nn.Module) -> Iterator[PruneGroup]:
        """Yields what can be removed."""
        return vad_groups(model)

    def dense_reason(self, tensor: str) -> str:
        """Returns why no group covers a tensor."""
        for pattern, reason in DENSE_REASONS:
            if re.search(pattern, tensor):
                return reason
        return 'no group covers it'

    def batches(self) -> list[dict]:
        """Returns one batch per keyframe."""
        return [pseudo_collate([s]) for s in self.calibration_samples]

    def forward(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns the raw outputs for two frames of the example.

        The second frame reads the BEV of the first, as in a drive. Motion
        reads all map vectors, the most that it can select: how many are
        selected depends on the weights, and neither costs nor outputs could
        be compared.
        """
        return self._run(model, frames=2)

    def single_frame(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns the raw outputs for one frame; what cost is counted on."""
        return self._run(model, frames=1)

    def _run(self, model: nn.Module, frames: int) -> dict[str, Tensor]:
        data = model.data_preprocessor(
            pseudo_collate([copy.copy(self.example)]), False
        )
        images, samples = data['inputs']['img'], data['data_samples']
        if frames > 1:
            images = torch.stack([images] * frames, 1)
            samples = [_with_history(samples[0], frames)]
        with torch.no_grad(), all_lanes(model):
            return model({'img': images}, samples, mode='tensor')

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the calibration loss of a batch.

        The sum of VAD's losses for which the keyframe has ground truth. In
        place of what it lacks (map, futures) stands half the mean square of
        the outputs concerned, so that every unit has a gradient.
        """
        data = model.data_preprocessor(batch, False)
        samples = data['data_samples']
        lacking = [_complete(sample) for sample in samples]
        with all_lanes(model):
            outs = model(data['inputs'], samples, mode='tensor')
        losses = model.pts_bbox_head.loss(outs, samples)
        total = sum(v for k, v in losses.items() if 'loss' in k)
        for name in {n for names in lacking for n in names}:
            total = total + outs[name].square().mean() / 2
        return total


@contextmanager
def all_lanes(model: nn.Module) -> Iterator[None]:
    """Lets every agent read every map vector while it lasts.

    Which ones an agent reads is otherwise decided by two thresholds, at
    which a rounding error of 1e-7 flips a whole trajectory.
    """
    head = model.pts_bbox_head
    thresholds = head.map_threshold, head.lane_distance
    head.map_threshold, head.lane_distance = -1.0, float('inf')
    try:
        yield
    finally:
        head.map_threshold, head.lane_distance = thresholds


def _with_history(sample: Any, frames: int) -> Any:
    sample = copy.copy(sample)
    meta = dict(sample.metainfo)
    meta.pop('history', None)
    sample.set_metainfo(dict(history=[meta] * (frames - 1)))
    return sample


def _complete(sample: Any) -> list[str]:
    """Adds empty ground truth; returns the outputs that have none."""
    lacking = []
    objects = sample.gt_instances_3d
    device = objects.labels_3d.device
    if 'attr_labels' not in objects:
        objects.attr_labels = torch.zeros(len(objects), 34, device=device)
        lacking += ['all_traj_preds', 'all_traj_cls_scores']
    if 'gt_map' not in sample:
        empty = torch.zeros(0, device=device)
        sample.gt_map = InstanceData(
            labels=empty.long(),
            bboxes=empty.view(0, 4),
            pts=empty.view(0, 20, 2),
            shift_pts=empty.view(0, 19, 20, 2),
        )
        lacking += ['map_all_cls_scores', 'map_all_pts_preds']
    if 'gt_ego' not in sample:
        sample.gt_ego = BaseDataElement(
            fut_trajs=torch.zeros(6, 2, device=device),
            fut_masks=torch.zeros(6, device=device),
            fut_cmd=torch.zeros(3, device=device),
        )
        lacking += ['ego_fut_preds']
    return lacking
