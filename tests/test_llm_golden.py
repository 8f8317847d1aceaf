"""Masks and weights of the original Wanda and SparseGPT code.

Every folder in the shared ``llm/golden`` is a set; its README says what is in
it. The original prunes one weight more than half of each matrix by magnitude,
and of each block of 128 columns by SparseGPT: where that is so, it is counted.
"""

import copy
import importlib.util
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmprune.metrics.perplexity import perplexity
from mmprune.pruners import LayerwisePruner, sparsegpt
from mmprune.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get('MMPRUNE_SHARED', ROOT.parent / 'shared'))
GOLDEN = SHARED / 'llm' / 'golden'
SETS = sorted(p.parent.name for p in GOLDEN.glob('*/manifest.json'))
MAGNITUDE = dict(importance=dict(type='mmprune.Magnitude'), scope='layer')
SOLVED = dict(importance=None, reconstruct=dict(type='mmprune.SparseGPT'))
HOW = dict(
    magnitude_2_4=dict(MAGNITUDE, pattern='2:4'),
    wanda_50=dict(sparsity=0.5),
    wanda_2_4=dict(pattern='2:4'),
    wanda_4_8=dict(pattern='4:8'),
    sparsegpt_50=dict(SOLVED, sparsity=0.5),
    sparsegpt_2_4=dict(SOLVED, pattern='2:4'),
)

pytestmark = pytest.mark.skipif(not SETS, reason=f'no sets in {GOLDEN}')


@pytest.fixture(params=SETS)
def golden(request) -> 'Golden':
    return Golden(GOLDEN / request.param)


class Golden:
    """A set: its model, tokens and results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / 'manifest.json').read_text())
        self.names = self.manifest['linear_modules']

    @property
    def model(self) -> nn.Module:
        """A fresh copy of the dense model."""
        return copy.deepcopy(_model(self.folder))

    def tokens(self, kind: str) -> torch.Tensor:
        """Tokens of ``calibration`` or ``eval`` ``[n, seqlen]``."""
        found = _arrays(self.folder, 'common')[f'{kind}_tokens']
        return torch.from_numpy(found.astype(np.int64))

    def pruned(self, **how) -> nn.Module:
        """The model after a pruning of all its blocks."""
        model = self.model
        batches = self.tokens('calibration').split(16)
        LayerwisePruner(**how)(model, batches, run)
        return model

    def differing(self, model: nn.Module, tag: str) -> dict[str, tuple]:
        """Per matrix: weights that are zero there alone, and here alone."""
        found = {}
        for name in self.names:
            mine = (model.get_submodule(name).weight == 0).numpy()
            theirs = self.mask(tag, name, mine.shape)
            found[name] = (
                int((theirs & ~mine).sum()),
                int((mine & ~theirs).sum()),
            )
        return found

    def mask(self, tag: str, name: str, shape: tuple) -> np.ndarray:
        """Where the original has zeros."""
        bits = _arrays(self.folder, tag)[f'mask/{name}']
        count = int(np.prod(shape))
        return np.unpackbits(bits, count=count).astype(bool).reshape(shape)


@cache
def _arrays(folder: Path, tag: str) -> dict:
    return dict(np.load(folder / f'{tag}.npz'))


@cache
def _model(folder: Path) -> nn.Module:
    manifest = json.loads((folder / 'manifest.json').read_text())
    kind = dict(type='mmprune.HuggingFaceCausalLM', attention='eager')
    if manifest['seed'] is None:
        place = SHARED / 'data' / 'weights' / folder.name
        return MODELS.build(dict(kind, pretrained=str(place)))
    model = MODELS.build(dict(kind, config=manifest['config']))
    path = folder.parent / 'det_weights.py'
    spec = importlib.util.spec_from_file_location('det_weights', path)
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    model.load_state_dict(
        {
            name: torch.from_numpy(
                weights.weight(manifest['seed'], name, tensor.shape)
            )
            for name, tensor in model.state_dict().items()
        }
    )
    return model


def run(model: nn.Module, batch: torch.Tensor):
    return model(input_ids=batch, mode='loss')


class Rows(torch.utils.data.Dataset):
    """Tokens as windows."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict:
        return dict(input_ids=self.tokens[index])


def test_the_dense_model_computes_what_theirs_does(golden):
    window = golden.tokens('eval')[:1]
    expected = _arrays(golden.folder, 'common')
    with torch.no_grad():
        found = golden.model(input_ids=window, mode='tensor')[0]
    theirs = torch.from_numpy(expected['dense_logits_first_eval_window'])
    assert (found - theirs).abs().max() < 1e-4


