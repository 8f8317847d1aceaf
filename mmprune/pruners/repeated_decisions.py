"""Two models compared where a tie must not decide: top-k, NMS, thresholds.

A pruned detector computes what the masked one does up to rounding, and
rounding may turn the order of two equal scores. So the second run takes the
decisions of the first: every integer or truth value that is computed from
floating point numbers.
"""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Decisions(TorchDispatchMode):
    """Records the decisions of a run, or repeats them in the next.

    Args:
        made: Decisions of an earlier run, ``None`` to record.
    """

    def __init__(self, made: list[tuple[str, Any]] | None = None) -> None:
        super().__init__()
        self.repeats = made is not None
        self.made = list(made or ())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._schema.name in _NOT or not _decides(args, out):
            return out
        name = func._schema.name
        if not self.repeats:
            self.made.append((name, _discrete(out)))
            return out
        if not self.made or self.made[0][0] != name:
            return out  # another way was taken: the outputs will differ
        return _decided(func, args, kwargs, out, self.made.pop(0)[1])


# Its indices are read by unpooling alone, and have the shape of the channels.
_NOT = ('aten::max_pool2d_with_indices', 'aten::max_pool3d_with_indices')


def _decides(args: tuple, out: Any) -> bool:
    outs = out if isinstance(out, tuple | list) else (out,)
    discrete = [
        o
        for o in outs
        if isinstance(o, Tensor) and not o.is_floating_point() and o.numel()
    ]
    return bool(discrete) and any(
        isinstance(a, Tensor) and a.is_floating_point() for a in args
    )


def _discrete(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.clone()
    return tuple(None if o.is_floating_point() else o.clone() for o in out)


def _decided(func: Any, args: tuple, kwargs: Any, out: Any, made: Any) -> Any:
    if isinstance(out, Tensor):
        return made.clone() if made.dtype == out.dtype else out
    # (values, indices) of topk, sort, max along a dimension.
    values, indices = out[0], made[1]
    if indices is None or indices.shape != values.shape:
        return out
    source, dim = args[0], _dim(func, args, kwargs)
    if not values.is_floating_point() or not source.dim():
        return out
    if values.dim() == source.dim():
        taken = source.gather(dim, indices)
    else:
        taken = source.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
    return type(out)((taken, indices.clone()))


def _dim(func: Any, args: tuple, kwargs: Any) -> int:
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == 'dim':
            if i < len(args):
                return args[i]
            return kwargs.get('dim', argument.default_value)
    return -1
