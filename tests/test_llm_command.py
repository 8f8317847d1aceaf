"""tools/prune_and_retrain.py on a language model."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import LLAMA, dense, tokens
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'projects' / 'configs' / 'llm').glob('*.py'))


def tool(name: str):
    """Returns a command as a module."""
    path = ROOT / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path):
    dense(dict(LLAMA, num_hidden_layers=4)).save_pretrained(tmp_path / 'llm')
    np.save(tmp_path / 'tokens.npy', tokens(12, 16).numpy())
    return tmp_path


def options(place: Path) -> list[str]:
    source, parts = place / 'tokens.npy', []
    for key in ('pruning.calibration', 'test_dataloader.dataset'):
        parts += [f'{key}.source={source}', f'{key}.num_windows=6']
        parts += [f'{key}.seqlen=12']
    return ['--cfg-options', *parts]


def run(place: Path, config: str, *more: str) -> Path:
    out = place / 'out'
    tool('prune_and_retrain').main(
        [
            str(ROOT / 'projects' / 'configs' / 'llm' / f'{config}.py'),
            str(place / 'llm'),
            *('--output-dir', str(out), '--latency-runs', '0'),
            *more,
            *options(place),
        ]
    )
    return out


def zeros(folder: Path) -> set[float]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {
        (tensor == 0).float().mean().item()
        for name, tensor in model.named_parameters()
        if 'layers' in name and tensor.ndim > 1
    }


def test_both_variants_are_folders_that_plain_transformers_loads(place):
    out = run(
        place, 'causal_lm', '--pruning-ratio', '0.5', '--scope', 'layer',
        '--eval',
    )  # fmt: skip
    assert zeros(out / 'llm_pruned') == {0.5}
    small = AutoModelForCausalLM.from_pretrained(out / 'llm_structured_pruned')
    assert small.config.intermediate_size == 12
    assert small.config.num_key_value_heads == 1
    report = json.loads((out / 'report.json').read_text())
    assert list(report['metrics']) == ['dense', 'unstructured', 'structured']
    assert (out / 'report.html').exists()
    # The written config builds it in a stock Runner.
    from mmengine.config import Config

    from mmprune.registry import MODELS

    cfg = Config.fromfile(out / 'llm_structured_pruned.py')
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=tokens(1)).logits, small(tokens(1)).logits
        )


def test_a_folder_is_tested_with_the_dense_config(place):
    out = run(
        place, 'sparsegpt', '--mode', 'unstructured', '--pattern', '2:4',
        '--eval',
    )  # fmt: skip
    assert zeros(out / 'llm_pruned') == {0.5}
    report = json.loads((out / 'report.json').read_text())
    found = tool('test').main(
        [
            str(ROOT / 'projects' / 'configs' / 'llm' / 'causal_lm.py'),
            str(out / 'llm_pruned'),
            *('--work-dir', str(place / 'test')),
            *options(place),
        ]
    )
    theirs = report['metrics']['unstructured']['perplexity']
    assert found['perplexity'] == pytest.approx(theirs)
    assert found['context'] == 12


@pytest.mark.parametrize('config', [path.stem for path in CONFIGS])
def test_every_config_prunes(place, config):
    mode = 'structured' if config == 'blocks' else 'unstructured'
    out = run(place, config, '--mode', mode, '--pruning-ratio', '0.5')
    if config == 'blocks':
        folder = out / 'llm_structured_pruned'
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.num_hidden_layers == 2
    else:
        found = zeros(out / 'llm_pruned')
        assert min(found) <= 0.5 <= max(found)
        assert len(found) == 1 or 'owl' in config


def test_a_pruned_folder_is_not_pruned_again(place, capsys):
    out = run(place, 'causal_lm', '--mode', 'unstructured')
    (place / 'llm').rename(place / 'first')
    (out / 'llm_pruned').rename(place / 'llm')
    with pytest.raises(SystemExit):
        run(place, 'causal_lm', '--mode', 'unstructured', '--force')
    assert 'has been pruned before' in capsys.readouterr().err


def test_a_finished_run_is_resumed(place, capsys):
    run(place, 'causal_lm', '--mode', 'unstructured')
    run(place, 'causal_lm', '--mode', 'unstructured', '--resume')
    assert 'the pruned models are in' in capsys.readouterr().out