@pytest.mark.parametrize('tag', ['magnitude_2_4', 'wanda_50', 'wanda_2_4'])
def test_masks_are_theirs(golden, tag):
    model = golden.pruned(**HOW[tag])
    assert set(golden.differing(model, tag).values()) == {(0, 0)}


def test_perplexity_is_theirs(golden):
    model = golden.pruned(**HOW['wanda_50'])
    expected = golden.manifest['results']['wanda_50']['ppl']
    found = perplexity(model, Rows(golden.tokens('eval')), 16)
    assert found == pytest.approx(expected, rel=1e-4)


def test_magnitude_prunes_exactly_half_and_theirs_one_more(golden):
    """They drop all up to the value at position n/2 of the sorted weights."""
    model = golden.pruned(**dict(MAGNITUDE, sparsity=0.5))
    for name in golden.names:
        weight = model.get_submodule(name).weight
        assert int((weight == 0).sum()) * 2 == weight.numel()
    found = golden.differing(model, 'magnitude_50')
    assert set(found.values()) == {(1, 0)}


def test_four_of_eight_are_theirs_but_for_what_fills_no_group(golden):
    """They prune N of a shorter group at the end of a row, here it stays.

    From the first block with such a layer on inputs differ, so there only
    the layers before it are compared.
    """
    model = golden.pruned(**HOW['wanda_4_8'])
    found = golden.differing(model, 'wanda_4_8')
    same = []
    for name in golden.names:
        rest = model.get_submodule(name).weight.shape[1] % 8
        if rest:
            rows = len(model.get_submodule(name).weight)
            assert found[name] == (rows * min(4, rest), 0)
            break
        same.append(found[name])
    assert len(same) > 5
    assert set(same) == {(0, 0)}


def test_the_variant_is_theirs_at_their_number_of_weights(golden):
    """They stop within 0.001 of the sparsity; here it is met exactly.

    In the first block, whose inputs are the same: at as many weights as they
    prune, the weights are the same.
    """
    tag, first = 'wanda_50_variant', golden.names[0].rpartition('.')[0]
    block = first.rpartition('.')[0]
    for name in golden.names:
        if not name.startswith(f'{block}.'):
            continue
        shape = golden.model.get_submodule(name).weight.shape
        theirs = golden.mask(tag, name, tuple(shape))
        how = dict(
            importance=dict(type='mmprune.WandaVariant'),
            scope='layer',
            protect=[f'^(?!{name}.weight)'],
        )
        model = golden.pruned(sparsity=float(theirs.mean()), **how)
        mine = (model.get_submodule(name).weight == 0).numpy()
        assert mine.sum() == theirs.sum()
        assert (mine != theirs).sum() <= 2, name


@pytest.mark.parametrize('tag', ['sparsegpt_50', 'sparsegpt_2_4'])
def test_sparsegpt_agrees_with_theirs(golden, tag, monkeypatch):
    """At one more weight in each block of columns, which they prune too."""
    if tag == 'sparsegpt_50':
        counted = sparsegpt._lowest
        monkeypatch.setattr(
            sparsegpt, '_lowest', lambda c, f, n: counted(c, f, n + 1)
        )
    model = golden.pruned(**HOW[tag])
    found = golden.differing(model, tag)
    differing = sum(sum(pair) for pair in found.values())
    total = sum(
        model.get_submodule(name).weight.numel() for name in golden.names
    )
    assert differing <= 2e-4 * total
    for name in golden.names:
        mine = model.get_submodule(name).weight.detach().numpy()
        theirs = _arrays(golden.folder, tag)[f'weight/{name}']
        agree = (mine == 0) == (theirs == 0)
        assert np.abs(mine - theirs)[agree].max() < 1e-4, name


def test_sparsegpt_prunes_exactly_half(golden):
    model = golden.pruned(**HOW['sparsegpt_50'])
    for name in golden.names:
        weight = model.get_submodule(name).weight
        assert int((weight == 0).sum()) * 2 == weight.numel()


def test_methods_rank_as_in_the_papers(golden):
    """By perplexity at 50%: dense, SparseGPT, Wanda, magnitude."""
    windows = Rows(golden.tokens('eval')[:32])
    models = [
        golden.model,
        golden.pruned(**HOW['sparsegpt_50']),
        golden.pruned(**HOW['wanda_50']),
        golden.pruned(**dict(MAGNITUDE, sparsity=0.5)),
    ]
    found = [perplexity(model, windows, 16) for model in models]
    assert found == sorted(found)
