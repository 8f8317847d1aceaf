"""Heads and sampling points of multi-scale deformable attention.

Recognised by class name: mmcv's ``MultiScaleDeformableAttention`` family as
BEVFormer and VAD use it. The rows of ``sampling_offsets`` are ordered (head,
queue entry, level, point, xy), those of ``attention_weights`` likewise.
"""

from collections.abc import Iterator

from torch import nn

from ..groups import PruneGroup, Slice, rows
from ..registry import FUNCTIONS

# Class -> how many neighbouring points must stay together. The points of
# spatial cross-attention belong to the 4 heights of a pillar in turn.
_POINTS_PER_UNIT = {
    'CustomMSDeformableAttention': 1,
    'MSDeformableAttention3D': 4,
    'TemporalSelfAttention': 1,
}
# Far below any logit, exp() of it is 0 in float16 as well.
_NEVER = -1e4


@FUNCTIONS.register_module()
def deformable_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields heads and points of every deformable attention of a model."""
    for path, module in model.named_modules():
        points = _POINTS_PER_UNIT.get(type(module).__name__)
        if points is not None:
            yield _heads(path, module, _output_proj(model, path))
            yield _points(path, module, points)


def _output_proj(model: nn.Module, path: str) -> str:
    """Spatial cross-attention projects in the module around."""
    if hasattr(model.get_submodule(path), 'output_proj'):
        return f'{path}.output_proj'
    return f'{path.rpartition(".")[0]}.output_proj'


def _heads(path: str, module: nn.Module, output_proj: str) -> PruneGroup:
    heads = module.num_heads
    width = module.value_proj.out_features // heads
    writers = ('value_proj', 'sampling_offsets', 'attention_weights')
    layers = {name: getattr(module, name) for name in writers}
    return PruneGroup(
        name=f'{path}.heads',
        granularity='head',
        size=heads,
        producers=tuple(
            part
            for name, layer in layers.items()
            for part in rows(
                f'{path}.{name}', layer, layer.out_features // heads
            )
        ),
        consumers=(Slice(f'{output_proj}.weight', 1, block=width),),
        attrs={f'{path}.num_heads': 1},
    )


def _points(path: str, module: nn.Module, together: int) -> PruneGroup:
    units = module.num_points // together
    copies = module.attention_weights.out_features // module.num_points
    return PruneGroup(
        name=f'{path}.points',
        granularity='point',
        size=units,
        producers=rows(
            f'{path}.sampling_offsets',
            module.sampling_offsets,
            2 * together,
            copies,
        ),
        consumers=tuple(
            Slice(
                f'{path}.attention_weights.{leaf}',
                0,
                block=together,
                copies=copies,
                fill=fill,
            )
            for leaf, fill in (('weight', 0.0), ('bias', _NEVER))
        ),
        attrs={f'{path}.num_points': together},
    )
