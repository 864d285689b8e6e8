"""A policy whose predictions show what it was given."""

import threading
from typing import Any

import numpy as np

from drift_policy.runtime.spec import ObservationKey, PolicySpec


class EchoPolicy:
    """Predicts the newest number of the observation, plus the noise.

    Args:
        name: goes into the metadata.
    """

    def __init__(self, name: str = "echo") -> None:
        self.spec = PolicySpec(
            observations={"obs": ObservationKey("state", (1,))},
            action_dim=1,
            horizon=4,
            n_obs_steps=2,
            n_action_steps=2,
            noise_scale=0.5,
            metadata={"name": name},
        )
        self.rows: list[int] = []  # observations of each decision
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.was_asked = threading.Event()

    def predict_action(self, obs: dict[str, np.ndarray], *, noise: np.ndarray, noise_scale: float) -> dict[str, Any]:
        self.was_asked.set()
        assert self.may_answer.wait(20)
        self.rows.append(len(noise))
        value = obs["obs"][:, -1:, :]
        if (value == 13).any():
            raise RuntimeError("thirteen")
        value = np.where(value == 99, np.nan, value)
        return {"action_pred": (value + noise_scale * noise).astype(np.float32), "timing": {"echo": 0.5, "total": 9.0}}


def observe(value: float) -> np.ndarray:
    """One observation whose prediction is `value` plus noise."""
    return np.full((1, 2, 1), float(value))
