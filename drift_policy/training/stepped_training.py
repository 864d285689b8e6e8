"""A training by steps, resumable to the bit: what trainings of policies and of images have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from drift_policy.drift.validation import is_not_finite
from drift_policy.errors import UserError
from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard, TrainingInterruptedError
from drift_policy.training.parallel import Processes
from drift_policy.training.saved_state import TrainingState

Metrics = dict[str, Tensor]

# Several processes ask each other this often whether one was told to stop: torchrun kills them half a minute after.
_STEPS_BETWEEN_STOP_CHECKS = 10


class Display(Protocol):
    """What the user sees of a training."""

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object:
        """End."""

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show the newest metrics."""

    def message(self, text: str) -> None:
        """Print a line."""


class MetricsTracker(Protocol):
    """Receives the metrics of a training."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step."""

    def finish(self) -> None:
        """Write what is still pending."""


class LoopSettings(Protocol):
    """The settings of a trainer that its loop needs."""

    num_steps: int
    learning_rate: float
    log_every: int


@dataclass
class Event:
    """Something that is done at every so many steps."""

    name: str
    every: int  # steps; 0 is never but, if so asked, at the end
    action: Callable[[], None]
    at_the_end: bool = True


class SteppedTraining(ABC):
    """The loop of a training: updates, and what is due at a step before the next of them.

    Args:
        config: of the trainer.
        network: what is trained.
        ema: its average.
        processes: who trains together; every one runs a loop, the first one writes and shows.
        display: what the user sees.
        samples_per_step: counted for the speed, over all processes.
    """

    state: TrainingState  # where the training is; a subclass sets it, from a checkpoint when it resumes
    settings_name = "trainer"  # what the user calls `config`, for messages

    def __init__(
        self,
        config: LoopSettings,
        network: nn.Module,
        ema: Ema[Any],
        processes: Processes,
        display: Display,
        samples_per_step: int,
    ) -> None:
        self.processes = processes
        self.trackers: Sequence[MetricsTracker] = []
        self._loop, self._trained, self._average, self._shown = config, network, ema, display
        self._samples_per_step = samples_per_step
        self._pending: list[Metrics] = []
        self._pending_s = 0.0

    @abstractmethod
    def update(self, step: int) -> Metrics:
        """Do the update that follows `step` updates and return its metrics, still on the device."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` updates."""

    @abstractmethod
    def events(self, guard: InterruptGuard) -> Sequence[Event]:
        """Return what is done at some steps after the log, in this order; a long action may ask the guard."""

    @abstractmethod
    def save(self) -> None:
        """Save all that a resume needs."""

    @abstractmethod
    def begin(self) -> None:
        """Prepare for the first update."""

    @abstractmethod
    def close(self) -> None:
        """End worker processes."""

    def is_done(self) -> bool:
        """Whether no update follows."""
        return self.state.step >= self._loop.num_steps

    def further_metrics(self, seconds: float) -> dict[str, float]:
        """Return metrics of the time since the last log, `seconds` of updates."""
        return {}

    def run(self) -> None:
        """Train to the end; what is due at a step happens before the next update.

        Raises:
            TrainingInterruptedError: a stop was requested; the state has been saved.
            UserError: the training diverged, or the disk is full.
        """
        with self._shown as _, InterruptGuard(self._announce_stop) as guard:
            try:
                if not self.is_done():
                    self.begin()
                while True:
                    self._do_due_events(guard)
                    self._check(guard)
                    if self.is_done():
                        break
                    self._timed_update()
            except TrainingInterruptedError:
                self.save()
                raise
            finally:
                self.close()

    def track(self, metrics: dict[str, float]) -> None:
        """Record and show metrics of this step."""
        if not self.processes.is_main:
            return
        for tracker in self.trackers:
            tracker.log(self.state.step, metrics)
        self._shown.update(self.state.step, metrics)

    def gather_finite(self) -> None:
        """Make the averaged network whole; all processes must call this.

        Raises:
            UserError: a weight is not finite.
        """
        self._average.gather(self._trained)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self._average.policy.parameters()):
            raise self._diverged()

    def _check(self, guard: InterruptGuard) -> None:
        """Stop between two updates if it was asked for; several processes do so together."""
        step = self.state.step
        is_common = step % _STEPS_BETWEEN_STOP_CHECKS == 0 or step >= self._loop.num_steps
        if (self.processes.size == 1 or is_common) and self.processes.any(guard.is_requested):
            raise TrainingInterruptedError

    def _timed_update(self) -> None:
        started = time.perf_counter()
        try:
            self._pending.append(self.update(self.state.step))
        except (ValueError, RuntimeError) as error:
            if not is_not_finite(error):
                raise
            raise self._diverged() from error
        self.state.step += 1
        self.state.ema_updates = self._average.num_updates
        self.state.done_events = []
        self._add_time(started)

    def _add_time(self, started: float) -> None:
        elapsed = time.perf_counter() - started
        self._pending_s += elapsed
        self.state.training_s += elapsed

    def _do_due_events(self, guard: InterruptGuard) -> None:
        """Do what this step asks for, unless it was done before an interruption."""
        step, is_last = self.state.step, self.is_done()
        for event in (Event("log", self._loop.log_every, self._log), *self.events(guard)):
            is_due = (event.every and step % event.every == 0) or (is_last and event.at_the_end)
            if is_due and step and event.name not in self.state.done_events:
                self.state.done_events.append(event.name)
                try:
                    event.action()
                except BaseException:
                    self.state.done_events.remove(event.name)
                    raise

    def _log(self) -> None:
        if not self._pending:
            return
        started = time.perf_counter()
        names = list(self._pending[0])
        columns = torch.stack([torch.stack([metrics[name] for name in names]) for metrics in self._pending]).mean(dim=0)
        values = self.processes.mean(columns.float()).tolist()
        self._add_time(started)  # a GPU finishes its queued updates here
        means = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        if not isfinite(means["train/loss"]):
            raise self._diverged()
        means["train/samples_per_s"] = len(self._pending) * self._samples_per_step / self._pending_s
        means |= self.further_metrics(self._pending_s)
        means["train/learning_rate"] = self.learning_rate(self.state.step - 1)
        self._pending, self._pending_s = [], 0.0
        self.track(means)

    def _announce_stop(self) -> None:
        self._shown.message("stopping after this step or decision; press Ctrl-C again to stop without saving")

    def _diverged(self) -> UserError:
        return UserError(
            f"The training diverged before step {self.state.step}: lower {self.settings_name}.learning_rate (now "
            f"{self._loop.learning_rate:g}), or use {self.settings_name}.precision=float32. The last saved checkpoint "
            "is from before."
        )
