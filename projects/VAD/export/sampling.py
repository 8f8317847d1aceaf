"""Sampling of feature maps in forms that ONNX and TensorRT have."""

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.VAD.model.deformable_sampling import Shapes, corners

# Of TensorRT, found by its name; inputs as mmdetection's operator has them.
PLUGIN = 'MultiscaleDeformableAttnPlugin_TRT'
_DOMAIN = 'trt.plugins'


def by_grid_sample(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor | None,
) -> Tensor:
    """``sample_levels`` with one GridSample per level, or camera and level.

    Every map is read by equally many queries, so that ``batch`` is known.
    """
    del batch
    maps, _, heads, width = value.shape
    locations, weights = _by_map(maps, locations, weights)
    if maps > 2:
        # Camera by camera: all samples of all of them are gigabytes.
        given = zip(value.split(1), locations, weights, strict=True)
        return torch.cat(
            [by_grid_sample(v, shapes, at, w, None) for v, at, w in given]
        )
    grid = (locations * 2 - 1).transpose(1, 2).flatten(0, 1)
    weights = weights.transpose(1, 2).flatten(0, 1)
    out = None
    levels = value.split([h * w for h, w in shapes], 1)
    for i, (level, (h, w)) in enumerate(zip(levels, shapes, strict=True)):
        picture = level.permute(0, 2, 3, 1).reshape(maps * heads, width, h, w)
        # [maps * heads, width, queries, points]
        read = F.grid_sample(picture, grid[:, :, i], align_corners=False)
        read = (read * weights[:, None, :, i]).sum(-1)
        out = read if out is None else out + read
    out = out.view(maps, heads * width, -1)
    return out.transpose(1, 2).flatten(0, 1)


def by_gather(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor | None,
) -> Tensor:
    """``sample_levels`` as four gathered corners per point, map by map."""
    del batch
    maps, _, heads, width = value.shape
    locations, weights = _by_map(maps, locations, weights)
    out = []
    for i in range(maps):
        table = value[i].reshape(-1, width)
        first = torch.zeros(locations.shape[1], dtype=torch.int32)
        rows, parts = corners(shapes, heads, locations[i], weights[i], first)
        read = F.embedding(rows, table) * parts.unsqueeze(-1)
        out.append(read.sum(-2).flatten(1))
    return torch.cat(out)


def by_plugin(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    batch: Tensor | None,
) -> Tensor:
    """``sample_levels`` as one node that TensorRT's own plug-in runs."""
    del batch
    locations, weights = _by_map(len(value), locations, weights)
    size = torch.tensor(shapes, dtype=torch.int32)
    area = size.prod(1)
    start = (area.cumsum(0) - area).int()
    out = _Plugin.apply(value, size, start, locations, weights)
    # Sizes as numbers: shape inference does not know the plug-in.
    maps, queries, _, *_ = locations.shape
    return out.reshape(maps * queries, value.shape[2] * value.shape[3])


FORMS = dict(gridsample=by_grid_sample, gather=by_gather, plugin=by_plugin)


def _by_map(
    maps: int, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """``[maps, queries, heads, levels, points(, 2)]``.

    A location far outside is moved to where no corner is inside: of points
    behind a camera the numbers leave an int32.
    """
    return tuple(
        x.unflatten(0, (maps, -1)) for x in (locations.clamp(-1, 2), weights)
    )


class _Plugin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, size, start, locations, weights):
        maps, queries = locations.shape[:2]
        shapes = [tuple(pair) for pair in size.tolist()]
        given = (x.flatten(0, 1) for x in (locations, weights))
        out = by_grid_sample(value, shapes, *given, size)
        return out.view(maps, queries, *value.shape[2:])

    @staticmethod
    def symbolic(g, value, size, start, locations, weights):
        out = g.op(
            f'{_DOMAIN}::{PLUGIN}', value, size, start, locations, weights
        )
        sizes = [t.type().sizes() for t in (value, locations)]
        shape = [*sizes[1][:2], *sizes[0][2:]]
        return out.setType(value.type().with_sizes(shape))
