"""The detector: images in, objects, map, motion and plan out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from projects.VAD.data.box_convention import to_new
from projects.VAD.data.frame_queue import moved_since

from .grid_mask import GridMask
from .transformer import FrameGeometry


@dataclass(frozen=True)
class Memory:
    """What the next frame of the scene reads of a frame.

    Attributes:
        scene_token: The scene.
        can_bus: ``[18]``, absolute.
        bev: ``[1, HW, C]``.
    """

    scene_token: str
    can_bus: np.ndarray
    bev: Tensor


@MODELS.register_module()
class VAD(Base3DDetector):
    """Vectorized autonomous driving (Jiang et al., ICCV 2023).

    ``inputs`` has ``img``: ``[B, cameras, 3, H, W]``, normalised and padded;
    with history frames ``[B, frames, cameras, 3, H, W]``, the current one
    last, and the history's metainfo in the sample's ``history``.

    In ``predict`` frames of a scene come in order, one at a time; the
    features of the last one are remembered, in no buffer. The modes ``loss``
    and ``tensor`` remember nothing: what came before is the sample's history.

    Args:
        img_backbone: Config of the image backbone.
        img_neck: Config of the feature pyramid.
        pts_bbox_head: Config of the :class:`VADHead`.
        use_grid_mask: Whether to drop image squares in training.
        data_preprocessor: Config of the preprocessor.
        init_cfg: Config of the initialisation.
    """

    def __init__(
        self,
        img_backbone: dict,
        img_neck: dict,
        pts_bbox_head: dict,
        use_grid_mask: bool = True,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        # Built here, so that the model also builds where no default scope is
        # set: the base class asks mmengine's registry.
        if data_preprocessor is not None:
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor, init_cfg)
        self._memory: Memory | None = None
        self.pts_bbox_head = MODELS.build(pts_bbox_head)
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.grid_mask = GridMask(prob=0.7 if use_grid_mask else 0.0)

    def forget(self) -> None:
        """Drops the memory: the next frame begins a scene."""
        self._memory = None

    def train(self, mode: bool = True) -> 'VAD':
        """Sets the mode, as ``nn.Module`` does; an evaluation begins anew.

        Test loops of mmengine call ``eval()`` first.
        """
        self.forget()
        return super().train(mode)

    def extract_feat(self, images: Tensor) -> list[Tensor]:
        """Returns per level ``[B, cameras, C, h, w]``.

        Args:
            images: ``[B, cameras, 3, H, W]``.

        Raises:
            ValueError: If the images have another number of dimensions.
        """
        if images.dim() != 5:
            raise ValueError(
                'VAD reads images [batch, cameras, 3, H, W], got shape '
                f'{tuple(images.shape)}; check the pipeline.'
            )
        pictures = self.grid_mask(images.flatten(0, 1))
        if pictures.device.type == 'cpu':
            # Convolutions and pooling take a sixth less time there when the
            # channels of a pixel lie side by side; what follows keeps that.
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        levels = self.img_neck(self.img_backbone(pictures))
        return [level.unflatten(0, images.shape[:2]) for level in levels]

    def loss(
        self, inputs: dict, data_samples: Sequence[Det3DDataSample], **kwargs
    ) -> dict[str, Tensor]:
        """Returns the loss terms of the current frame."""
        outs = self._forward(inputs, data_samples)
        return self.pts_bbox_head.loss(outs, data_samples)

    def _forward(
        self,
        inputs: dict,
        data_samples: Sequence[Det3DDataSample] | None = None,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Returns the raw outputs of :meth:`VADHead.forward`.

        The metainfo's ``can_bus`` is relative to the frame before where
        there is a history; without one, the frame begins a scene.
        """
        images = inputs['img']
        metas = _metas(data_samples)
        prev_bev = None
        if images.dim() == 6:
            prev_bev = self._history_bev(images[:, :-1], metas)
            images = images[:, -1]
        if prev_bev is None:
            metas = [_at_rest(meta) for meta in metas]
        return self._run(images, metas, prev_bev, data_samples)

    def _run(
        self,
        images: Tensor,
        metas: Sequence[dict],
        prev_bev: Tensor | None,
        data_samples: Sequence[Det3DDataSample],
    ) -> dict[str, Tensor]:
        return self.pts_bbox_head(
            self.extract_feat(images),
            FrameGeometry.from_metas(metas, images.device),
            prev_bev,
            _ego_status(data_samples, self.pts_bbox_head.ego_columns),
        )

    @torch.no_grad()
    def _history_bev(
        self, images: Tensor, metas: Sequence[dict]
    ) -> Tensor | None:
        """Returns the BEV of the last history frame, None without any.

        Args:
            images: ``[B, frames, cameras, 3, H, W]``.
            metas: Metainfo of the current frame, with the ``history``.
        """
        frames = images.shape[1]
        histories = [meta.get('history', []) for meta in metas]
        if any(len(history) != frames for history in histories):
            raise ValueError(
                f'the images have {frames} history frames, the metainfo '
                f'{[len(history) for history in histories]}; the transform '
                'that packs them must write one entry per frame.'
            )
        training = self.training
        self.eval()
        prev_bev = None
        for i in range(frames):
            geometry = FrameGeometry.from_metas(
                [history[i] for history in histories], images.device
            )
            features = self.extract_feat(images[:, i])
            prev_bev = self.pts_bbox_head.encode(features, geometry, prev_bev)
        self.train(training)
        return prev_bev

    def step(
        self, inputs: dict, data_samples: Sequence[Det3DDataSample]
    ) -> dict[str, Tensor]:
        """Returns the raw outputs of the next frame and remembers it.

        Args:
            inputs: ``img`` ``[1, cameras, 3, H, W]``.
            data_samples: One sample; its ``can_bus`` is absolute.

        Raises:
            ValueError: If there is more than one sample.
            KeyError: If its metainfo lacks a key.
        """
        metas = _metas(data_samples)
        if len(metas) != 1:
            raise ValueError(
                f'VAD predicts one frame at a time, got {len(metas)}; set '
                'batch_size=1 in the dataloader.'
            )
        meta = metas[0]
        for key in ('scene_token', 'can_bus'):
            if key not in meta:
                raise KeyError(
                    f'VAD needs {key!r} in the metainfo to predict; add it to '
                    'meta_keys of the packing transform.'
                )
        last, self._memory = self._memory, None
        if last is not None and last.scene_token != meta['scene_token']:
            last = None
        now, prev_bev = _at_rest(meta), None
        if last is not None:
            since = moved_since(meta['can_bus'], last.can_bus)
            now, prev_bev = dict(meta, can_bus=since), last.bev
        outs = self._run(inputs['img'], [now], prev_bev, data_samples)
        self._memory = Memory(
            meta['scene_token'],
            np.array(meta['can_bus']),
            outs['bev_embed'].detach().transpose(0, 1),
        )
        return outs

    def predict(
        self, inputs: dict, data_samples: Sequence[Det3DDataSample], **kwargs
    ) -> list[Det3DDataSample]:
        """Returns the samples with what is seen, forecast and planned.

        Adds ``pred_instances_3d`` (boxes of mmdet3d 1.x, ``trajs``
        ``[n, modes, steps, 2]`` positions in metres), ``pred_map`` (``pts``
        in metres) and ``pred_ego`` (``plans`` ``[commands, steps, 2]``
        positions in metres, ``command``).
        """
        outs = self.step(inputs, data_samples)
        plans = outs['ego_fut_preds'].float().cumsum(-2)
        for sample, (objects, lines), plan in zip(
            data_samples, self.pts_bbox_head.decode(outs), plans, strict=True
        ):
            sample.pred_instances_3d = _instances(objects)
            sample.pred_map = InstanceData(**lines)
            sample.pred_ego = BaseDataElement(
                plans=plan, command=driving_command(sample)
            )
        return list(data_samples)


