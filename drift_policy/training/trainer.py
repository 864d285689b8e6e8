"""The training loop: step-based, resumable to the bit."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from drift_policy.data.dataset import WindowDataset
from drift_policy.errors import ConfigurationError
from drift_policy.evaluation.rollout import NO_SUCCESS_REPORTED, RolloutResult
from drift_policy.heads import Metrics
from drift_policy.policy import Policy
from drift_policy.training.batches import make_batches
from drift_policy.training.checkpoint import CheckpointStore, PolicyTrainingState
from drift_policy.training.display import TrainingDisplay
from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard, TrainingInterruptedError
from drift_policy.training.parallel import Processes
from drift_policy.training.saved_state import restore_moments, training_tensors
from drift_policy.training.schedule import batch_indices, learning_rate
from drift_policy.training.stepped_training import Event, SteppedTraining
from drift_policy.training.tracking import ROLLOUT_SCORE, ROLLOUT_SUCCESS, Tracker
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import Batch, PolicyUpdate
from drift_policy.training.validation import CHOICE_ERROR, Validation

# Rolls a policy out; the callback is called before each decision and may raise.
Evaluate = Callable[[Policy, Callable[[], None]], RolloutResult]


@dataclass
class TrainingData:
    """Windows to train on and windows that are held out."""

    train: WindowDataset
    validation: WindowDataset | None
    memory_mapped: bool = False  # whether the windows read from disk


class Trainer(SteppedTraining):
    """Optimises a policy, averages it, measures it and saves it.

    With several processes every one runs a trainer; the first one writes, shows and rolls out while the others wait.

    Args:
        policy: with its normaliser set, on the device to train on.
        data: windows; the trainer moves them to the device if they fit.
        config: see `TrainerConfig`.
        store: where checkpoints go.
        display: what the user sees.
        evaluate: rolls the averaged policy out, or None to train without rollouts.
        choose_by_error: without an environment: keep the checkpoints with the lowest error of held-out decisions.
        seed: of the data order and of the random numbers of every step; seed PyTorch yourself for the first weights.
        processes: who trains together; None is this process alone.
        resume: continue from the last checkpoint.

    Raises:
        ConfigurationError: fewer windows than a batch has, or a batch that cannot be shared.
        CheckpointError: the checkpoint to resume from is damaged.
    """

    state: PolicyTrainingState
    trackers: Sequence[Tracker]

    def __init__(
        self,
        policy: Policy,
        data: TrainingData,
        config: TrainerConfig,
        *,
        store: CheckpointStore,
        display: TrainingDisplay,
        evaluate: Evaluate | None,
        choose_by_error: bool = False,
        seed: int,
        processes: Processes | None = None,
        resume: bool = False,
    ) -> None:
        if len(data.train) < config.batch_size:
            raise ConfigurationError(
                f"trainer.batch_size={config.batch_size} is larger than the {len(data.train)} training windows: "
                f"set trainer.batch_size={len(data.train)} or less."
            )
        self.policy = policy
        self.ema = Ema(policy, config.ema_decay)
        self.state = PolicyTrainingState()
        processes = processes or Processes(policy.device)
        super().__init__(config, policy, self.ema, processes, display, config.batch_size)
        self._config, self._store, self._display = config, store, display
        self._evaluate = evaluate
        self._choose_by_error = choose_by_error
        moments: dict[str, Tensor] = {}
        if resume:  # before the weights may be split over processes
            self.state, moments = store.load_last(self.ema.policy, policy)
            self.ema.num_updates = self.state.ema_updates
        self._use_scores(CHOICE_ERROR if choose_by_error else ROLLOUT_SCORE)
        self._update = PolicyUpdate(policy, self.ema, config, processes, seed)
        if moments:
            restore_moments(policy, self._update.optimizer, moments)
        self._batches = make_batches(
            data.train,
            lambda step: self._update.parts(batch_indices(step, len(data.train), config.batch_size, seed)),
            config,
            device=policy.device,
            memory_mapped=data.memory_mapped,
        )
        self._validation = (
            Validation(data.validation, config.validation_windows, policy.device, choose_by_error)
            if data.validation
            else None
        )
        self._waited_s = 0.0

    def update(self, step: int) -> Metrics:
        """Do the update that follows `step` updates and return its metrics, still on the device."""
        return self._update(step, self._timed(self._batches.step(step)))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` updates."""
        return learning_rate(step, self._config)

    def events(self, guard: InterruptGuard) -> tuple[Event, ...]:
        """Return what is done at some steps: held-out error, saving, rollouts."""
        config = self._config
        return (
            Event("validate", config.validate_every, self._validate),
            Event("checkpoint", config.checkpoint_every, self.save),  # before rollouts: a simulator may fail
            Event("rollout", config.rollout_every, lambda: self._rollout(guard), at_the_end=config.rollout_every > 0),
        )

    def save(self) -> None:
        """Save the last checkpoint."""
        self.gather_finite()
        tensors = training_tensors(self.policy, self._update.optimizer)
        if self.processes.is_main:
            self._store.save_last(self.ema.policy, tensors, self.state)
        self.processes.wait()

    def begin(self) -> None:
        """Nothing is to be prepared."""

    def close(self) -> None:
        """End the processes that prepare batches."""
        self._batches.close()

    def further_metrics(self, seconds: float) -> dict[str, float]:
        """Return the share of the time that was spent waiting for batches."""
        share, self._waited_s = self._waited_s / seconds, 0.0
        return {"train/data_wait": share}

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and add up the time that was spent waiting for them."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _use_scores(self, metric: str) -> None:
        """Say what scores are from now on; errors of older releases were of another measure and are not compared."""
        if metric == CHOICE_ERROR and self.state.best and self.state.scores != metric:
            self._display.message(
                f"Checkpoints are chosen by {metric} now: the best so far stay, but are not compared."
            )
            self.state.best = []
        self.state.scores = metric

    def _validate(self) -> None:
        if self._validation is None:
            if self.processes.is_main:  # a log file without held-out errors shall still tell how far the training is
                self._display.line(self.state.step)
            return
        self.gather_finite()
        if self.processes.is_main:
            metrics = self._validation.measure(self.ema.policy)
            self.track(metrics)
            self._display.line(self.state.step)
            if self._choose_by_error:
                self._store.save_scored(self.ema.policy, self.state, metrics[CHOICE_ERROR])

    def _rollout(self, guard: InterruptGuard) -> None:
        if self._evaluate is None:
            return
        self.gather_finite()
        was_stopped = False
        if self.processes.is_main:
            try:
                self._rollout_and_save(self._evaluate, guard)
            except TrainingInterruptedError:
                was_stopped = True
        if self.processes.any(was_stopped):  # the others wait here for the first one
            raise TrainingInterruptedError
        self.save()  # with the table of the best checkpoints as it is now

    def _rollout_and_save(self, evaluate: Evaluate, guard: InterruptGuard) -> None:
        result = evaluate(self.ema.policy, guard.check)
        self.track({ROLLOUT_SCORE: result.score.mean, ROLLOUT_SUCCESS: result.success.mean})
        self._display.message(
            f"step {self.state.step}: rollouts on {result.score.n} start states: score {result.score.mean:.3f}, "
            f"success {result.success.mean:.2f} ({result.wall_s:.0f} s)"
        )
        if not result.success_reported:
            self._display.message(NO_SUCCESS_REPORTED)
        self._store.save_scored(self.ema.policy, self.state, result.score.mean)
