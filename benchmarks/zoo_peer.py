"""Torch-Pruning alone on the detectors of the zoo, which `zoo.py` sets beside
ours."""

import copy
import json
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmprune.checkpoints.loading import load_model
from mmprune.discovery.labels import tensors_in
from mmprune.family import Family, build_family

# What the peer's model must have lost of all its parameters.
PEER_LEAST = 0.1
# CPU seconds for each way to follow it; nine of ten successes take 5.
PEER_LIMIT = 60


def torch_pruning(work: Path, config: Path, ratio: float) -> dict | None:
    """Torch-Pruning by itself, as its README says.

    It gets what it can follow: raw outputs, else predictions, else losses,
    whichever leads to a smaller model that predicts.
    """
    cfg = Config.fromfile(work / 'config.py')
    dense = load_model(cfg, work / 'dense.pth')
    dense.eval()
    dense.requires_grad_(True)  # its graph is autograd's
    family = build_family(cfg)
    # Raw outputs are of points as in training.
    batches = {'predict': family.small_batch(dense)}
    batches |= {'loss': family.small_batch(dense, training=True)}
    if family.has_raw_outputs(dense, batches['loss']):
        batches = {'tensor': batches['loss'], **batches}
    before, faults = sum(p.numel() for p in dense.parameters()), []
    for mode, batch in batches.items():
        model = copy.deepcopy(dense)
        try:
            with cpu_seconds(PEER_LIMIT):
                prune_by_peer(family, model, batch, mode, ratio)
                with torch.no_grad():
                    family.forward(model)
        except Exception as error:  # of its graph, or of the pruned model
            traceback.print_exc()
            text = ' '.join(str(error).split())[:200]
            faults.append(f'{mode}: {type(error).__name__}: {text}')
            continue
        gone = 1 - sum(p.numel() for p in model.parameters()) / before
        if gone >= peer_least(work):
            return None
        faults.append(f'{mode}: only {gone:.1%} of the parameters go')
    return dict(verdict='; '.join(faults))


@contextmanager
def cpu_seconds(limit: int) -> Iterator[None]:
    """Ends what takes longer, with an error."""

    def end(*_: object) -> None:
        raise TimeoutError(f'takes more than {limit} CPU seconds')

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peer_least(work: Path) -> float:
    """The fraction of all parameters that has to go: no more than of ours."""
    ours = json.loads((work / 'prune.json').read_text())
    if ours['verdict'] != 'ok':
        return PEER_LEAST
    before, after = ours['params']
    return min(PEER_LEAST, 1 - after / before)


def prune_by_peer(
    family: Family, model: nn.Module, batch: dict, mode: str, ratio: float
) -> None:
    """Prunes a model in place, by the graph of one of its modes."""
    import torch_pruning as tp

    def forward(model: nn.Module, batch: dict) -> list[Tensor]:
        batch = copy.deepcopy(batch)
        if mode == 'loss':
            found = [family.loss(model, batch)]
        else:
            data = model.data_preprocessor(batch, False)
            found = tensors_in(model(**data, mode=mode))
        return [t for t in found if t.requires_grad]

    tp.pruner.MagnitudePruner(
        model,
        batch,
        forward_fn=forward,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=writers_of(model, forward(model, batch)),
    ).step()
    model.zero_grad()


def writers_of(model: nn.Module, outputs: list[Tensor]) -> list[nn.Module]:
    """Returns the layers that write outputs, by the graph of autograd."""
    matrices, seen = set(), set()
    nodes = [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions]
        weights = [getattr(p, 'variable', None) for p in parents]
        found = {id(w) for w in weights if w is not None and w.ndim > 1}
        # A product ends the way to what writes the output.
        matrices |= found
        nodes += [] if found else parents
    return [
        module
        for module in model.modules()
        if id(getattr(module, 'weight', None)) in matrices
    ]
