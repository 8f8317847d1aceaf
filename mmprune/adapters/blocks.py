"""Whole blocks of language models."""

from collections.abc import Iterator

from torch import nn

from ..blocks import find_blocks
from ..groups import PruneGroup, Slice
from ..layers import input_dim
from ..registry import FUNCTIONS

# Layers at the end of attention and of a feed-forward network, which write
# what is added to the stream.
_WRITERS = {
    *('o_proj', 'down_proj', 'out_proj', 'fc2', 'c_proj'),
    *('dense', 'dense_4h_to_h'),
}


@FUNCTIONS.register_module()
def block_groups(model: nn.Module) -> Iterator[PruneGroup]:
    """Yields every block of a language model, as a group of one unit.

    A block whose writing layers are zero adds nothing to the stream, as if
    it were not there; that holds where norms come before the layers.
    """
    for path in find_blocks(model):
        block = model.get_submodule(path)
        writers = {
            name
            for name, _ in block.named_modules()
            if name.rpartition('.')[2] in _WRITERS
        }
        consumers, producers = [], []
        for name, tensor in block.named_parameters():
            layer = name.rpartition('.')[0]
            dim = 0
            if layer in writers and tensor.ndim > 1:
                dim = 1 - input_dim(type(block.get_submodule(layer)))
            part = Slice(f'{path}.{name}', dim, block=tensor.shape[dim])
            (consumers if layer in writers else producers).append(part)
        yield PruneGroup(
            name=path,
            granularity='layer',
            size=1,
            producers=tuple(producers),
            consumers=tuple(consumers),
            dense=_reason(block, writers),
        )


def _reason(block: nn.Module, writers: set[str]) -> str:
    if len(writers) != 2:
        return (
            f'{len(writers)} of its layers are known to write to the stream, '
            'two are expected'
        )
    if getattr(block, 'do_layer_norm_before', True) is False:
        return 'its norms come after its layers'
    return ''
