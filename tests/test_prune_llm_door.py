"""The guide's commands: prune_llm.py and evaluate_ppl.py."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import ARCHITECTURES, LLAMA, dense, tokens
from tiny_training import Crash
from tokenizers import Tokenizer, models, pre_tokenizers
from tool_modules import command
from transformers import AutoModelForCausalLM

from mmprune.pruners.stores import Kept


@pytest.fixture(scope='module')
def prune():
    return command('guides/prune_llm').main


@pytest.fixture(scope='module')
def evaluate():
    return command('guides/evaluate_ppl').main


@pytest.fixture
def place(tmp_path):
    """A folder with a dense model, tokens and a text."""
    dense().save_pretrained(tmp_path / 'dense')
    np.save(tmp_path / 'tokens.npy', tokens(12, 16).numpy())
    (tmp_path / 'text.txt').write_text('w5 w6 w7 ' * 40)
    return tmp_path


def flags(place: Path, **changes) -> list[str]:
    """Words of a command line."""
    found = dict(
        model=place / 'dense',
        nsamples=8,
        seqlen=12,
        calibration=place / 'tokens.npy',
        eval_data=place / 'tokens.npy',
        save=place / 'report',
        save_model=place / 'pruned',
    )
    found |= changes
    words = []
    for name, value in found.items():
        if value is True:
            words.append(f'--{name}')
        elif value is not None:
            words += [f'--{name}', str(value)]
    return words


def write_tokenizer(folder: Path, size: int) -> None:
    words = {f'w{i}': i for i in range(size)}
    found = Tokenizer(models.WordLevel(words, unk_token='w0'))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(dict(tokenizer_class='PreTrainedTokenizerFast'))
    )


def zeros(folder: Path) -> dict[str, float]:
    """Fraction of zeros of each matrix in blocks."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {
        name: (tensor == 0).float().mean().item()
        for name, tensor in model.named_parameters()
        if 'layers' in name and tensor.ndim > 1
    }


def test_a_pruned_folder_has_all_that_is_promised(prune, place, capsys):
    write_tokenizer(place / 'dense', 48)
    prune(flags(place, prune_method='wanda', sparsity_ratio=0.5))
    out = place / 'pruned'
    assert sorted(p.name for p in out.iterdir()) == [
        'README.md', 'config.json', 'generation_config.json',
        'layer_sparsity.csv', 'model.safetensors', 'pruning_args.json',
        'pruning_plan.json', 'tokenizer.json', 'tokenizer_config.json',
    ]  # fmt: skip
    assert set(zeros(out).values()) == {0.5}
    notes = json.loads((out / 'pruning_args.json').read_text())
    assert notes['reached_sparsity'] == 0.5
    assert notes['calibration']['windows'] == 8
    assert notes['perplexity']['context'] == 12
    assert list(notes['perplexity']['models']) == ['dense', 'pruned']
    table = list(csv.DictReader((out / 'layer_sparsity.csv').open()))
    assert len(table) == 14
    assert table[0]['tensor'] == 'model.layers.0.self_attn.q_proj.weight'
    assert table[0]['zeros'] == '128'
    assert not (place / 'pruned.blocks').exists()
    shown = capsys.readouterr().out
    # The dense model comes first: its number says that the data is right.
    assert shown.index('dense: perplexity') < shown.index('pruned: perplex')
    assert '3072 of 6144' not in shown
    report = json.loads((place / 'report' / 'report.json').read_text())
    assert list(report['metrics']) == ['dense', 'pruned']
    page = (place / 'report' / 'report.html').read_text()
    for title in ('Error of blocks', 'Time and memory', 'Samples'):
        assert title in page
    log = (place / 'report' / 'log_wanda.txt').read_text().split('\n')
    assert log[0].split('\t')[:2] == ['method', 'actual_sparsity']


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        (dict(prune_method='magnitude'), 0.5),
        (dict(prune_method='sparsegpt'), 0.5),
        (dict(prune_method='ria', sparsity_ratio=0.25), 0.25),
        (dict(prune_method='wanda', use_variant=True), 0.5),
        (dict(prune_method='wanda_admm'), 0.5),
        (dict(sparsity_type='2:4', sparsity_ratio=0.5), 0.5),
        (dict(sparsity_type='1:4', prune_method='sparsegpt'), 0.75),
    ],
)
def test_every_method_meets_its_sparsity(prune, place, changes, expected):
    prune(flags(place, eval_data=None, save=None, **changes))
    assert set(zeros(place / 'pruned').values()) == {expected}


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_plain_transformers_writes_the_same_text(prune, tmp_path, name):
    np.save(tmp_path / 'tokens.npy', tokens(8, 16).numpy())
    dense(ARCHITECTURES[name]).save_pretrained(tmp_path / 'dense')
    prune(flags(tmp_path, save=None))
    from mmprune.models.huggingface_causal_lm import (
        build_huggingface_causal_lm as build,
    )

    models = [
        build(pretrained=str(tmp_path / 'pruned')),
        AutoModelForCausalLM.from_pretrained(tmp_path / 'pruned'),
    ]
    texts = [
        model.generate(tokens(1, 4), max_new_tokens=8, pad_token_id=0)
        for model in models
    ]
    assert torch.equal(*texts)
    assert set(zeros(tmp_path / 'pruned').values()) <= {0.5}


