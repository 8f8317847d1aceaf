"""What of a model is tensors in, tensors out: the part that is exported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Runs a written part by its name: tensors by name in, tensors by name out.
Run = Callable[[str, Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Part:
    """One graph of an export.

    Attributes:
        name: Of the file, without its ending.
        module: Takes the inputs in order; returns a tuple of tensors.
        inputs: Name -> example, whose shape is that of the graph.
        outputs: Names of what the module returns.
        about: Name of an input or output -> what it is and its unit.
        static: Whether an operator whose result has a shape that depends on
            values, or that branches on them, is refused.
        runs: Whether onnxruntime has all its operators.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    about: dict[str, str] = field(default_factory=dict)
    static: bool = False
    runs: bool = True

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs by name, without gradients."""
        with torch.no_grad():
            found = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))


class Compared(NamedTuple):
    """One output of one run, as PyTorch and as the written file give it."""

    part: str
    output: str
    expected: Tensor
    found: Tensor


@dataclass(frozen=True)
class TensorPath:
    """All graphs of a model, in the order in which they run.

    Attributes:
        parts: The graphs.
        facts: What else a reader of the files has to know, as entries of
            ``deploy.json``.
    """

    parts: Sequence[Part]
    facts: dict[str, Any] = field(default_factory=dict)

    def compare(self, run: Run) -> Iterator[Compared]:
        """Yields each output of each part, on its inputs and mirrored ones.

        What the trace froze would differ on the second.
        """
        for part in self.parts:
            mirrored = {
                name: value.flip(-1) if value.is_floating_point() else value
                for name, value in part.inputs.items()
            }
            for inputs in (part.inputs, mirrored):
                expected = part.run(inputs)
                found = run(part.name, inputs)
                for name, value in expected.items():
                    yield Compared(part.name, name, value, found[name])

    def write(self, folder: Path, run: Run) -> dict[str, Any]:
        """Writes further files beside the graphs; here there are none.

        Args:
            folder: Where the graphs lie.
            run: Runs one of them.

        Returns:
            Further entries of ``deploy.json``.
        """
        return {}


class Call(nn.Module):
    """One way to call a model as a module that takes and returns tensors.

    Args:
        model: The model.
        call: Gets the model and tensors by name; returns tensors in any
            nesting.
        names: Of the tensors, in the order in which they come.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Callable[[nn.Module, dict[str, Tensor]], Any],
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.model, self.call, self.names = model, call, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the floating point outputs in order."""
        given = dict(zip(self.names, tensors, strict=True))
        found = named_outputs(self.call(self.model, given))
        return tuple(found.values())


def traced_part(
    name: str,
    model: nn.Module,
    call: Callable[[nn.Module, dict[str, Tensor]], Any],
    inputs: dict[str, Tensor],
) -> Part:
    """Returns a part around a call; it is run once for its outputs' names.

    Raises:
        ValueError: If it returns no tensor.
    """
    with torch.no_grad():
        outputs = named_outputs(call(model, inputs))
    if not outputs:
        raise ValueError(
            f'{type(model).__name__} returns no floating point tensor, so '
            'there is nothing to export; give its family a tensor_path'
        )
    return Part(name, Call(model, call, inputs), inputs, tuple(outputs))


def named_outputs(value: Any, name: str = '') -> dict[str, Tensor]:
    """Returns floating point tensors in nested outputs by their place.

    ``{'a': (x, [y])}`` gives ``a_0`` and ``a_1_0``; what has only a number
    is called ``output_0``.
    """
    if isinstance(value, Tensor):
        name = name or 'output'
        name = f'output_{name}' if name[0].isdigit() else name
        return {name: value} if value.is_floating_point() else {}
    if hasattr(value, 'items'):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return {}
    found = {}
    for key, inner in pairs:
        found |= named_outputs(inner, f'{name}_{key}' if name else str(key))
    return found
