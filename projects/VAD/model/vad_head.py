"""The head of VAD: what it sees, how all will move, and the plan."""

from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from projects.VAD.data.ground_truth import ground_truth

from .decoders import AttentionDecoder
from .head_layers import Agents, Lanes, hidden_layer, make_branch
from .lane_encoder import LaneEncoder
from .perception_head import PerceptionHead, Polylines
from .transformer import FrameGeometry

# Numbers in gt_ego's lcf_feat.
EGO_FEATURES = 9


@MODELS.register_module()
class VADHead(PerceptionHead):
    """Turns camera features into objects, map, motion and plan.

    Jiang et al., VAD: Vectorized Scene Representation for Efficient
    Autonomous Driving, ICCV 2023. Boxes are in the convention of mmdet3d
    0.17 here, trajectories are offsets per step of 0.5 s.

    Args:
        transformer: Config of the :class:`VADPerceptionTransformer`.
        bbox_coder: Config of the box coder.
        map_coder: Config of the map coder.
        loss: Config of the loss module; without it the head cannot train.
        pc_range: Region x, y, z minima, then maxima, metres.
        bev_h: Rows of the BEV.
        bev_w: Columns of the BEV.
        embed_dims: Width of BEV and queries.
        feedforward_channels: Hidden width of the motion and ego decoders.
        num_query: Number of agent queries.
        num_map_vectors: Number of map polylines.
        num_map_points: Points per polyline.
        num_classes: Detection classes.
        num_map_classes: Map classes.
        num_modes: Motion modes per agent.
        num_steps: Future steps of agents and ego.
        num_commands: Driving commands, one plan each.
        dropout: Probability in the motion and ego decoders.
        map_threshold: Least class probability of a lane that motion reads.
        lane_distance: Largest distance from an agent to a lane that it
            reads, in fractions of the region.
        code_weights: Loss weight of each number of the box code.
        map_code_weights: Loss weight of each number of a map box.
        ego_lcf_feat_idx: Columns of the ego's local features that the
            planner reads (0 to 8: vx, vy, ax, ay, yaw rate, length, width,
            speed, curvature); the released models read none.

    Raises:
        ValueError: If such a column does not exist.
    """

    def __init__(
        self,
        transformer: dict,
        bbox_coder: dict,
        map_coder: dict,
        loss: dict | None = None,
        *,
        pc_range: Sequence[float],
        bev_h: int = 100,
        bev_w: int = 100,
        embed_dims: int = 256,
        feedforward_channels: int = 512,
        num_query: int = 300,
        num_map_vectors: int = 100,
        num_map_points: int = 20,
        num_classes: int = 10,
        num_map_classes: int = 3,
        num_modes: int = 6,
        num_steps: int = 6,
        num_commands: int = 3,
        dropout: float = 0.1,
        map_threshold: float = 0.5,
        lane_distance: float = 0.2,
        code_weights: Sequence[float] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2),
        map_code_weights: Sequence[float] = (1, 1, 1, 1),
        ego_lcf_feat_idx: Sequence[int] | None = None,
    ) -> None:
        columns = _checked_columns(ego_lcf_feat_idx)
        super().__init__(
            transformer,
            pc_range=pc_range,
            bev_shape=(bev_h, bev_w),
            map_shape=(num_map_vectors, num_map_points),
            embed_dims=embed_dims,
            num_query=num_query,
            num_classes=num_classes,
            num_map_classes=num_map_classes,
            num_steps=num_steps,
            code_weights=code_weights,
            map_code_weights=map_code_weights,
        )
        self.ego_columns = columns
        self.num_modes = num_modes
        self.num_commands = num_commands
        self.map_threshold = map_threshold
        self.lane_distance = lane_distance
        decoder = dict(
            embed_dims=embed_dims,
            feedforward_channels=feedforward_channels,
            dropout=dropout,
        )
        self._build_motion(embed_dims, decoder)
        self._build_planning(embed_dims, decoder)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.map_coder = TASK_UTILS.build(map_coder)
        self.loss_module = None if loss is None else MODELS.build(loss)

    def _build_motion(self, embed_dims: int, decoder: dict) -> None:
        self.motion_decoder = AttentionDecoder(**decoder)
        self.motion_mode_query = nn.Embedding(self.num_modes, embed_dims)
        self.pos_mlp_sa = nn.Linear(2, embed_dims)
        self.lane_encoder = LaneEncoder(embed_dims, embed_dims // 2)
        self.motion_map_decoder = AttentionDecoder(**decoder)
        self.pos_mlp = nn.Linear(2, embed_dims)

    def _build_planning(self, embed_dims: int, decoder: dict) -> None:
        self.ego_query = nn.Embedding(1, embed_dims)
        self.ego_agent_decoder = AttentionDecoder(**decoder)
        self.ego_agent_pos_mlp = nn.Linear(2, embed_dims)
        self.ego_map_decoder = AttentionDecoder(**decoder)
        self.ego_map_pos_mlp = nn.Linear(2, embed_dims)
        self.ego_fut_decoder = make_branch(
            2 * embed_dims + len(self.ego_columns),
            2 * self.num_commands * self.num_steps,
            False,
        )
        self.agent_fus_mlp = nn.Sequential(
            *hidden_layer(2 * embed_dims * self.num_modes, embed_dims),
            nn.Linear(embed_dims, embed_dims),
        )

    def init_weights(self) -> None:
        """Start of a training from scratch; classes begin at 1 % each.

        Embeddings stay as they were made, normally distributed, those of the
        position included, and the ego's positions as PyTorch makes them.
        """
        self.transformer.init_weights()
        for branches in (
            self.cls_branches,
            self.map_cls_branches,
            self.traj_cls_branches,
        ):
            for branch in branches:
                nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))
        for module in (
            self.motion_decoder,
            self.motion_map_decoder,
            self.lane_encoder,
            self.ego_agent_decoder,
            self.ego_map_decoder,
            self.pos_mlp_sa,
            self.pos_mlp,
        ):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for linear in (self.pos_mlp_sa, self.pos_mlp):
            nn.init.zeros_(linear.bias)
        nn.init.orthogonal_(self.motion_mode_query.weight)

    def forward(
        self,
        features: Sequence[Tensor],
        geometry: FrameGeometry,
        prev_bev: Tensor | None = None,
        ego_status: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns the raw outputs; L layers, A agents, V map vectors.

        Args:
            features: Per level ``[B, cameras, C, h, w]``.
            geometry: Of this frame.
            prev_bev: ``[B, HW, C]`` of the frame before.
            ego_status: ``[B, len(ego_columns)]``, of a head that reads it.

        Returns:
            ``bev_embed`` ``[HW, B, C]``; ``all_cls_scores`` ``[L, B, A,
            classes]`` logits; ``all_bbox_preds`` ``[L, B, A, 10]``;
            ``all_traj_preds`` ``[L, B, A, modes, steps * 2]`` m;
            ``all_traj_cls_scores`` ``[L, B, A, modes]`` logits;
            ``map_all_cls_scores`` ``[L, B, V, classes]`` logits;
            ``map_all_bbox_preds`` ``[L, B, V, 4]`` (cx, cy, w, h) and
            ``map_all_pts_preds`` ``[L, B, V, points, 2]``, fractions of the
            region; ``ego_fut_preds`` ``[B, commands, steps, 2]`` m.
        """
        bev = self.encode(features, geometry, prev_bev)
        return self.read(bev, ego_status)

    def read(
        self, bev: Tensor, ego_status: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the raw outputs for BEV features ``[B, HW, C]``."""
        detected, agents = self.detect_objects(bev)
        mapped, polylines = self.detect_lines(bev)
        lanes = self._lanes(polylines)
        motion = self._motion(agents, lanes)
        layers = len(self.cls_branches)
        trajs = self.traj_branches[0](motion)
        traj_scores = self.traj_cls_branches[0](motion).squeeze(-1)
        return dict(
            bev_embed=bev.transpose(0, 1),
            **detected,
            all_traj_preds=trajs.expand(layers, *trajs.shape),
            all_traj_cls_scores=traj_scores.expand(layers, *traj_scores.shape),
            **mapped,
            ego_fut_preds=self._plan(agents, lanes, motion, ego_status),
        )

    def _lanes(self, polylines: Polylines) -> Lanes:
        """A lane is where it is nearest to the region's rear left corner.

        Not nearest to the ego at (0.5, 0.5): the released weights were
        trained so.
        """
        query, points, scores = polylines
        nearest = points.norm(dim=-1).argmin(-1)[..., None, None]
        position = points.gather(2, nearest.expand(-1, -1, 1, 2)).squeeze(2)
        return Lanes(
            self.lane_encoder(query),
            position,
            scores.detach().float().sigmoid().amax(-1),
        )

    def choose_lanes(self, lanes: Lanes) -> Lanes:
        """Returns those that motion reads, as many as any sample found."""
        found = lanes.score > self.map_threshold
        most = int(found.sum(1).max())
        order = found.byte().argsort(dim=1, descending=True, stable=True)
        return lanes.taken(order[:, :most])

    def _motion(self, agents: Agents, lanes: Lanes) -> Tensor:
        """Returns ``[B, agents, modes, 2 * C]``."""
        tokens = agents.query.unsqueeze(2) + self.motion_mode_query.weight
        pos = self.pos_mlp_sa(agents.position).unsqueeze(2)
        pos = pos.expand_as(tokens).flatten(1, 2)
        query = tokens.flatten(1, 2)
        query = self.motion_decoder(query, query, pos, pos)
        query = query.unflatten(1, tokens.shape[1:3])
        near = self._read_lanes(query, agents.position, lanes)
        return torch.cat((query, near), dim=-1)

    def _read_lanes(
        self, query: Tensor, position: Tensor, lanes: Lanes
    ) -> Tensor:
        """Each agent reads the lanes near to it, ``[B, agents, modes, C]``.

        The modes of an agent have the same keys, so an agent is one item of
        the decoder's batch and its modes are the queries.

        Args:
            query: ``[B, agents, modes, C]``.
            position: ``[B, agents, 2]``.
            lanes: What can be read.
        """
        size, num_agents = query.shape[:2]
        feature, where, score = self.choose_lanes(lanes)
        found = score > self.map_threshold
        # [B, agents, lanes, 2]
        offset = where.unsqueeze(1) - position.unsqueeze(2)
        far = offset.norm(dim=-1) > self.lane_distance
        hidden = far | ~found.unsqueeze(1)
        # One empty lane is always read, so that no softmax is empty.
        feature = nn.functional.pad(feature, (0, 0, 0, 1))
        offset = nn.functional.pad(offset, (0, 0, 0, 1), value=1.0)
        seen = hidden.new_zeros(*hidden.shape[:2], 1)
        hidden = torch.cat((hidden, seen), -1)
        key = feature.unsqueeze(1).expand(-1, num_agents, -1, -1)
        here = self.pos_mlp(offset.new_zeros(1, 1, 2))
        out = self.motion_map_decoder(
            query.flatten(0, 1),
            key.flatten(0, 1),
            here,
            self.pos_mlp(offset).flatten(0, 1),
            hidden.flatten(0, 1),
        )
        return out.unflatten(0, (size, num_agents))

    def _plan(
        self,
        agents: Agents,
        lanes: Lanes,
        motion: Tensor,
        ego_status: Tensor | None,
    ) -> Tensor:
        """Returns ``[B, commands, steps, 2]``, offsets in metres."""
        # The ego is at the corner in these coordinates, as for the lanes.
        origin = agents.position.new_zeros(1, 1, 2)
        query = self.ego_query.weight.expand(len(motion), 1, -1)
        with_agents = self.ego_agent_decoder(
            query,
            self.agent_fus_mlp(motion.flatten(2)),
            self.ego_agent_pos_mlp(origin),
            self.ego_agent_pos_mlp(agents.position),
        )
        with_map = self.ego_map_decoder(
            with_agents,
            lanes.feature,
            self.ego_map_pos_mlp(origin),
            self.ego_map_pos_mlp(lanes.position),
        )
        ego = [with_agents, with_map]
        if self.ego_columns:
            ego.append(ego_status.to(with_map).unsqueeze(1))
        plan = self.ego_fut_decoder(torch.cat(ego, -1))
        return plan.view(len(motion), self.num_commands, self.num_steps, 2)

    def loss(
        self, outs: dict[str, Tensor], data_samples: Sequence
    ) -> dict[str, Tensor]:
        """Returns the loss terms of the raw outputs.

        Args:
            outs: Result of :meth:`forward`.
            data_samples: One ``Det3DDataSample`` per sample, with
                ``gt_instances_3d``, ``gt_map`` and ``gt_ego``.

        Raises:
            ValueError: If the head has no loss module.
            KeyError: If a sample lacks ground truth.
        """
        if self.loss_module is None:
            raise ValueError(
                'VADHead was built without a loss and cannot train; give it '
                "loss=dict(type='VADLoss')."
            )
        device = outs['bev_embed'].device
        return self.loss_module(
            {name: value.float() for name, value in outs.items()},
            [ground_truth(sample, device) for sample in data_samples],
            code_weights=self.code_weights,
            map_code_weights=self.map_code_weights,
        )

    def decode(
        self, outs: dict[str, Tensor]
    ) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Returns detections and polylines of each sample, old convention.

        Detections also have ``trajs`` ``[n, modes, steps * 2]``, offsets in
        metres, and ``traj_scores`` ``[n, modes]``, probabilities.

        Args:
            outs: Result of :meth:`forward`.
        """
        outs = {
            name: value[-1].float()
            for name, value in outs.items()
            if '_all_' in f'_{name}'
        }
        results = []
        for i in range(len(outs['all_cls_scores'])):
            objects = self.bbox_coder.decode(
                outs['all_cls_scores'][i], outs['all_bbox_preds'][i]
            )
            query = objects['queries']
            objects['trajs'] = outs['all_traj_preds'][i, query]
            scores = outs['all_traj_cls_scores'][i, query]
            objects['traj_scores'] = scores.sigmoid()
            lines = self.map_coder.decode(
                outs['map_all_cls_scores'][i],
                outs['map_all_pts_preds'][i],
                outs['map_all_bbox_preds'][i],
            )
            results.append((objects, lines))
        return results


def _checked_columns(columns: Sequence[int] | None) -> tuple[int, ...]:
    columns = tuple(columns or ())
    wrong = [c for c in columns if not 0 <= c < EGO_FEATURES]
    if wrong:
        raise ValueError(
            f'ego_lcf_feat_idx names the columns {wrong}, and the ego has '
            f'the features 0 to {EGO_FEATURES - 1}; correct the config.'
        )
    return columns
