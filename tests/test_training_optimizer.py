"""The optimizer's state is carried into fine-tuning unit by unit, or not."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tiny_fine_tuning import run, write_files

from mmprune.atomic_file import save_checkpoint
from mmprune.checkpoints.reading import load_checkpoint_file
from mmprune.groups import named_tensors
from mmprune.models import build_model
from mmprune.plan import PruningPlan
from mmprune.run.training.start import parameter_order
from mmprune.surgery import kept_index


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


def test_the_momentum_of_the_kept_units_is_identical(files):
    folder = run(files, '--fine-tune', '--pruning-ratio', 0.5)
    dense = load_checkpoint_file(files[1])
    start = load_checkpoint_file(folder / 'fine_tuned' / 'start.pth')
    plan = PruningPlan.load(folder / 'plan.json')
    cfg = Config.fromfile(files[0])
    model = build_model(cfg)
    shapes = {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    index = kept_index(plan, shapes)
    names = [n for n, _ in model.named_parameters()]
    checked = 0
    for i, entry in dense['optimizer']['state'].items():
        expected = entry['momentum_buffer']
        for dim, kept in index.get(names[i], {}).items():
            expected = expected.index_select(dim, kept)
        found = start['optimizer']['state'][i]['momentum_buffer']
        assert torch.equal(found, expected)
        assert found.shape == start['state_dict'][names[i]].shape
        checked += found.numel() < entry['momentum_buffer'].numel()
    assert checked >= 6  # sliced: one, norm, two, branch.0, branch.2
    assert len(start['optimizer']['state']) == 16


def test_the_first_step_uses_the_carried_momentum(files):
    """SGD by hand: v = 0.9 v + g, w = w - lr v, at a known lr."""
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    start = load_checkpoint_file(folder / 'fine_tuned' / 'start.pth')
    fresh = {**start, 'optimizer': {**start['optimizer'], 'state': {}}}
    after = []
    for checkpoint in (start, fresh):
        save_checkpoint(checkpoint, folder / 'fine_tuned' / 'start.pth')
        cfg = Config.fromfile(folder / 'fine_tuned' / 'tiny_config.py')
        cfg.work_dir = str(folder / 'stock')
        cfg.train_cfg.max_epochs = 13
        cfg.train_dataloader.batch_size = 3  # one step
        cfg.experiment_name = f'momentum_{len(after)}_{folder.parent.name}'
        runner = Runner.from_cfg(cfg)
        runner.train()
        after.append(runner.model.state_dict()['one.weight'])
    lr = start['optimizer']['param_groups'][0]['lr']
    order = [n for n, _ in runner.model.named_parameters()]
    buffer = start['optimizer']['state'][order.index('one.weight')]
    expected = lr * 0.9 * buffer['momentum_buffer']
    assert torch.allclose(after[1] - after[0], expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


def test_retraining_starts_with_a_fresh_optimizer(files):
    folder = run(files, '--fine-tune', '--retrain', '--fine-tune-epochs', 1)
    start = load_checkpoint_file(folder / 'retrained' / 'start.pth')
    assert 'optimizer' not in start
    assert start['meta']['epoch'] == 0


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda c: c.pop('optimizer'), 'the checkpoint has none'),
        (lambda c: c['optimizer']['param_groups'][0].pop('momentum'), 'kind'),
        (
            lambda c: c['optimizer']['param_groups'][0]['params'].pop(),
            'it has 17',
        ),
        (
            lambda c: c['optimizer']['state'][3].update(
                momentum_buffer=torch.ones(5)
            ),
            'its shapes differ, first at one.bias',
        ),
    ],
)
def test_state_that_cannot_be_carried_is_said(files, capsys, change, reason):
    checkpoint = load_checkpoint_file(files[1])
    change(checkpoint)
    save_checkpoint(checkpoint, files[1])
    run(files, '--fine-tune', '--fine-tune-epochs', 1)
    found = capsys.readouterr().out
    assert 'the optimizer starts afresh' in found
    assert reason in found


def test_groups_of_the_optimizer_do_not_mix_up_its_state(files):
    """With paramwise_cfg every parameter is a group of its own."""
    text = files[0].read_text()
    text += (
        "optim_wrapper['paramwise_cfg'] = dict(custom_keys=dict(branch="
        'dict(lr_mult=0.1)))\n'
    )
    files[0].write_text(text)
    folder = run(files, '--fine-tune', '--fine-tune-epochs', 1)
    start = load_checkpoint_file(folder / 'fine_tuned' / 'start.pth')[
        'optimizer'
    ]
    rates = {g['lr'] for g in start['param_groups']}
    assert len(start['param_groups']) == 16
    assert len(rates) == 2
    assert max(rates) == pytest.approx(10 * min(rates))
    assert len(start['state']) == 16


def test_the_order_of_an_optimizer_is_that_of_its_groups():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    groups = [{'params': model[1].parameters()}, {'params': [model[0].bias]}]

    class Wrapper:
        optimizer = torch.optim.SGD(groups, lr=1)

    order = parameter_order(model, Wrapper())
    assert order == ['1.weight', '1.bias', '0.bias']
