"""The loop that all trainings share: what a row of metrics is made of, and when something is due."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard
from drift_policy.training.parallel import Processes
from drift_policy.training.saved_state import TrainingState
from drift_policy.training.stepped_training import Event, SteppedTraining
from drift_policy.training.trainer_config import TrainerConfig


class Silent:
    """Shows nothing."""

    def __enter__(self) -> None:
        """Nothing begins."""

    def __exit__(self, *_: object) -> None:
        """Nothing ends."""

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing is shown."""

    def message(self, text: str) -> None:
        """Nothing is printed."""


class Slowing(SteppedTraining):
    """Five updates of 8 samples: the first takes a second, each a second more; the loss is ten times the step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, events: Sequence[Event] = (), **settings: Any) -> None:
        network = nn.Linear(1, 1)
        config = TrainerConfig(**({"num_steps": 5} | settings))
        ema, processes = Ema(network, 0.9), Processes(torch.device("cpu"))
        super().__init__(config, network, ema, processes, Silent(), samples_per_step=8)
        self.state = TrainingState()
        self.trackers = [self]
        self.rows: dict[int, dict[str, float]] = {}
        self._events, self._now = events, 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self._now)

    def update(self, step: int) -> dict[str, Tensor]:
        """Let time pass."""
        self._now += step + 1
        return {"loss": torch.tensor(10.0 * step)}

    def learning_rate(self, step: int) -> float:
        """Tell steps apart."""
        return 100.0 + step

    def events(self, guard: InterruptGuard) -> Sequence[Event]:
        """Return the given ones."""
        return self._events

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the row."""
        assert step not in self.rows
        self.rows[step] = metrics

    def finish(self) -> None:
        """Nothing is pending."""

    def save(self) -> None:
        """Nothing is saved."""

    def begin(self) -> None:
        """Nothing is to be prepared."""

    def close(self) -> None:
        """Nothing is open."""


def test_a_row_is_about_the_updates_since_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Slowing(monkeypatch, log_every=2)
    training.run()
    assert list(training.rows) == [2, 4, 5]
    columns = [f"train/{name}" for name in ("loss", "samples_per_s", "learning_rate")]
    rows = [[row[column] for column in columns] for row in training.rows.values()]
    # Means of the losses 0, 10 | 20, 30 | 40; samples over 1 + 2 | 3 + 4 | 5 s; the rate of the last of the updates.
    assert rows == [pytest.approx(row) for row in ([5, 16 / 3, 101], [25, 16 / 7, 103], [40, 8 / 5, 104])]
    assert training.state.training_s == pytest.approx(1 + 2 + 3 + 4 + 5)


def test_events_are_due_at_multiples_of_their_steps_and_at_the_end_but_not_before_the_first_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[str, int]] = []

    def event(name: str, every: int, at_the_end: bool = True) -> Event:
        return Event(name, every, lambda: done.append((name, training.state.step)), at_the_end)

    events = [event("often", 2), event("at the end", 0), event("seldom", 3, at_the_end=False)]
    training = Slowing(monkeypatch, events)
    training.run()
    assert done == [("often", 2), ("seldom", 3), ("often", 4), ("often", 5), ("at the end", 5)]


def test_an_event_that_fails_is_still_due_and_those_before_it_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail_once() -> None:
        done.append("tried")
        if len(done) == 2:
            raise OSError("the disk is away")

    training = Slowing(monkeypatch, [Event("first", 5, lambda: done.append("first")), Event("second", 5, fail_once)])
    with pytest.raises(OSError, match="the disk is away"):
        training.run()
    training.run()
    assert done == ["first", "tried", "tried"]
