"""What VAD sees: the BEV, the objects and the map."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .decoders import LayerOutput
from .head_layers import Agents, LearnedPositionalEncoding, make_branches
from .transformer import FrameGeometry


class Polylines(NamedTuple):
    """The map of the last layer: V vectors of P points.

    Attributes:
        query: ``[B, V, P, C]``.
        points: ``[B, V, P, 2]``, fractions of the region.
        scores: ``[B, V, classes]`` logits.
    """

    query: Tensor
    points: Tensor
    scores: Tensor


class PerceptionHead(BaseModule):
    """From camera features to objects and map.

    Its parts are attributes of the head that derives from it, because the
    released checkpoints name them so, and they are made in the order of the
    released code: the saved state of an optimizer counts them.

    Args:
        transformer: Config of the :class:`VADPerceptionTransformer`.
        pc_range: Region x, y, z minima, then maxima, metres.
        bev_shape: Rows and columns of the BEV.
        map_shape: Map polylines, and points of each.
        embed_dims: Width of BEV and queries.
        num_query: Number of agent queries.
        num_classes: Detection classes.
        num_map_classes: Map classes.
        num_steps: Future steps of agents.
        code_weights: Loss weight of each number of the box code.
        map_code_weights: Loss weight of each number of a map box.
    """

    def __init__(
        self,
        transformer: dict,
        *,
        pc_range: Sequence[float],
        bev_shape: tuple[int, int],
        map_shape: tuple[int, int],
        embed_dims: int,
        num_query: int,
        num_classes: int,
        num_map_classes: int,
        num_steps: int,
        code_weights: Sequence[float],
        map_code_weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.pc_range = tuple(pc_range)
        self.bev_shape = bev_shape
        self.map_shape = map_shape
        self.num_steps = num_steps
        # Parameters, because the released checkpoints carry them.
        self.code_weights, self.map_code_weights = (
            nn.Parameter(torch.tensor(list(map(float, w))), False)
            for w in (code_weights, map_code_weights)
        )
        self.positional_encoding = LearnedPositionalEncoding(
            embed_dims // 2, *bev_shape
        )
        self.transformer = MODELS.build(transformer)
        self._build_branches(embed_dims, num_classes, num_map_classes)
        self._build_queries(embed_dims, num_query)

    def _build_branches(
        self, embed_dims: int, num_classes: int, num_map_classes: int
    ) -> None:
        code_size = len(self.code_weights)
        layers = len(self.transformer.decoder.layers)
        map_layers = len(self.transformer.map_decoder.layers)
        self.cls_branches = make_branches(
            layers, embed_dims, num_classes, True
        )
        self.reg_branches = make_branches(layers, embed_dims, code_size, False)
        # Motion uses these two; they stand here for the order of the parts.
        self.traj_branches = make_branches(
            1, 2 * embed_dims, 2 * self.num_steps, False
        )
        self.traj_cls_branches = make_branches(1, 2 * embed_dims, 1, True)
        self.map_cls_branches = make_branches(
            map_layers, embed_dims, num_map_classes, True
        )
        self.map_reg_branches = make_branches(map_layers, embed_dims, 2, False)

    def _build_queries(self, embed_dims: int, num_query: int) -> None:
        height, width = self.bev_shape
        vectors, points = self.map_shape
        self.bev_embedding = nn.Embedding(height * width, embed_dims)
        # First half positional, second half content.
        self.query_embedding = nn.Embedding(num_query, 2 * embed_dims)
        self.map_instance_embedding = nn.Embedding(vectors, 2 * embed_dims)
        self.map_pts_embedding = nn.Embedding(points, 2 * embed_dims)

    def encode(
        self,
        features: Sequence[Tensor],
        geometry: FrameGeometry,
        prev_bev: Tensor | None = None,
    ) -> Tensor:
        """Returns the BEV features ``[B, HW, C]``.

        Args:
            features: Per level ``[B, cameras, C, h, w]``.
            geometry: Of this frame.
            prev_bev: ``[B, HW, C]`` of the frame before.
        """
        return self.transformer.encode(
            features,
            self.bev_embedding.weight,
            self.positional_encoding(),
            self.bev_shape,
            geometry,
            prev_bev,
        )

    def detect_objects(self, bev: Tensor) -> tuple[dict[str, Tensor], Agents]:
        """Returns raw outputs of all layers, and the agents of the last one.

        Args:
            bev: ``[B, HW, C]``.

        Returns:
            ``all_cls_scores`` and ``all_bbox_preds`` as of
            :meth:`VADHead.forward`; query and position of each agent.
        """
        pos, query = (
            x.expand(len(bev), -1, -1)
            for x in self.query_embedding.weight.chunk(2, dim=1)
        )
        outputs = self.transformer.decoder(
            query,
            pos,
            bev,
            self.transformer.reference_points(pos).float().sigmoid(),
            self.bev_shape,
            self.reg_branches,
        )
        scores = [
            branch(output.query)
            for branch, output in zip(self.cls_branches, outputs, strict=True)
        ]
        position = outputs[-1].logit[..., :2].detach().sigmoid()
        raw = dict(
            all_cls_scores=torch.stack(scores),
            all_bbox_preds=torch.stack([self._box_code(o) for o in outputs]),
        )
        return raw, Agents(outputs[-1].query, position)

    def _box_code(self, output: LayerOutput) -> Tensor:
        """Centre in metres, the rest as the branch gives it."""
        low, high = output.code.new_tensor(self.pc_range).chunk(2)
        x, y, z = (output.logit.sigmoid() * (high - low) + low).split(1, -1)
        code = output.code
        return torch.cat((x, y, code[..., 2:4], z, code[..., 5:]), dim=-1)

    def detect_lines(self, bev: Tensor) -> tuple[dict[str, Tensor], Polylines]:
        """Returns raw outputs of all layers, and the map of the last one.

        Args:
            bev: ``[B, HW, C]``.

        Returns:
            ``map_all_cls_scores``, ``map_all_bbox_preds`` and
            ``map_all_pts_preds`` as of :meth:`VADHead.forward`; the
            polylines.
        """
        embedding = (
            self.map_instance_embedding.weight.unsqueeze(1)
            + self.map_pts_embedding.weight
        ).flatten(0, 1)
        pos, query = (
            x.expand(len(bev), -1, -1) for x in embedding.chunk(2, dim=1)
        )
        outputs = self.transformer.map_decoder(
            query,
            pos,
            bev,
            self.transformer.map_reference_points(pos).float().sigmoid(),
            self.bev_shape,
            self.map_reg_branches,
        )
        queries = [o.query.unflatten(1, self.map_shape) for o in outputs]
        scores = [
            branch(query.mean(2))
            for branch, query in zip(
                self.map_cls_branches, queries, strict=True
            )
        ]
        points = torch.stack([o.logit.sigmoid() for o in outputs])
        points = points.unflatten(2, self.map_shape)
        low, high = points.amin(3), points.amax(3)
        raw = dict(
            map_all_cls_scores=torch.stack(scores),
            map_all_bbox_preds=torch.cat(((low + high) / 2, high - low), -1),
            map_all_pts_preds=points,
        )
        return raw, Polylines(queries[-1], points[-1].detach(), scores[-1])
