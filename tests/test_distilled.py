"""The student learns from a teacher that nothing else can see."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from tiny_training import TinyMLP, config, differing, final, run

from mmprune.adapters import ffn_groups
from mmprune.models import build_model, load_model
from mmprune.models.imitation import Term
from mmprune.pruners import StructuredPruner
from mmprune.registry import MODELS
from mmprune.surgery import apply_plan

KL = dict(loss='kl', temperature=2.0)
FEATURES = dict(source='net.0', loss='mse', weight=0.5)
LOGITS = dict(source='net.5', loss='l1')


@pytest.fixture
def dense(tmp_path):
    """A dense checkpoint, its model and a plan that halves it."""
    torch.manual_seed(3)
    model = TinyMLP(dropout=0.0)
    path = tmp_path / 'dense.pth'
    torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    plan = StructuredPruner(0.5)(model, list(ffn_groups(model)))
    return path, model, plan


def distilled(path, plan, *terms, **kwargs) -> dict:
    return dict(
        type='mmprune.DistilledModel',
        student=dict(
            type='mmprune.PrunedModel',
            model=dict(type='TinyMLP', dropout=0.0),
            plan=plan.to_dict(),
        ),
        teacher_checkpoint=str(path),
        terms=list(terms),
        **kwargs,
    )


def batch() -> dict:
    torch.manual_seed(1)
    return dict(
        inputs=list(torch.randn(5, 4)),
        data_samples=list(torch.tensor([0, 1, 2, 0, 1])),
    )


def pruned_copy(model, plan):
    small = copy.deepcopy(model)
    apply_plan(small, plan)
    return small


@pytest.mark.parametrize('source', ['', 'net.5'])
def test_the_loss_is_the_divergence_from_the_teacher(dense, source):
    path, model, plan = dense
    torch.manual_seed(4)
    student = MODELS.build(distilled(path, plan, dict(KL, source=source)))
    student.train()
    losses = student(**batch(), mode='loss')
    mine = student(**batch(), mode='tensor')
    theirs = model.eval()(**batch(), mode='tensor')
    expected = 4 * F.kl_div(
        F.log_softmax(mine / 2, -1),
        F.log_softmax(theirs / 2, -1),
        reduction='batchmean',
        log_target=True,
    )
    name = f'loss_distill_{source or "outputs"}'
    assert losses[name].item() == pytest.approx(expected.item(), rel=1e-5)
    target = torch.stack(batch()['data_samples'])
    plain = F.cross_entropy(mine, target)
    assert losses['loss'].item() == pytest.approx(plain.item(), rel=1e-5)
    assert losses.keys() == {'loss', name}


def test_losses_by_hand():
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    assert Term(loss='mse', weight=0.5)(one, other) == 5  # (4 + 16) / 2 / 2
    assert Term(loss='l1')(one, other) == 3  # (2 + 4) / 2
    # p = (1/4, 3/4) and q = (1/2, 1/2), softened by 2.
    p = torch.tensor([[0.0, 2 * math.log(3)]])
    q = torch.tensor([[0.0, 0.0]])
    by_hand = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    found = Term(loss='kl', temperature=2.0)(q, p).item()
    assert found == pytest.approx(4 * by_hand, rel=1e-5)
    # Classes in another dimension: the same for each of the positions.
    maps = [x.view(1, 2, 1, 1).expand(1, 2, 3, 3) for x in (q, p)]
    found = Term(loss='kl', temperature=2.0, dim=1)(*maps).item()
    assert found == pytest.approx(4 * by_hand, rel=1e-5)


def test_features_are_compared_at_the_kept_units(dense):
    path, model, plan = dense
    student = MODELS.build(distilled(path, plan, FEATURES))
    student.load_state_dict(pruned_copy(model, plan).state_dict())
    student.train()
    keep = plan.keep['net.0']
    assert 0 < len(keep) < 8
    # The first layer reads the input: what is left of it is unchanged, but
    # a product of another width may round differently.
    loss = student(**batch(), mode='loss')['loss_distill_net.0']
    assert loss.item() < 1e-13
    with torch.no_grad():
        student.net[0].bias += 2
    loss = student(**batch(), mode='loss')['loss_distill_net.0']
    assert loss.item() == pytest.approx(0.5 * 4, rel=1e-5)


def test_the_student_is_a_plain_student_to_everyone_else(dense):
    path, model, plan = dense
    student = MODELS.build(distilled(path, plan, KL, FEATURES))
    small = pruned_copy(model, plan)
    names = [n for n, _ in small.named_parameters()]
    assert [n for n, _ in student.named_parameters()] == names
    assert list(student.state_dict()) == list(small.state_dict())
    assert [n for n, _ in student.named_modules()] == [
        n for n, _ in small.named_modules()
    ]
    assert isinstance(student, TinyMLP)
    assert type(student).__name__ == 'TinyMLP'
    assert student.pruning_plan.keep == plan.keep
    # Outside training the teacher is asked nothing.
    student.eval()
    assert student(**batch(), mode='loss').keys() == {'loss'}


def test_the_teacher_stays_as_it_was(dense):
    path, model, plan = dense
    student = MODELS.build(distilled(path, plan, KL)).train()
    teacher = student._distiller.teacher
    wrapper = OptimWrapper(torch.optim.SGD(student.parameters(), 0.1))
    before = {n: p.clone() for n, p in student.named_parameters()}
    student.train_step(batch(), wrapper)
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert differing(teacher.state_dict(), model.state_dict()) == []
    assert len(differing(before, dict(student.named_parameters()))) == 6


def test_the_teacher_moves_along_and_copies_have_none(dense):
    path, model, plan = dense
    student = MODELS.build(distilled(path, plan, KL)).train()
    student.to(torch.float64)
    teacher = student._distiller.teacher
    assert teacher.net[0].weight.dtype == torch.float64
    average = copy.deepcopy(student)
    assert average._distiller.teacher is None
    assert student._distiller.teacher is teacher
    average.to(torch.float32)
    assert teacher.net[0].weight.dtype == torch.float64
    assert average(**batch(), mode='loss').keys() == {'loss'}


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """mmengine's wrapper runs on the CPU, but asks for a GPU."""
    name = 'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available'
    monkeypatch.setattr(name, lambda: True)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_run_with_amp_and_ema_saves_the_plain_student(
    tmp_path, dense, amp_on_cpu
):
    path, model, plan = dense
    runner = run(
        config(
            tmp_path / 'run',
            model=distilled(path, plan, KL, FEATURES, LOGITS),
            custom_hooks=[
                dict(type='mmprune.SeedHook'),
                dict(type='mmprune.PlanHook'),
                dict(type='EMAHook', momentum=0.1),
            ],
            optim_wrapper=dict(
                type='AmpOptimWrapper',
                dtype='bfloat16',
                optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
            ),
        )
    )
    logged = runner.message_hub.log_scalars
    for name in ('outputs', 'net.0', 'net.5'):
        assert f'train/loss_distill_{name}' in logged
    dense_config = Config(dict(model=dict(type='TinyMLP', dropout=0.0)))
    plain = load_model(dense_config, tmp_path / 'run' / 'latest.pth')
    assert not hasattr(plain, '_distiller')
    saved = final(tmp_path / 'run')['state_dict']
    assert differing(plain.state_dict(), saved) == []
    assert build_model(dense_config).state_dict().keys() == saved.keys()


