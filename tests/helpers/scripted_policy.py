"""A policy whose chunks and latencies tests write themselves."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from drift_policy.runtime.spec import ObservationKey, PolicySpec


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ScriptedPolicy:
    """Predicts that the action of every control step is the step's number, read from the observation.

    Args:
        horizon: Tp.
        n_obs_steps: To.
        n_action_steps: Ta.
        clock: what a decision lets pass.
        latency: seconds that a decision takes.
        edit: changes a prediction [Tp, 1], given the number of the decision.
    """

    def __init__(
        self,
        horizon: int = 12,
        n_obs_steps: int = 2,
        n_action_steps: int = 4,
        *,
        clock: Clock | None = None,
        latency: float = 0.0,
        edit: Callable[[np.ndarray, int], np.ndarray] = lambda prediction, _: prediction,
    ) -> None:
        self.spec = PolicySpec(
            observations={"obs": ObservationKey("state", (1,))},
            action_dim=1,
            horizon=horizon,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            noise_scale=1.0,
        )
        self.clock, self.latency, self.edit = clock, latency, edit
        self.observed: list[np.ndarray] = []  # [To] of each decision
        self.options: list[dict[str, Any]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.answered = threading.Semaphore(0)

    def predict_action(self, obs: dict[str, np.ndarray], **options: Any) -> dict[str, Any]:
        assert self.may_answer.wait(10)
        window = obs["obs"][0, :, 0]
        self.observed.append(window)
        self.options.append(options)
        if self.clock is not None:
            self.clock.now += self.latency
        steps = window[-1] - self.spec.n_obs_steps + 1 + np.arange(self.spec.horizon)
        prediction = self.edit(steps[:, None].astype(np.float32), len(self.observed) - 1)
        self.answered.release()
        return {"action_pred": prediction[None], "timing": {"total": 1.0}}
