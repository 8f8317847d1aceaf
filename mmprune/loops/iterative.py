"""Rounds of training, pruning and rewinding inside one Runner run."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import barrier
from mmengine.hooks import DistSamplerSeedHook
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed
from torch import Tensor, nn

from ..groups import matrix_names, named_tensors
from ..masks import Region, clear, norm
from ..registry import LOOPS
from ..sparsifying.growth import Growth
from ..sparsifying.rewind import RewindFile
from ..sparsifying.runner_parts import (
    averaged_models,
    averages_of,
    groups_of,
    masking_of,
    plain_model,
)
from ..statistics import Statistics
from .earlier_names import renamed, renamed_state
from .results import Results, count_text
from .round_hook import RoundHook, end_schedulers_with_the_round
from .rounds import Rounds


@LOOPS.register_module()
class IterativePruningLoop(EpochBasedTrainLoop):
    """Trains, prunes by masks, rewinds, and trains again.

    A run has ``rounds`` rounds of ``epochs`` epochs. Epochs and iterations
    count on through all rounds, so every hook of a stock Runner works;
    optimizer, parameter schedulers and EMA start afresh in each round, and
    the config's ``param_scheduler`` describes one round. Shapes never
    change: what is pruned is zero on both sides, so neither gradient nor
    momentum reaches it. Frankle & Carbin, "The Lottery Ticket Hypothesis",
    ICLR 2019. At the end an ``ExportHook`` writes the smaller model.

    Args:
        runner: The Runner.
        dataloader: Training data, or its config.
        init: File of the weights at the start: read if it is there, else
            written. The run keeps its rewind point in the work directory.
        groups: Name of the registered function that yields the groups; by
            default those of the config's ``pruning``, or heads and neurons
            of timm's transformers.
        val_begin: As in mmengine.
        val_interval: As in mmengine; the end of a round is always validated.
        dynamic_intervals: As in mmengine.
        latency_runs: Timed forwards of the models at the end, 0 for none.
        options: Those of :class:`mmprune.loops.rounds.Rounds`; earlier names
            are understood.

    Raises:
        ValueError: If an option is out of range or fits no group.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        *,
        init: str | None = None,
        groups: str | None = None,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        latency_runs: int = 5,
        **options: Any,
    ) -> None:
        options, notes = renamed(options)
        if notes:
            runner.logger.info(f'train_cfg: {"; ".join(notes)}')
        Rounds.check_names(options)
        self.plan = Rounds(**options)
        super().__init__(
            runner,
            dataloader,
            max_epochs=self.plan.epochs * self.plan.rounds,
            val_begin=val_begin,
            val_interval=val_interval,
            dynamic_intervals=dynamic_intervals,
        )
        self.model = plain_model(runner)
        if groups is None and 'pruning' not in runner.cfg:
            groups = 'mmprune.vit_groups'
        self.groups = groups_of(runner, self.model, groups)
        self.growth = self._new_growth()
        if self.plan.events:
            self.growth.check(self.plan.sparsity(self.plan.events))
        self.finished_rounds = 0
        self.rewind_file = RewindFile(runner, init)
        self.results = Results(runner, self.plan)
        self._decaying: list[Region] = []
        self._decaying_norm = 0.0
        self._pull = 0.0
        self._resumed: dict[str, Any] | None = None
        end_schedulers_with_the_round(
            runner, self.plan.epochs, self.iters_per_round
        )
        self._hook = RoundHook(self)
        runner.register_hook(self._hook, priority='ABOVE_NORMAL')
        runner.register_hook(
            dict(type='mmprune.ExportHook', latency_runs=latency_runs)
        )

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.finished_rounds == self.plan.rounds

    @property
    def iters_per_round(self) -> int:
        """Iterations of one round."""
        return self.plan.epochs * len(self.dataloader)

    def run(self) -> nn.Module:
        """Trains all rounds and writes the smaller model."""
        self.runner.call_hook('before_train')
        self.masking = masking_of(self.runner)
        self._start()
        while True:
            begins = self._epoch >= self.plan.rewind_epoch
            if begins and self.rewind_file.point is None:
                self.rewind_file.take(self.model, self._epoch)
            # A run that was stopped between a round's last checkpoint and
            # the next round does the step between them now.
            if self._epoch // self.plan.epochs > self.finished_rounds:
                self._finish_round()
            if self._epoch >= self._max_epochs or self.stop_training:
                break
            self.run_epoch()
            self._decide_current_val_interval()
            if self._validates_now():
                self.runner.val_loop.run()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One step; what is pruned is zero again before hooks see it."""
        self.runner.call_hook(
            'before_train_iter', batch_idx=idx, data_batch=data_batch
        )
        self._pull = self._pull_at(idx)
        outputs = self.runner.model.train_step(
            data_batch, optim_wrapper=self.runner.optim_wrapper
        )
        self.masking.apply()
        if self._decaying:
            outputs = {**outputs, 'decay_pull': self._pull}
        self.runner.call_hook(
            'after_train_iter',
            batch_idx=idx,
            data_batch=data_batch,
            outputs=outputs,
        )
        self._iter += 1

    def apply_penalty(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Pulls what decays to zero; the optimizer calls it before a step."""
        if self._decaying and self._pull:
            self.plan.penalty.apply(self._decaying, optimizer, self._pull)

    def _pull_at(self, idx: int) -> float:
        if not self._decaying:
            return 0.0
        length = len(self.dataloader)
        if self.plan.penalty.per == 'epoch':
            return self.plan.penalty.at((idx + 1) / length)
        done = self._epoch % self.plan.epochs * length + idx + 1
        return self.plan.penalty.at(done / self.iters_per_round)

    # ------------------------------------------------- between the rounds

    def _new_growth(self) -> Growth:
        options = dict(
            decay=self.plan.decay is not None, regrow=self.plan.regrow
        )
        pruner = self.plan.built_pruner
        if hasattr(pruner, 'targets'):
            return Growth(pruner, self.model, self.groups, **options)
        # Of a transformer neither the patch embedding nor the classifier.
        names = matrix_names(self.groups, named_tensors(self.model))
        names = pruner.prunable(self.model, names)
        return Growth(pruner, self.model, weights=names, **options)

    def _start(self) -> None:
        """Brings a fresh run to its rewind point, a resumed one to its own."""
        if self._resumed is None:
            self.rewind_file.begin(self.model, self.plan.require_pretrained)
        elif self._resumed['rewind_checksum']:
            self.rewind_file.load(self._resumed['rewind_checksum'])
        self._arm()
        if self._resumed is not None:
            self._decaying_norm = self._resumed['decaying_norm']
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model,
            self._iter - self.finished_rounds * self.iters_per_round,
            self.iters_per_round,
        )
        if self._epoch < self._max_epochs:
            self._log_round()
        barrier()
        self.results.start_clock()

    def _arm(self) -> None:
        """Zeroes what is pruned, and looks up what is held and pulled."""
        growth = self.growth
        self._clear(growth.pruned)
        self.masking.hold(growth.readers, producers_zero=growth.of_units)
        self._decaying = growth.regions(self.model, growth.decaying)
        self._decaying_norm = norm(self._decaying)

    def _clear(self, chosen: dict[str, Tensor]) -> None:
        for module in (self.model, *averages_of(self.runner)):
            clear(self.growth.regions(module, chosen))

    def _finish_round(self) -> None:
        """Evaluates the round, chooses what is pruned next and rewinds."""
        number = self.finished_rounds
        residual = None
        if self._decaying:
            residual = norm(self._decaying) / max(self._decaying_norm, 1e-30)
            self._clear(self.growth.decaying)
        self.growth.finish_decay()
        self.rewind_file.point.verify()
        metrics = {}
        if self.runner.val_loop is not None:
            metrics = self.runner.val_loop.run()
        self.results.add(number, self.growth.rows(), metrics, residual)
        if number < self.plan.events:
            self._next_round(number + 1)
        self.finished_rounds = number + 1
        self.results.write()
        if self.finished_rounds < self.plan.rounds:
            self._log_round()

    def _next_round(self, event: int) -> None:
        sparsity = self.plan.sparsity(event)
        restart = None
        if self.plan.regrow:
            restart = Statistics(
                self.rewind_file.point.weights,
                kinds={p: type(m) for p, m in self.model.named_modules()},
            )
        self.growth.advance(sparsity, self._calibrate(sparsity), restart)
        if self.plan.rewind:
            self.rewind_file.point.restore(self.model)
        for average in averaged_models(self.runner):
            average.module.load_state_dict(self.model.state_dict())
            average.steps.zero_()
        self._arm()
        self._hook.restart(self.runner)
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model, 0, self.iters_per_round
        )
        self.results.start_clock()

    def _calibrate(self, sparsity: float | dict[str, float]) -> Any:
        """Gathers what the criterion reads, from one batch if need be."""
        batches = []
        if {'grad', 'activation'} & self.plan.built_pruner.importance.needs:
            batches = [self._batch()]
        return self.growth.calibrate(sparsity, batches, _loss)

    def _batch(self) -> Any:
        """The same batch in a run that goes on from here; no dropout on it.

        A resumed run has neither the random state nor the order of the
        images that the last epoch left.
        """
        runner = self.runner
        runner.model.eval()
        set_random_seed(runner.seed + runner.epoch, diff_rank_seed=True)
        DistSamplerSeedHook().before_train_epoch(runner)
        return next(iter(self.dataloader))

    # ----------------------------------------------------------- reporting

    def _validates_now(self) -> bool:
        return (
            self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and self._epoch % self.val_interval == 0
            # The end of a round is validated when the round is finished.
            and self._epoch % self.plan.epochs != 0
        )

    def _log_round(self) -> None:
        self.runner.logger.info(
            f'pruning state: {self.finished_rounds} of {self.plan.rounds}, '
            f'{count_text(self.growth.rows())}'
        )

    # ------------------------------------------------------------- resume

    def state_dict(self) -> dict:
        """Returns plain data, safe under ``weights_only`` loading."""
        return dict(
            finished_rounds=self.finished_rounds,
            growth=self.growth.state_dict(),
            decaying_norm=self._decaying_norm,
            rewind_checksum=self.rewind_file.checksum,
            options=self.plan.to_dict(),
            results=self.results.rounds,
        )

    def load_state_dict(self, state: dict) -> None:
        """Takes over the state of a checkpoint that a run resumes from.

        Raises:
            ValueError: If it belongs to a run with other options.
        """
        shapes = {n: m.shape for n, m in self.growth.pruned.items()}
        state = renamed_state(state, shapes)
        self.plan.check_same(Rounds(**state['options']))
        self.finished_rounds = state['finished_rounds']
        self.growth.load_state_dict(state['growth'])
        self.results.rounds = list(state['results'])
        self._resumed = state


def _loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss on a batch of the training data."""
    data = model.data_preprocessor(batch, False)
    losses = model(**data, mode='loss')
    return model.parse_losses(losses)[0]