def _metas(data_samples: Sequence[Det3DDataSample] | None) -> list[dict]:
    if not data_samples:
        raise ValueError(
            'VAD needs data_samples in every mode: they hold where cameras '
            'and vehicle are.'
        )
    return [sample.metainfo for sample in data_samples]


def _at_rest(meta: dict) -> dict:
    """The metainfo of a frame that has none before it."""
    if 'can_bus' not in meta:
        return meta
    can_bus = meta['can_bus']
    return dict(meta, can_bus=moved_since(can_bus, can_bus))


def _instances(objects: dict[str, Tensor]) -> InstanceData:
    boxes = to_new(objects['boxes'])
    steps = objects['trajs'].unflatten(-1, (-1, 2)).cumsum(-2)
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[-1]),
        scores_3d=objects['scores'],
        labels_3d=objects['labels'],
        trajs=steps + boxes[:, None, None, :2],
        traj_scores=objects['traj_scores'],
    )


def _ego_status(
    data_samples: Sequence[Det3DDataSample], columns: Sequence[int]
) -> Tensor | None:
    """What the planner reads about the ego, ``[B, len(columns)]``."""
    if not columns:
        return None
    features = [s.get('gt_ego', {}).get('lcf_feat') for s in data_samples]
    if any(feature is None for feature in features):
        raise KeyError(
            'the planner reads the ego status (ego_lcf_feat_idx), but a '
            'sample has no lcf_feat in gt_ego; use a data set that gives it.'
        )
    return torch.stack([torch.as_tensor(f) for f in features])[
        :, list(columns)
    ]


def driving_command(sample: Det3DDataSample) -> int | None:
    """Index of the driving command, where the sample has one."""
    command = sample.get('gt_ego', {}).get('fut_cmd')
    return None if command is None else int(torch.as_tensor(command).argmax())
