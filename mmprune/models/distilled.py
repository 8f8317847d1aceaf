"""A pruned student that learns from the dense model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.loading import load_weights
from ..checkpoints.reading import load_checkpoint_file
from ..checkpoints.writing import without_pretrained
from ..groups import named_tensors
from ..registry import MODELS
from ..surgery import kept_index
from .imitation import Term


class Distiller:
    """The teacher, and the terms of the distillation loss.

    Not a module: held by one, the teacher is in no state dict, has no
    parameters to optimise or synchronise, and stays in eval mode. A copy of
    the student, as an EMA hook makes, has no teacher.
    """

    def __init__(
        self,
        teacher: nn.Module,
        terms: Sequence[Term],
        task_weight: float = 1.0,
    ) -> None:
        self.task_weight = task_weight
        # A statement: `eval` of mmdet's distilled detectors returns nothing.
        teacher.eval()
        self.teacher: nn.Module | None = teacher.requires_grad_(False)
        self.terms = tuple(terms)

    def __deepcopy__(self, memo: dict) -> 'Distiller':
        new = copy.copy(self)
        new.teacher = None
        return new

    @property
    def modules(self) -> list[str]:
        """Paths of the student's modules whose outputs are compared."""
        return sorted({term.source for term in self.terms if term.source})

    @property
    def teacher_modules(self) -> list[str]:
        """Paths of those of the teacher."""
        return sorted({term.expected for term in self.terms if term.source})

    @torch.no_grad()
    def teacher_outputs(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Returns the outputs of the teacher for a batch, by source."""
        args, kwargs = _untouched(args), _untouched(kwargs)
        found: dict[str, Any] = {}
        if self.modules:
            # The path that the student takes, so the same modules run.
            with captured(self.teacher, self.teacher_modules) as found:
                self.teacher(*args, mode='loss', **kwargs)
        if any(not term.source for term in self.terms):
            found[''] = self.teacher(*args, mode='tensor', **kwargs)
        return found

    def losses(
        self, student: nn.Module, found: dict, expected: dict, inputs: Any
    ) -> dict[str, Tensor]:
        """Returns the named losses of a batch.

        Args:
            student: The student.
            found: Its outputs, by source.
            expected: Those of the teacher.
            inputs: What both were given.

        Raises:
            ValueError: If outputs cannot be compared.
        """
        losses: dict[str, Tensor] = {}
        for term in self.terms:
            mine = term.tensors(_of(found, term.source))
            theirs = term.tensors(_of(expected, term.expected))
            mask = _mask_of(term.mask, inputs)
            if len(mine) != len(theirs):
                raise ValueError(
                    f'{term.source or "the model"} returns {len(mine)} '
                    f'tensors in the student and {len(theirs)} in the '
                    'teacher; name those to compare with `keys`'
                )
            for one, other in zip(mine, theirs, strict=True):
                other = self._narrowed(student, term, one, other)
                loss = term(one, other, mask)
                losses[term.name] = losses.get(term.name, 0) + loss
        return losses

    def _narrowed(
        self, student: nn.Module, term: Term, mine: Tensor, theirs: Tensor
    ) -> Tensor:
        """The teacher's output at the units that the student kept.

        A fixed 1x1 adapter: the plan says which of the dense units the
        student's units were, so none has to be learned.
        """
        if mine.shape == theirs.shape:
            return theirs
        source = term.source
        kept = None
        if term.expected == source:
            kept = _kept_outputs(student, self.teacher, source)
        sizes = list(zip(mine.shape, theirs.shape, strict=False))
        dims = [d for d, (a, b) in enumerate(sizes) if a != b]
        fits = mine.ndim == theirs.ndim and len(dims) == 1
        if not fits or kept is None or len(kept) != mine.shape[dims[0]]:
            raise ValueError(
                f'{source or "the model"} gives {tuple(mine.shape)} in the '
                f'student and {tuple(theirs.shape)} in the teacher, and no '
                'plan says which units correspond; distil a layer that the '
                'plan prunes itself, or one of equal width'
            )
        return theirs.index_select(dims[0], kept.to(theirs.device))


class _Distilled:
    """Put before the student's class: adds the distillation loss."""

    _distiller: Distiller

    def forward(
        self, *args: Any, mode: str | None = None, **kwargs: Any
    ) -> Any:
        """Runs the student; in training the distillation terms come on top."""
        distiller = self._distiller
        if mode != 'loss' or not self.training or distiller.teacher is None:
            # Without a mode a model of Hugging Face is what it always is.
            asked = {} if mode is None else dict(mode=mode)
            return super().forward(*args, **asked, **kwargs)
        expected = distiller.teacher_outputs(args, kwargs)
        with captured(self, distiller.modules) as found:
            losses = super().forward(*args, mode='loss', **kwargs)
        if '' in expected:
            found[''] = super().forward(*args, mode='tensor', **kwargs)
        weight = distiller.task_weight
        if weight != 1:
            losses = {
                name: _times(value, weight) if 'loss' in name else value
                for name, value in losses.items()
            }
        given = dict(enumerate(args)) | kwargs
        return {**losses, **distiller.losses(self, found, expected, given)}

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> nn.Module:
        # `.to(device)` and its kin come through here.
        if self._distiller.teacher is not None:
            self._distiller.teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


@MODELS.register_module(name='DistilledModel')
def build_distilled_model(
    student: dict,
    teacher_checkpoint: str | None = None,
    terms: Sequence[dict] = (),
    teacher: dict | None = None,
    trust: bool = False,
    task_weight: float = 1.0,
    **kwargs: Any,
) -> nn.Module:
    """Returns the student, whose training loss also follows the teacher.

    There is no wrapper: names, state dict, plan and predictions are those of
    the student, and its checkpoints load into the plain student. The teacher
    runs in eval mode without gradients.

    Args:
        student: Config of the student, usually a ``mmprune.PrunedModel``.
        teacher_checkpoint: Weights of the teacher; none if its config names
            them, as the folder of a language model.
        terms: What to imitate, each the arguments of a :class:`Term`.
        teacher: Config of the teacher; by default the dense model that the
            student was pruned from.
        trust: Whether to unpickle what the safe loader refuses.
        task_weight: Factor of the student's own losses.
        kwargs: Further arguments of both models, as ``data_preprocessor``.

    Raises:
        ValueError: If there is no teacher, nothing to imitate, or a term
            names a module that a model lacks.
    """
    if teacher is None:
        if student.get('type') != 'mmprune.PrunedModel':
            raise ValueError(
                'DistilledModel: give the config of the teacher; only of a '
                'mmprune.PrunedModel it is known'
            )
        teacher = student['model']
    if teacher_checkpoint is None and not teacher.get('pretrained'):
        raise ValueError(
            'DistilledModel: the teacher has no weights; give '
            'teacher_checkpoint, or a teacher with `pretrained`'
        )
    if not terms:
        raise ValueError(
            'DistilledModel: there is nothing to imitate; give terms, as '
            "[dict(loss='kl', temperature=2.0)]"
        )
    teacher = copy.deepcopy(teacher)
    if teacher_checkpoint is not None:
        # Its weights take the place of those that the config names.
        teacher = without_pretrained(teacher)
    dense = MODELS.build({**teacher, **copy.deepcopy(kwargs)})
    if teacher_checkpoint is not None:
        loaded = load_checkpoint_file(teacher_checkpoint, trust=trust)
        load_weights(dense, loaded, teacher_checkpoint)
    model = MODELS.build({**student, **kwargs})
    if task_weight < 0:
        raise ValueError(
            'task_weight of a distillation is not negative, found '
            f'{task_weight:g}'
        )
    terms = [Term(**term) for term in terms]
    distiller = Distiller(dense, terms, task_weight)
    for path in distiller.modules:
        _check_module(model, path, 'student')
    for path in distiller.teacher_modules:
        _check_module(dense, path, 'teacher')
    kind = type(model)
    model._distiller = distiller
    model.__class__ = type(
        kind.__name__, (_Distilled, kind), {'__module__': kind.__module__}
    )
    return model


@contextmanager
def captured(model: nn.Module, paths: Sequence[str]) -> Iterator[dict]:
    """Yields a dict that receives the last output of each module."""
    found: dict[str, Any] = {}

    def keep(path: str, module: nn.Module, args: tuple, output: Any) -> None:
        found[path] = output

    handles = [
        model.get_submodule(path).register_forward_hook(partial(keep, path))
        for path in paths
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _check_module(model: nn.Module, path: str, role: str) -> None:
    try:
        model.get_submodule(path)
    except AttributeError as error:
        children = ', '.join(name for name, _ in model.named_children())
        raise ValueError(
            f'DistilledModel: the {role} has no module {path!r} to distil; '
            f'its parts are {children}'
        ) from error


def _mask_of(name: str, inputs: Any) -> Tensor | None:
    """The input of a name, also inside of another; ``None`` for no name."""
    if not name:
        return None
    waiting = [inputs]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            if isinstance(found.get(name), Tensor):
                return found[name]
            waiting += found.values()
    raise ValueError(
        f'the distillation counts the positions of {name!r}, and the batch '
        'has no such input; name one that it has'
    )


def _times(value: Any, weight: float) -> Any:
    if isinstance(value, list):
        return [each * weight for each in value]
    return value * weight


def _of(found: dict, source: str) -> Any:
    if source not in found:
        raise ValueError(
            f'{source!r} did not run while the loss was computed, so there '
            'is nothing to distil; name a module that does'
        )
    return found[source]


def _kept_outputs(
    student: nn.Module, teacher: nn.Module, source: str
) -> Tensor | None:
    plan = getattr(student, 'pruning_plan', None)
    if plan is None or not source:
        return None
    shapes = {n: tuple(t.shape) for n, t in named_tensors(teacher).items()}
    index = kept_index(plan, shapes)
    # mmcv's ConvModule holds its layer as `conv`.
    for name in (f'{source}.weight', f'{source}.conv.weight'):
        if 0 in index.get(name, {}):
            return index[name][0]
    return None


def _untouched(value: Any) -> Any:
    """Copies containers and samples, which a loss may write into."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        return {k: _untouched(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_untouched(v) for v in value)
    return copy.deepcopy(value)
