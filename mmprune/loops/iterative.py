"""Rounds of training, pruning and rewinding inside one Runner run."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import barrier, broadcast_object_list
from mmengine.hooks import DistSamplerSeedHook, EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed
from torch import Tensor, nn

from ..registry import FUNCTIONS, LOOPS
from ..rounds import (
    RoundOptions,
    UnitRounds,
    WeightRounds,
    penalty_strength,
)
from ..rounds.regions import Region, WeightRegion, clear, norm
from ..rounds.scores import unit_scores, weight_scores
from .fresh_start import FreshStart, end_schedulers_with_the_round
from .results import Results, summary
from .rewind_file import RewindFile
from .round_hook import RoundHook


@LOOPS.register_module()
class IterativePruningLoop(EpochBasedTrainLoop):
    """Trains, prunes by masks, rewinds, and trains again.

    A run has ``pruning_times`` rounds ("pruning states") of ``epochs``
    epochs. Epochs and iterations count on through all rounds, so every hook
    of a stock Runner works; optimizer, parameter schedulers and EMA start
    afresh in each round, and the config's ``param_scheduler`` describes one
    round. Shapes never change: what is pruned is zero on both sides, so
    neither gradient nor momentum reaches it. Frankle and Carbin, "The
    Lottery Ticket Hypothesis", ICLR 2019; Refill: Chen et al., "Coarsening
    the Granularity", ICML 2022. The smaller model is written at the end.

    Args:
        runner: The Runner.
        dataloader: Training data, or its config.
        init: File of the weights at the start: read if it is there, else
            written. The run keeps its rewind point in the work directory.
        groups: Name of the registered function that yields the groups.
        val_begin: As in mmengine.
        val_interval: As in mmengine; the end of a round is always validated.
        dynamic_intervals: As in mmengine.
        latency_runs: Timed forwards of the models at the end, 0 for none.
        options: Those of :class:`mmprune.rounds.RoundOptions`.

    Raises:
        ValueError: If an option is out of range or fits no group.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        *,
        init: str | None = None,
        groups: str = 'mmprune.vit_groups',
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        latency_runs: int = 5,
        **options: Any,
    ) -> None:
        RoundOptions.check_names(options)
        self.options = RoundOptions(**options)
        if not isinstance(latency_runs, int) or latency_runs < 0:
            raise ValueError(
                'latency_runs must be a whole number that is not negative, '
                f'found {latency_runs!r}; 0 measures nothing'
            )
        super().__init__(
            runner,
            dataloader,
            max_epochs=self.options.epochs * self.options.pruning_times,
            val_begin=val_begin,
            val_interval=val_interval,
            dynamic_intervals=dynamic_intervals,
        )
        find = FUNCTIONS.get(groups)
        if find is None:
            raise ValueError(f'groups={groups!r} names no registered function')
        self.all_groups = list(find(self.model))
        if self.options.vit_structured:
            self.rounds = UnitRounds(self.all_groups, self.options)
        else:
            self.rounds = WeightRounds(
                self.all_groups, self.options, self.model
            )
        self.finished_rounds = 0
        self.rewind_file = RewindFile(runner, init)
        self.results = Results(self.options, latency_runs)
        self._held: list[Region] = []
        self._going: list[Region] = []
        self._handles: list = []
        self._strength = 0.0
        self._going_norm = 0.0
        self._resumed = False
        self._resumed_norm = 0.0
        self._resumed_checksum = ''
        self.fresh_start = FreshStart()
        end_schedulers_with_the_round(
            runner, self.options.epochs, self.iters_per_round
        )
        runner.register_hook(RoundHook(self), priority='ABOVE_NORMAL')

    @property
    def model(self) -> nn.Module:
        """The model without a data-parallel wrapper."""
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    @property
    def iters_per_round(self) -> int:
        """Iterations of one round."""
        return self.options.epochs * len(self.dataloader)

    def run(self) -> nn.Module:
        """Trains all rounds and writes the smaller model."""
        self.runner.call_hook('before_train')
        self._start()
        while True:
            begins = self._epoch >= self.options.rewind_epoch
            if begins and self.rewind_file.point is None:
                self.rewind_file.take(self.model, self._epoch)
            # A run that was stopped between a round's last checkpoint and
            # the next round does the step between them now.
            if self._epoch // self.options.epochs > self.finished_rounds:
                self._finish_round()
            if self._epoch >= self._max_epochs or self.stop_training:
                break
            self.run_epoch()
            self._decide_current_val_interval()
            if self._validates_now():
                self.runner.val_loop.run()
        if self.finished_rounds == self.options.pruning_times:
            self.results.ship(self)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One step; what is pruned is zero again before hooks see it."""
        self.runner.call_hook(
            'before_train_iter', batch_idx=idx, data_batch=data_batch
        )
        self._strength = self._strength_at(idx)
        outputs = self.runner.model.train_step(
            data_batch, optim_wrapper=self.runner.optim_wrapper
        )
        clear(self._held)
        if self._going:
            outputs = {**outputs, 'penalty_strength': self._strength}
        self.runner.call_hook(
            'after_train_iter',
            batch_idx=idx,
            data_batch=data_batch,
            outputs=outputs,
        )
        self._iter += 1

    def pull(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Applies RSST's penalty; the optimizer calls it before its step.

        There the gradient is unscaled, clipped and complete, as for weight
        decay.
        """
        if not self._going or not self._strength:
            return
        mode = self.options.penalty_mode
        if mode == 'auto':
            plain = isinstance(optimizer, torch.optim.SGD)
            mode = 'gradient' if plain else 'decoupled'
        rates = {
            id(param): group['lr']
            for group in optimizer.param_groups
            for param in group['params']
        }
        for region in self._going:
            rate = rates.get(id(region.tensor))
            if rate is None:
                continue
            if mode == 'gradient':
                region.pull(self._strength)
            else:
                region.shrink(max(0.0, 1 - rate * self._strength))

    def _strength_at(self, idx: int) -> float:
        if not self._going:
            return 0.0
        options, length = self.options, len(self.dataloader)
        if options.reg_scope == 'epoch':
            progress = (idx + 1) / length
        else:
            done = self._epoch % options.epochs * length + idx + 1
            progress = done / self.iters_per_round
        return penalty_strength(
            options.RST_schedule,
            progress,
            options.reg_granularity_prune,
            options.exponents,
        )

    # ------------------------------------------------- between the rounds

    def _start(self) -> None:
        """Brings a fresh run to its rewind point, a resumed one to its own."""
        if not self._resumed:
            self.rewind_file.begin(
                self.model, self.averages(), self.options.prune_type == 'pt'
            )
        elif self._resumed_checksum:
            self.rewind_file.load(self._resumed_checksum)
        self._arm()
        if self._resumed:
            self._going_norm = self._resumed_norm
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model,
            self._iter - self.finished_rounds * self.iters_per_round,
            self.iters_per_round,
        )
        if self._epoch < self._max_epochs:
            self._log_state()
        barrier()
        self.results.start_clock()

    def _arm(self) -> None:
        """Zeroes what is gone, and looks up what is held and pulled."""
        self._zero('gone')
        for handle in self._handles:
            handle.remove()
        self._held = self.rounds.held(self.model)
        self._going = self.rounds.regions(self.model, 'going')
        self._going_norm = norm(self._going)
        # Of single weights the gradient is masked too, or it would count
        # when gradients are clipped; whole units have none.
        self._handles = [
            region.tensor.register_hook(
                lambda grad, mask=region.mask: grad.masked_fill(mask, 0)
            )
            for region in self._held
            if isinstance(region, WeightRegion) and region.tensor.requires_grad
        ]

    def _zero(self, which: str) -> None:
        for module in (self.model, *(a.module for a in self.averages())):
            clear(self.rounds.regions(module, which))

    def averages(self) -> list:
        return [
            hook.ema_model
            for hook in self.runner.hooks
            if isinstance(hook, EMAHook)
        ]

    def _finish_round(self) -> None:
        """Evaluates the round, chooses what goes next and rewinds."""
        number = self.finished_rounds
        residual = None
        if self._going:
            residual = norm(self._going) / max(self._going_norm, 1e-30)
            self._zero('going')
        self.rounds.end()
        self.rewind_file.point.verify()
        metrics = {}
        if self.runner.val_loop is not None:
            metrics = self.runner.val_loop.run()
        self.results.add(self, number, metrics, residual)
        if number < self.options.events:
            self._next_round(number + 1)
        self.finished_rounds = number + 1
        self.results.write(self)
        if self.finished_rounds < self.options.pruning_times:
            self._log_state()

    def _next_round(self, event: int) -> None:
        chosen = [self._choose(event)]
        # Activations differ from rank to rank: one decides for all.
        broadcast_object_list(chosen, src=0)
        if self.options.rewind:
            self.rewind_file.point.restore(self.model)
        self.rounds.begin(chosen[0])
        for average in self.averages():
            average.module.load_state_dict(self.model.state_dict())
            average.steps.zero_()
        self._arm()
        self.fresh_start.restore(self.runner)
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model, 0, self.iters_per_round
        )
        self.results.start_clock()

    def _choose(self, event: int) -> Any:
        if not self.options.vit_structured:
            return self.rounds.choose(self.model, None, event)
        criteria = self.options.criteria
        batch = None
        if isinstance(criteria, dict) or criteria in (
            'act_l1',
            'act_l2',
            'saliency',
        ):
            batch = self._batch()
        kind = 'head' if self.options.targets('head') else 'neuron'
        scores = unit_scores(
            self.model,
            self.rounds.groups,
            self.options,
            self.options.sparsity(kind, event),
            batch,
            _loss,
        )
        if self.options.allow_regrowth:
            self._score_by_rewind_point(scores)
        return self.rounds.choose(self.model, scores, event)

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

    def _score_by_rewind_point(self, scores: dict[str, Tensor]) -> None:
        first = weight_scores(
            self.rewind_file.point.weights, self.rounds.groups, self.options
        )
        for name, units in self.rounds.gone.items():
            scores[name][units] = first[name][units]

    # ----------------------------------------------------------- reporting

    def _validates_now(self) -> bool:
        return (
            self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and self._epoch % self.val_interval == 0
            # The end of a round is validated when the round is finished.
            and self._epoch % self.options.epochs != 0
        )

    def _log_state(self) -> None:
        self.runner.logger.info(
            f'pruning state: {self.finished_rounds} of '
            f'{self.options.pruning_times}, struct {self.options.struct}, '
            f'{summary(self.rounds.rows())}'
        )

    # ------------------------------------------------------------- resume

    def state_dict(self) -> dict:
        """Returns plain data, safe under ``weights_only`` loading."""
        return dict(
            finished_rounds=self.finished_rounds,
            rounds=self.rounds.state_dict(),
            going_norm=self._going_norm,
            rewind_point=str(self.rewind_file.path),
            rewind_checksum=self.rewind_file.checksum,
            options=self.options.to_dict(),
            results=self.results.state_dict(),
        )

    def load_state_dict(self, state: dict) -> None:
        """Takes over the state of a checkpoint that a run resumes from.

        Raises:
            ValueError: If it belongs to a run with other options.
        """
        mine = self.options.to_dict()
        differing = [
            f'{name}={state["options"].get(name)!r} then, {value!r} now'
            for name, value in mine.items()
            if state['options'].get(name) != value
        ]
        if differing:
            raise ValueError(
                'the checkpoint belongs to a run with other options: '
                f'{"; ".join(differing[:4])}; resume with the same ones, or '
                'start a new run in another folder'
            )
        self.finished_rounds = state['finished_rounds']
        self.rounds.load_state_dict(state['rounds'])
        self.results.load_state_dict(state['results'])
        self._resumed_checksum = state['rewind_checksum']
        self._resumed_norm = state['going_norm']
        self._resumed = True


def _loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss on a batch of the training data."""
    data = model.data_preprocessor(batch, False)
    losses = model(**data, mode='loss')
    return model.parse_losses(losses)[0]
