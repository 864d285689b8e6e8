"""The training loop: step-based, resumable to the bit."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from drift_policy.data.dataset import WindowDataset
from drift_policy.errors import ConfigurationError, UserError
from drift_policy.evaluation.rollout import Episode, RolloutResult
from drift_policy.heads import Metrics
from drift_policy.policy import Policy
from drift_policy.training.batches import make_batches
from drift_policy.training.checkpoint import CheckpointStore, TrainingState, restore_moments, training_tensors
from drift_policy.training.display import TrainingDisplay
from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard, TrainingInterruptedError
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import batch_indices, learning_rate
from drift_policy.training.tracking import Tracker
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import Batch, PolicyUpdate
from drift_policy.training.validation import CHOICE_ERROR, Validation

# Rolls a policy out; the callback is called after each episode.
Evaluate = Callable[[Policy, Callable[[Episode], None]], RolloutResult]

# Several processes ask each other this often whether one was told to stop: torchrun kills them half a minute after.
_STEPS_BETWEEN_STOP_CHECKS = 10


@dataclass
class TrainingData:
    """Windows to train on and windows that are held out."""

    train: WindowDataset
    validation: WindowDataset | None
    memory_mapped: bool = False  # whether the windows read from disk


class Trainer:
    """Optimises a policy, averages it, measures it and saves it.

    With several processes every one runs a trainer; the first one writes, shows and rolls out while the others wait.

    Args:
        policy: with its normaliser set, on the device to train on.
        data: windows; the trainer moves them to the device if they fit.
        config: see `TrainerConfig`.
        store: where checkpoints go.
        trackers: where metrics go.
        display: what the user sees.
        evaluate: rolls the averaged policy out, or None to train without rollouts.
        choose_by_error: keep the checkpoints with the lowest held-out action error; for tasks without an environment.
        seed: of the data order and of the random numbers of every step; seed PyTorch yourself for the first weights.
        processes: who trains together; None is this process alone.
        resume: continue from the last checkpoint.

    Raises:
        ConfigurationError: fewer windows than a batch has, or a batch that cannot be shared.
        CheckpointError: the checkpoint to resume from is damaged.
    """

    def __init__(
        self,
        policy: Policy,
        data: TrainingData,
        config: TrainerConfig,
        *,
        store: CheckpointStore,
        trackers: list[Tracker],
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
        self.state = TrainingState()
        self.trackers = trackers
        self._config, self._store, self._display = config, store, display
        self._evaluate = evaluate
        self._choose_by_error = choose_by_error
        self._processes = processes or Processes(policy.device)
        moments: dict[str, Tensor] = {}
        if resume:  # before the weights may be split over processes
            self.state, moments = store.load_last(self.ema.policy, policy)
            self.ema.num_updates = self.state.ema_updates
        self._update = PolicyUpdate(policy, self.ema, config, self._processes, seed)
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
            Validation(data.validation, config.validation_windows, policy.device) if data.validation else None
        )
        self._pending: list[Metrics] = []
        self._pending_s = self._waited_s = 0.0

    def run(self) -> None:
        """Train to the configured step; what is due at a step happens before the next update.

        Raises:
            TrainingInterruptedError: a stop was requested; the state has been saved.
        """
        with self._display, InterruptGuard(self._announce_stop) as guard:
            try:
                while True:
                    self._do_due_events(guard)
                    self._check(guard)
                    if self.state.step >= self._config.num_steps:
                        break
                    self._timed_update()
            except TrainingInterruptedError:
                self._save()
                raise
            finally:
                self._batches.close()

    def _check(self, guard: InterruptGuard) -> None:
        """Stop between two updates if it was asked for; several processes do so together."""
        step = self.state.step
        is_common = step % _STEPS_BETWEEN_STOP_CHECKS == 0 or step >= self._config.num_steps
        if (self._processes.size == 1 or is_common) and self._processes.any(guard.is_requested):
            raise TrainingInterruptedError

    def _timed_update(self) -> None:
        started = time.perf_counter()
        try:
            self._pending.append(self._update(self.state.step, self._timed(self._batches.step(self.state.step))))
        except ValueError as error:  # the drift loss refuses samples that are not finite
            raise _diverged(self.state.step, self._config) from error
        self.state.step += 1
        self.state.ema_updates = self.ema.num_updates
        self.state.done_events = []
        self._add_time(started)

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and add up the time that was spent waiting for them."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _add_time(self, started: float) -> None:
        elapsed = time.perf_counter() - started
        self._pending_s += elapsed
        self.state.training_s += elapsed

    def _do_due_events(self, guard: InterruptGuard) -> None:
        """Log, validate, roll out and save if this step asks for it and it was not done before an interruption."""
        config = self._config
        events: tuple[tuple[str, int, Callable[[], None]], ...] = (
            ("log", config.log_every, self._log),
            ("validate", config.validate_every, self._validate),
            ("rollout", config.rollout_every, lambda: self._rollout(guard)),
            ("checkpoint", config.checkpoint_every, self._save),
        )
        for name, every, action in events:
            due = every and (self.state.step % every == 0 or self.state.step == config.num_steps)
            if due and self.state.step and name not in self.state.done_events:
                self.state.done_events.append(name)
                try:
                    action()
                except BaseException:
                    self.state.done_events.remove(name)
                    raise

    def _log(self) -> None:
        if not self._pending:
            return
        started = time.perf_counter()
        names = list(self._pending[0])
        columns = torch.stack([torch.stack([metrics[name] for name in names]) for metrics in self._pending]).mean(dim=0)
        values = self._processes.mean(columns).tolist()
        self._add_time(started)  # a GPU finishes its queued updates here
        means = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        if not isfinite(means["train/loss"]):
            raise _diverged(self.state.step, self._config)
        means["train/samples_per_s"] = len(self._pending) * self._config.batch_size / self._pending_s
        means["train/data_wait"] = self._waited_s / self._pending_s
        means["train/learning_rate"] = learning_rate(self.state.step - 1, self._config)
        self._pending, self._pending_s, self._waited_s = [], 0.0, 0.0
        self._track(means)

    def _validate(self) -> None:
        if self._validation is None:
            return
        self._gather_finite()
        if self._processes.is_main:
            metrics = self._validation.measure(self.ema.policy)
            self._track(metrics)
            self._display.line(self.state.step)
            if self._choose_by_error:
                self._store.save_scored(self.ema.policy, self.state, metrics[CHOICE_ERROR])

    def _rollout(self, guard: InterruptGuard) -> None:
        if self._evaluate is None:
            return
        self._gather_finite()
        was_stopped = False
        if self._processes.is_main:
            try:
                self._rollout_and_save(self._evaluate, guard)
            except TrainingInterruptedError:
                was_stopped = True
        if self._processes.any(was_stopped):  # the others wait here for the first one
            raise TrainingInterruptedError

    def _rollout_and_save(self, evaluate: Evaluate, guard: InterruptGuard) -> None:
        result = evaluate(self.ema.policy, lambda _: guard.check())
        self._track({"rollout/score": result.score.mean, "rollout/success": result.success.mean})
        self._display.message(
            f"step {self.state.step}: rollouts on {result.score.n} start states: score {result.score.mean:.3f}, "
            f"success {result.success.mean:.2f} ({result.wall_s:.0f} s)"
        )
        self._store.save_scored(self.ema.policy, self.state, result.score.mean)

    def _save(self) -> None:
        self._gather_finite()
        tensors = training_tensors(self.policy, self._update.optimizer)
        if self._processes.is_main:
            self._store.save_last(self.ema.policy, tensors, self.state)
        self._processes.wait()

    def _gather_finite(self) -> None:
        self.ema.gather(self.policy)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.ema.policy.parameters()):
            raise _diverged(self.state.step, self._config)

    def _announce_stop(self) -> None:
        self._display.message("stopping after this step or episode; press Ctrl-C again to stop without saving")

    def _track(self, metrics: dict[str, float]) -> None:
        if not self._processes.is_main:
            return
        for tracker in self.trackers:
            tracker.log(self.state.step, metrics)
        self._display.update(self.state.step, metrics)


def _diverged(step: int, config: TrainerConfig) -> UserError:
    return UserError(
        f"The training diverged before step {step}: lower trainer.learning_rate (now {config.learning_rate:g}), or use "
        "trainer.precision=float32. The last saved checkpoint is from before."
    )
