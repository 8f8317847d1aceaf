"""The command that recovers a pruned language model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_llm import LLAMA, dense, save_sparse, tokens
from tiny_training import Crash, differing, final
from transformers import AutoModelForCausalLM
from two_lm_ranks import METHODS, command

from mmprune.checkpoints.packed import load_packed
from mmprune.models.lora import load_adapter
from mmprune.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def door():
    """The module of the command."""
    path = ROOT / 'tools' / 'guides' / 'finetune_lm.py'
    spec = importlib.util.spec_from_file_location('finetune_lm', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules['finetune_lm'] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A folder with a sparse model and tokens."""
    save_sparse(tmp_path / 'base')
    # Each token is the one before plus one, which can be learned.
    counted = np.arange(12)[:, None] * 7 + np.arange(12)
    np.save(tmp_path / 'text.npy', 3 + counted % 45)
    return tmp_path


def argv(folder: Path, out: str, *flags: str) -> list[str]:
    """Returns a command line of eight steps."""
    return [
        *('--model_name_or_path', str(folder / 'base')),
        *('--dataset_name', str(folder / 'text.npy')),
        *('--block_size', '12', '--do_train', '--do_eval'),
        *('--max_eval_samples', '4', '--num_train_epochs', '2'),
        *('--per_device_train_batch_size', '2', '--learning_rate', '0.02'),
        *('--output_dir', str(folder / out), *flags),
    ]


def results(folder: Path, out: str) -> dict:
    return json.loads((folder / out / 'recovery.json').read_text())


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def test_lora_writes_the_adapter_alone(folder, door):
    door.main(argv(folder, 'lora'))
    names = {path.name for path in (folder / 'lora').iterdir()}
    assert names == {
        *('adapter_config.json', 'adapter_model.safetensors'),
        *('mmprune_adapter.json', 'recovery.json', 'training'),
    }
    config = json.loads((folder / 'lora' / 'adapter_config.json').read_text())
    assert (config['r'], config['lora_alpha']) == (8, 16)
    assert config['lora_dropout'] == 0.05
    assert config['target_modules'] == ['q_proj', 'v_proj']
    assert config['base_model_name_or_path'] == str(folder / 'base')
    found = results(folder, 'lora')
    assert found['sparsity_pruned'] == found['sparsity_recovered'] == 0.5
    assert found['perplexity_recovered'] < found['perplexity_pruned']
    # 8 of 12 windows, the others are evaluated; twice.
    assert found['tokens'] == 2 * 8 * 12


def test_under_the_mask_the_merged_and_packed_model_is_the_trained(
    folder, door
):
    flags = ['--method', 'masked_lora', '--lora_targets', 'all']
    door.main(argv(folder, 'out', *flags, '--merge', '--pack'))
    found = results(folder, 'out')
    assert found['sparsity_merged'] == found['sparsity_pruned'] == 0.5
    assert found['perplexity_merged'] == found['perplexity_recovered']
    merged = AutoModelForCausalLM.from_pretrained(folder / 'out' / 'merged')
    model = MODELS.build(
        dict(
            type='mmprune.HuggingFaceCausalLM',
            pretrained=str(folder / 'base'),
        )
    )
    load_adapter(model, folder / 'out')
    assert torch.equal(logits(merged), logits(model))
    plain = load_file(folder / 'out' / 'merged' / 'model.safetensors')
    assert differing(load_packed(folder / 'out' / 'packed'), plain) == []


def test_dense_writes_a_model_with_the_zeros_of_the_pruned_one(folder, door):
    masks = save_sparse(folder / 'base')
    door.main(argv(folder, 'dense', '--method', 'dense', '--pack'))
    found = results(folder, 'dense')
    assert found['sparsity_recovered'] == found['sparsity_pruned'] == 0.5
    assert found['perplexity_recovered'] < found['perplexity_pruned']
    plain = load_file(folder / 'dense' / 'model.safetensors')
    before = load_file(folder / 'base' / 'model.safetensors')
    for name, mask in masks.items():
        assert (plain[name][~mask] == 0).all()
        assert not torch.equal(plain[name], before[name])
    AutoModelForCausalLM.from_pretrained(folder / 'dense')


def test_it_learns_from_the_dense_model(folder, door):
    dense(LLAMA).save_pretrained(folder / 'teacher')
    flags = ['--distill', str(folder / 'teacher'), '--method', 'dense']
    door.main(argv(folder, 'out', *flags))
    (log,) = (folder / 'out' / 'training').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(line['loss_distill_lm_head'] > 0 for line in lines)
    assert {line['sparsity'] for line in lines} == {0.5}


