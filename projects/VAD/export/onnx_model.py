"""Exported files in the place of the detector, for a test loop."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData

from mmprune.errors import blame
from mmprune.onnx_file import check_export
from projects.VAD.model.data_preprocessor import VADDataPreprocessor
from projects.VAD.model.vad import driving_command

from . import driver


class OnnxVAD(BaseModel):
    """Predicts as :class:`VAD` does, by the driver and onnxruntime.

    Args:
        about: What ``deploy.json`` holds.
        run: Runs a graph by its name, arrays by name in and out.
    """

    def __init__(
        self,
        about: dict,
        run: Callable[[str, driver.Arrays], driver.Arrays],
    ) -> None:
        super().__init__(data_preprocessor=VADDataPreprocessor())
        self.driver = driver.Driver(about, run)

    def train(self, mode: bool = True) -> 'OnnxVAD':
        """Sets the mode; an evaluation begins anew, as :class:`VAD`'s."""
        if hasattr(self, 'driver'):
            self.driver.forget()
        return super().train(mode)

    def forward(
        self,
        inputs: dict,
        data_samples: Sequence[Det3DDataSample],
        mode: str = 'predict',
    ) -> list[Det3DDataSample]:
        """Returns the sample with what is seen, forecast and planned."""
        (sample,) = data_samples
        meta = sample.metainfo
        ego = sample.get('gt_ego', {}).get('lcf_feat')
        outs = self.driver.step(
            inputs['img'].cpu().numpy(),
            np.asarray(meta['lidar2img']),
            np.asarray(meta['can_bus']),
            meta['scene_token'],
            None if ego is None else np.asarray(ego),
        )
        found = {
            name: torch.from_numpy(array)
            for name, array in self.driver.decode(outs).items()
        }
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(found['boxes'], box_dim=9),
            scores_3d=found['scores'],
            labels_3d=found['labels'],
            trajs=found['trajs'],
            traj_scores=found['traj_scores'],
        )
        sample.pred_map = InstanceData(
            pts=found['line_pts'],
            scores=found['line_scores'],
            labels=found['line_labels'],
        )
        sample.pred_ego = BaseDataElement(
            plans=found['plans'], command=driving_command(sample)
        )
        return [sample]


def open_exported(folder: Path) -> OnnxVAD:
    """Returns the model that ``tools/export.py`` wrote into a folder.

    Raises:
        ValueError: If there is none, or onnxruntime does not run its form.
    """
    check_export()
    path = folder / 'deploy.json'
    if not path.is_file():
        raise ValueError(
            f'{folder} holds no export: it has no deploy.json; make it by '
            'tools/export.py'
        )
    with blame(f'the export in {folder} cannot be opened'):
        about: dict[str, Any] = json.loads(path.read_text())
        if about.get('form') == 'plugin':
            raise ValueError(
                'onnxruntime does not run the plug-in form; export with '
                '--form gridsample'
            )
        return OnnxVAD(about, driver.sessions(folder, about))