def test_a_stopped_command_goes_on(prune, place, monkeypatch):
    whole = flags(place, save=None, save_model=place / 'whole')
    prune(whole)
    keep = Kept.keep

    def killed(self, number, *args):
        keep(self, number, *args)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Kept, 'keep', killed)
        with pytest.raises(Crash):
            prune(flags(place, save=None))
    assert not (place / 'pruned').exists()
    assert (place / 'pruned.blocks' / 'progress.json').exists()
    prune(flags(place, save=None))
    one, other = (
        (place / name / 'model.safetensors').read_bytes()
        for name in ('whole', 'pruned')
    )
    assert one == other
    assert not (place / 'pruned.blocks').exists()


def test_low_memory_gives_the_same_model(prune, place):
    prune(flags(place, save_model=place / 'whole'))
    prune(flags(place, low_memory=True))
    models = [
        AutoModelForCausalLM.from_pretrained(place / name).state_dict()
        for name in ('whole', 'pruned')
    ]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][k], models[1][k]) for k in models[0])
    one, other = (
        json.loads((place / name / 'pruning_args.json').read_text())
        for name in ('whole', 'pruned')
    )
    assert one['perplexity']['models'] == pytest.approx(
        other['perplexity']['models']
    )
    index = json.loads(
        (place / 'pruned' / 'model.safetensors.index.json').read_text()
    )
    assert len(set(index['weight_map'].values())) >= 3