@pytest.mark.parametrize('method', ['lora', 'masked_lora', 'dense'])
def test_a_resumed_run_ends_bit_identical(folder, door, method, monkeypatch):
    flags = ['--method', method]
    door.main(argv(folder, 'whole', *flags))
    config_from = door.config_from

    def crashing(*args):
        cfg, evaluation = config_from(*args)
        cfg.custom_hooks.append(dict(type='CrashHook', after=6))
        return cfg, evaluation

    monkeypatch.setattr(door, 'config_from', crashing)
    with pytest.raises(Crash):
        door.main(argv(folder, 'crashed', *flags))
    monkeypatch.setattr(door, 'config_from', config_from)
    torch.manual_seed(99)
    door.main(argv(folder, 'crashed', *flags, '--resume'))
    one = final(folder / 'whole' / 'training')
    other = final(folder / 'crashed' / 'training')
    assert other['meta']['epoch'] == 2
    assert differing(one, other) == []
    name = 'adapter_model' if 'lora' in method else 'model'
    files = [folder / n / f'{name}.safetensors' for n in ('whole', 'crashed')]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_evaluation_alone_trains_nothing(folder, door, capsys):
    flags = [f for f in argv(folder, 'out') if f != '--do_train']
    door.main(flags)
    assert '50.0000% of ' in capsys.readouterr().out
    assert not (folder / 'out').exists()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model_name_or_path', './none'], 'no model folder at ./none'),
        (['--block_size', '100'], 'rows of 12 tokens, shorter'),
        (['--max_eval_samples', '12'], 'behind the first 12'),
        (['--dataset_name', 'long.npy', '--block_size', '40'], 'longer than'),
        (['--dataset_name', 'other.npy'], 'that of another model'),
        (['--model_name_or_path', 'dense'], 'no matrix with zeros'),
        (['--dataset_name', 'no.txt', '--tokenizer_name', 'x'], 'no'),
        (['--method', 'dense', '--merge'], '--method dense has none'),
        (['--pack'], 'add --merge'),
        (['--lora_targets', 'c_attn'], "no linear layer 'c_attn'"),
        (['--resume', '--overwrite_output_dir'], 'give one of them'),
        (['--lora_dropout', '1.5'], 'must lie in [0, 1)'),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    folder, door, capsys, flags, message, monkeypatch
):
    monkeypatch.chdir(folder)
    np.save('long.npy', np.full(400, 5))
    np.save('other.npy', np.full(400, 99))
    dense().save_pretrained('dense')
    with pytest.raises(SystemExit) as stop:
        door.main([*argv(folder, 'out'), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert message in error
    assert not (folder / 'out' / 'recovery.json').exists()


def test_a_folder_with_something_in_it_is_not_written_over(
    folder, door, capsys
):
    (folder / 'out').mkdir()
    (folder / 'out' / 'notes.txt').touch()
    with pytest.raises(SystemExit):
        door.main(argv(folder, 'out'))
    assert 'is not empty' in capsys.readouterr().err
    door.main(argv(folder, 'out', '--overwrite_output_dir'))
    assert (folder / 'out' / 'notes.txt').exists()


def test_two_ranks_end_as_one(folder, door):
    masks = save_sparse(folder / 'base')
    for method in METHODS:
        out = str(folder / f'{method}_one')
        door.main(command(folder, method, out, batch=4))
    script = Path(__file__).with_name('two_lm_ranks.py')
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    done = subprocess.run(
        [*start, '--nproc-per-node', '2', str(script), str(folder)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = dict(dense='model', masked_lora='adapter_model')
    for method, stem in files.items():
        one, ddp, fsdp = (
            load_file(folder / f'{method}_{name}' / f'{stem}.safetensors')
            for name in ('one', 'ddp', 'fsdp')
        )
        assert one.keys() == ddp.keys() == fsdp.keys()
        for key, weight in one.items():
            for other in (ddp, fsdp):
                torch.testing.assert_close(
                    weight, other[key], rtol=1e-3, atol=1e-4
                )
        if method == 'dense':
            for key, mask in masks.items():
                assert (ddp[key][~mask] == 0).all()
                assert (fsdp[key][~mask] == 0).all()