def test_the_student_comes_nearer_to_the_teacher(tmp_path, dense):
    path, model, plan = dense

    def distance(name: str, *terms: dict) -> float:
        runner = run(
            config(
                tmp_path / name,
                epochs=15,
                model=distilled(path, plan, *terms),
                custom_hooks=[dict(type='mmprune.SeedHook')],
                param_scheduler=None,
            )
        )
        with torch.no_grad():
            mine = runner.model.eval()(**batch())
            return F.mse_loss(mine, model.eval()(**batch())).item()

    near = distance('near', dict(LOGITS, weight=5.0))
    far = distance('far', dict(LOGITS, weight=1e-9))
    assert near < far / 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(terms=[]), 'nothing to imitate'),
        (dict(terms=[dict(loss='cosine')]), "one of 'kl', 'l1', 'mse'"),
        (dict(terms=[dict(KL, temperature=0)]), 'must be positive'),
        (dict(terms=[dict(source='neck')]), "student has no module 'neck'"),
        (dict(student=dict(type='TinyMLP')), 'give the config of the teach'),
        (dict(teacher=dict(type='TinyMLP', width=9)), 'does not fit'),
    ],
)
def test_what_cannot_be_distilled_is_refused(dense, changes, message):
    path, _, plan = dense
    with pytest.raises(ValueError, match=message):
        MODELS.build({**distilled(path, plan, KL), **changes})


def test_outputs_that_do_not_correspond_are_refused(dense):
    path, _, plan = dense
    # A dropout has the pruned width but no weights that the plan names.
    student = MODELS.build(distilled(path, plan, dict(source='net.2')))
    with pytest.raises(ValueError, match='no plan says which units'):
        student.train()(**batch(), mode='loss')
    student = MODELS.build(distilled(path, plan, dict(keys=['scores'])))
    with pytest.raises(KeyError, match="returns no 'scores'"):
        student.train()(**batch(), mode='loss')
