"""The blocks of a deep model that run one behind the other."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .layers import is_layer

Run = Callable[[nn.Module, Any], Any]


class _Caught(BaseException):  # nothing went wrong: nobody may explain it
    """The last block has been called."""


@dataclass(frozen=True)
class Call:
    """What a block is called with beside its hidden states."""

    first: str
    args: tuple
    kwargs: dict

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Returns the hidden states that a block makes of others."""
        if self.first:
            found = block(**{self.first: hidden}, **self.kwargs)
        else:
            found = block(hidden, *self.args, **self.kwargs)
        return found[0] if isinstance(found, tuple) else found


@dataclass
class BlockInputs:
    """The hidden states of all batches before a block, and its calls.

    Args:
        hidden: Per batch ``[B, L, width]``.
        calls: Per batch, per block.
        rest: What blocks return behind the hidden states; ``None`` if those
            alone.
    """

    hidden: list[Tensor] = field(default_factory=list)
    calls: list[list[Call]] = field(default_factory=list)
    rest: tuple | None = None

    @property
    def windows(self) -> int:
        """How many rows all batches have together."""
        return sum(len(each) for each in self.hidden)

    @torch.no_grad()
    def outputs(
        self, block: nn.Module, number: int, batch: int, device: Any
    ) -> Tensor:
        """Returns what a block gives for a batch, where its input is."""
        hidden = self.hidden[batch]
        found = self.calls[batch][number](block, hidden.to(device))
        return found.to(hidden.device)

    def carry(
        self,
        block: nn.Module,
        number: int,
        device: Any,
        batches: int | None = None,
    ) -> None:
        """Puts the outputs of a block in the place of its inputs.

        Args:
            block: The block.
            number: Which it is.
            device: Where it is.
            batches: Only the first so many; the others are not needed.
        """
        for batch in range(len(self.hidden))[:batches]:
            self.hidden[batch] = self.outputs(block, number, batch, device)

    def digest(self) -> str:
        """Returns a hash of the first and last hidden states."""
        found = hashlib.sha256()
        for hidden in (*self.hidden[:1], *self.hidden[-1:]):
            flat = hidden.detach().cpu().contiguous().view(torch.uint8)
            found.update(flat.numpy().data)
        return f'{found.hexdigest()[:16]} x {self.windows}'


def find_blocks(model: nn.Module) -> list[str]:
    """Returns the paths of the blocks of a model, in order.

    They are the members of the ``nn.ModuleList`` whose layers have the most
    weights, each with linear layers of its own.

    Raises:
        ValueError: If there is none.
    """
    best, most = [], 0
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 1:
            continue
        sizes = [
            sum(m.weight.numel() for m in block.modules() if is_layer(m))
            for block in module
        ]
        if min(sizes) > 0 and sum(sizes) > most:
            most = sum(sizes)
            best = [f'{path}.{i}'.lstrip('.') for i in range(len(module))]
    if not best:
        raise ValueError(
            f'{type(model).__name__} has no standard blocks, a list of '
            'modules with linear layers that run one behind the other; prune '
            'it as a whole with WeightPruner'
        )
    return best


@torch.no_grad()
def catch_inputs(
    model: nn.Module,
    paths: list[str],
    batches: Iterable[Any],
    run: Run,
    device: torch.device | str = 'cpu',
) -> BlockInputs:
    """Returns what the first block is given, and how all are called.

    The model is run up to its last block, with blocks that do nothing, so
    what lies between embedding and blocks computes masks and positions as it
    always does. The first block is run once, to see what it returns.

    Args:
        model: The model.
        paths: Of its blocks.
        batches: Calibration data.
        run: Runs the model on a batch, as a loss does.
        device: Where the arguments of the calls go; hidden states stay where
            they are.

    Raises:
        ValueError: If there is no batch, or the blocks are not called one
            behind the other.
    """
    found, shared = BlockInputs(), []
    blocks = [model.get_submodule(path) for path in paths]
    recorder = _Recorder(blocks)
    for batch in batches:
        with recorder.recording(), suppress(_Caught):
            run(model, batch)
        if len(recorder.calls) != len(blocks):
            raise ValueError(
                f'of the {len(blocks)} blocks {paths[0]} ... {paths[-1]} '
                f'{len(recorder.calls)} were called, in order; they do not '
                'run one behind the other'
            )
        found.hidden.append(recorder.hidden)
        found.calls.append(
            [_shared(_moved(c, device), shared) for c in recorder.calls]
        )
    found.rest = recorder.rest
    if not found.hidden:
        raise ValueError('there is no calibration data; none was given')
    return found


@torch.no_grad()
def finish(
    model: nn.Module,
    paths: list[str],
    carried: BlockInputs,
    batches: Iterable[Any],
    run: Run,
) -> Iterator[Any]:
    """Yields what a model returns whose blocks have been run already.

    Args:
        model: The model.
        paths: Of its blocks; they are not run.
        carried: What the last block gave.
        batches: The batches.
        run: Runs the model on a batch.
    """
    blocks = [model.get_submodule(path) for path in paths]
    recorder = _Recorder(blocks)
    recorder.rest = carried.rest
    for last, batch in zip(carried.hidden, batches, strict=True):
        recorder.last = last
        with recorder.recording():
            found = run(model, batch)
        yield found


class _Recorder:
    """Stands in for blocks and notes what they are called with."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self.hidden: Tensor | None = None
        self.calls: list[Call] = []
        self.last: Tensor | None = None
        self.rest: tuple | None = None
        self._known = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Replaces what the blocks do while it lasts."""
        self.hidden, self.calls = None, []
        for number, block in enumerate(self.blocks):
            block.forward = self._stand_in(number, block.forward)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def _stand_in(self, number: int, forward: Callable) -> Callable:
        def record(*args: Any, **kwargs: Any) -> Any:
            first = '' if args else next(iter(kwargs))
            hidden = args[0] if args else kwargs.pop(first)
            if number != len(self.calls):
                raise ValueError('the blocks do not run in their order')
            self.calls.append(Call(first, args[1:], kwargs))
            if number == 0:
                self.hidden = hidden
            if not self._known and self.last is None:
                given = (hidden, *args[1:]) if args else ()
                named = kwargs if args else {first: hidden, **kwargs}
                out = forward(*given, **named)
                self.rest = out[1:] if isinstance(out, tuple) else None
                self._known = True
            if number == len(self.blocks) - 1:
                if self.last is None:
                    raise _Caught
                hidden = self.last
            return hidden if self.rest is None else (hidden, *self.rest)

        return record


def _moved(call: Call, device: torch.device | str) -> Call:
    return Call(call.first, _to(call.args, device), _to(call.kwargs, device))


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_to(v, device) for v in value)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    return value


def _shared(call: Call, known: list[Call]) -> Call:
    """The call, or an equal one of an earlier batch or block."""
    for other in known:
        if call.first == other.first and _equal(
            (call.args, call.kwargs), (other.args, other.kwargs)
        ):
            return other
    known.append(call)
    return call


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and (
            one is other
            or (
                one.shape == other.shape
                and one.dtype == other.dtype
                and torch.equal(one, other)
            )
        )
    if isinstance(one, tuple | list):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(map(_equal, one, other))
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _equal(one[k], other[k]) for k in one
        )
    return one is other or one == other