BAD = {
    'no such model': (dict(model='nowhere/at/all/x'), 'model'),
    'ratio against pattern': (
        dict(sparsity_type='2:4', sparsity_ratio=0.6),
        '--sparsity_type 2:4 keeps 2 of 4 weights, so it removes 0.5',
    ),
    'no pattern': (dict(sparsity_type='4:2'), '0 < N < M'),
    'variant of another method': (
        dict(use_variant=True, prune_method='sparsegpt'),
        '--use_variant is a variant of wanda',
    ),
    'variant with a pattern': (
        dict(use_variant=True, sparsity_type='2:4'),
        'rows lose different numbers',
    ),
    'ratios with a pattern': (
        dict(owl=True, sparsity_type='2:4'),
        'asks for different ones',
    ),
    'no tokenizer': (dict(calibration='TEXT'), 'has no tokenizer'),
    'nothing to write': (dict(save=None, save_model=None), 'nothing would'),
    'too long': (dict(seqlen=40), 'shorter than one window of 40'),
    'nowhere to stream to': (
        dict(low_memory=True, save_model=None),
        'streams from a folder into a folder',
    ),
    'a ratio of one': (dict(sparsity_ratio=1.0), r'\[0, 1\)'),
    'all is protected': (dict(protect='.'), 'matches every layer'),
    'the model itself': (dict(save_model='MODEL'), 'the dense model itself'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(
    prune, place, case, capsys
):
    changes, message = BAD[case]
    names = {'TEXT': place / 'text.txt', 'MODEL': place / 'dense'}
    changes = {k: names.get(v, v) for k, v in changes.items()}
    before = sorted(place.rglob('*'))
    with pytest.raises(SystemExit) as stop:
        prune(flags(place, **changes))
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert shown.count('error: ') == 1
    assert message.replace('\\', '') in shown
    assert sorted(place.rglob('*')) == before


def refused(prune, place, capsys, **changes) -> str:
    """What a command says that writes nothing."""
    before = sorted(place.rglob('*'))
    with pytest.raises(SystemExit):
        prune(flags(place, **changes))
    assert sorted(place.rglob('*')) == before
    return capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(prune, place, capsys):
    write_tokenizer(place / 'dense', 60)
    (place / 'text.txt').write_text('w55 w6 w7 ' * 40)
    text = place / 'text.txt'
    shown = refused(prune, place, capsys, calibration=text)
    assert 'has the token 55, and the model knows 48' in shown


def test_a_text_that_is_too_short_is_refused(prune, place, capsys):
    write_tokenizer(place / 'dense', 48)
    (place / 'text.txt').write_text('w5 w6')
    text = place / 'text.txt'
    shown = refused(prune, place, capsys, calibration=text)
    assert 'has 2 tokens, less than one window of 12' in shown


def test_pickles_are_refused_unless_trusted(prune, place, capsys):
    model = dense()
    folder = place / 'dense'
    torch.save(model.state_dict(), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()
    shown = refused(prune, place, capsys)
    assert 'only as pickles (pytorch_model.bin)' in shown
    assert '--trust-checkpoint' in shown
    prune([*flags(place, save=None), '--trust-checkpoint'])
    assert set(zeros(place / 'pruned').values()) == {0.5}


def test_a_folder_that_is_there_is_replaced_only_by_force(
    prune, place, capsys
):
    (place / 'pruned').mkdir()
    (place / 'pruned' / 'mine.txt').write_text('x')
    assert 'is there already' in refused(prune, place, capsys)
    prune([*flags(place, save=None), '--force'])
    assert not (place / 'pruned' / 'mine.txt').exists()


def test_a_model_of_another_kind_is_refused(prune, place, capsys):
    path = place / 'dense' / 'config.json'
    path.write_text(json.dumps(dict(model_type='resnet')))
    shown = refused(prune, place, capsys)
    assert 'is no causal language model' in shown


def test_perplexity_is_that_of_all_windows(evaluate, place):
    words = ['--model', str(place / 'dense')]
    data = ['--data', str(place / 'tokens.npy'), '--seqlen', '12']
    found = evaluate([*words, *data, '--out', str(place / 'ppl.json')])
    model = dense()
    losses = []
    with torch.no_grad():
        for row in tokens(12, 16)[:, :12]:
            ids = row[None]
            losses.append(model(input_ids=ids, labels=ids).loss)
    expected = torch.stack(losses).mean().exp().item()
    assert found['models'] == {'model': pytest.approx(expected, rel=1e-5)}
    assert found['context'] == 12
    assert json.loads((place / 'ppl.json').read_text()) == found


def test_the_dense_model_is_measured_first(prune, evaluate, place):
    prune(flags(place, save=None))
    data = ['--data', str(place / 'tokens.npy'), '--seqlen', '12']
    found = evaluate(['--model', str(place / 'pruned'), *data])
    assert list(found['models']) == ['dense', 'pruned']
    notes = json.loads((place / 'pruned' / 'pruning_args.json').read_text())
    assert found['models'] == pytest.approx(notes['perplexity']['models'])


def test_adapters_of_another_base_are_refused(evaluate, place, capsys):
    from mmprune.models.lora import add_adapters, save_adapter

    other = dense(dict(LLAMA, hidden_size=32))
    add_adapters(other)
    save_adapter(other, place / 'lora')
    data = ['--data', str(place / 'tokens.npy'), '--seqlen', '12']
    words = ['--model', str(place / 'dense'), *data]
    with pytest.raises(SystemExit) as stop:
        evaluate([*words, '--lora_weights', str(place / 'lora')])
    assert stop.value.code == 2
    assert 'belongs to another base' in capsys.readouterr().err
