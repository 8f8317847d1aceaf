"""transformers' Trainer keeps the zeros, also when it resumes."""

import pytest
import torch
from tiny_llm import GPT2, LLAMA, dense, sparse, tokens
from transformers import TrainerCallback, TrainingArguments

import mmprune
from mmprune.sparsifying.holding import sparse_weights


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """No rank is left over from a command that another test ran."""
    monkeypatch.delenv('LOCAL_RANK', raising=False)


def trainer(folder, model=None, callbacks=(), **changes):
    """Returns a trainer of eight steps."""
    settings = dict(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        num_train_epochs=4,
        learning_rate=0.02,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=2,
        save_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=5,
    )
    rows = [dict(input_ids=row, labels=row) for row in tokens()]
    return mmprune.SparseTrainer(
        model=sparse() if model is None else model,
        args=TrainingArguments(**{**settings, **changes}),
        train_dataset=rows,
        callbacks=list(callbacks),
    )


def masks_of(model):
    return {n: model.get_parameter(n) != 0 for n in sparse_weights(model)}


@pytest.mark.parametrize('optimizer', ['adamw_torch', 'sgd', 'adafactor'])
@pytest.mark.parametrize('settings', [LLAMA, GPT2])
def test_zeros_stay_and_survivors_learn(tmp_path, optimizer, settings):
    model = sparse(settings)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    masks = masks_of(model)
    assert len(masks) == (14 if settings is LLAMA else 8)
    run = trainer(tmp_path, model, optim=optimizer, save_strategy='no')
    run.train()
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert weight[~mask].abs().max() == 0
        assert not torch.equal(weight[mask], before[name][mask])
    logged = [h['sparsity'] for h in run.state.log_history if 'loss' in h]
    assert len(logged) == 4
    assert all(value == logged[0] > 0.4 for value in logged)


def test_momentum_of_an_earlier_run_moves_nothing(tmp_path):
    # It was trained dense; what its optimizer remembers is masked too.
    model = sparse()
    run = trainer(tmp_path, model, save_strategy='no')
    run.create_optimizer()
    loss = model(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    run.optimizer.step()
    model.zero_grad()
    masks = masks_of(sparse())
    run.train()
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert weight[~mask].abs().max() == 0
        momentum = run.optimizer.optimizer.state[weight]['exp_avg']
        assert momentum[~mask].abs().max() == 0


class Stop(TrainerCallback):
    """Sets a survivor to zero after step 3, and ends the run at once."""

    def __init__(self, stop: bool) -> None:
        self.stop = stop

    def on_step_end(self, args, state, control, model=None, **_):
        """Does both."""
        if state.global_step == 3:
            weight = model.model.layers[0].self_attn.q_proj.weight
            assert weight[0, 5] != 0
            weight.data[0, 5] = 0
            control.should_training_stop = self.stop


def test_a_resumed_run_ends_bit_identical(tmp_path):
    model = sparse()
    q = model.model.layers[0].self_attn.q_proj.weight
    q.data[0, 5] = 0.1
    start = {k: v.clone() for k, v in model.state_dict().items()}
    trainer(tmp_path / 'whole', model, [Stop(False)]).train()
    whole = {k: v.clone() for k, v in model.state_dict().items()}
    # Not frozen by having been zero for once.
    assert whole['model.layers.0.self_attn.q_proj.weight'][0, 5] != 0
    model.load_state_dict(start)
    trainer(tmp_path / 'run', model, [Stop(True)]).train()
    again = sparse()
    trainer(tmp_path / 'run', again).train(resume_from_checkpoint=True)
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_a_dense_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no zeros to keep'):
        trainer(tmp_path, dense())


def test_names_and_masks_say_what_is_kept(tmp_path):
    model = sparse()
    name = 'model.layers.0.mlp.up_proj.weight'
    run = mmprune.SparseTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True),
        names='up_proj',
    )
    assert list(run.masks) == [name, name.replace('0', '1')]
    masks = {name: torch.ones(24, 16, dtype=torch.bool)}
    run = mmprune.SparseTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True),
        masks=masks,
    )
    assert run.masks.keys() == masks.keys()
