"""The surface of a policy in numpy: what exported and remote policies share. No torch.

Shape letters: B observations, To observation steps, Tp predicted steps (horizon), Ta executed steps, Da action size.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift_policy.runtime.observations import Arrays, ObservationHistory, checked_observation
from drift_policy.runtime.spec import PolicySpec

Floats = NDArray[np.float32]


class ArrayPolicy(ABC):
    """Maps the last To observations to a chunk of actions, arrays in and arrays out; `Policy` in numpy.

    Args:
        spec: what the policy expects and returns.
        seed: of the noise that is drawn where a call gives no generator; fresh entropy if absent.
    """

    def __init__(self, spec: PolicySpec, seed: int | None = None) -> None:
        self.spec = spec
        self.metadata = spec.metadata
        self.horizon, self.action_dim = spec.horizon, spec.action_dim
        self.n_obs_steps, self.n_action_steps = spec.n_obs_steps, spec.n_action_steps
        self._generator = np.random.default_rng(seed)
        self._history = ObservationHistory(spec)
        self._queue: deque[Floats] = deque()

    @property
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) of one decision."""
        return self.spec.num_evaluations

    def predict_action(
        self,
        obs: Any,
        *,
        generator: np.random.Generator | None = None,
        noise: ArrayLike | None = None,
        noise_scale: float | None = None,
    ) -> dict[str, Any]:
        """Draw one action chunk for each observation.

        Args:
            obs: {key: [B, To, ...]} in the units of the demonstrations, oldest step first; images are
                [B, To, C, H, W], uint8 or float in 0..1. The array itself for a policy with one key.
            generator: source of the noise, for a repeatable answer.
            noise: the noise itself, [B, Tp, Da], standard normal.
            noise_scale: factor on the noise; 0.0 gives the most typical chunk. Default: the policy's.

        Returns:
            {"action": [B, Ta, Da], "action_pred": [B, Tp, Da]} in the units of the demonstrations, float32, and
            "timing": the milliseconds of the decision's stages and their "total".

        Raises:
            ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
        """
        started = time.perf_counter()
        observation = checked_observation(self.spec, obs)
        batch = len(next(iter(observation.values())))
        scale = self.spec.noise_scale if noise_scale is None else noise_scale
        given = self._checked_noise(batch, generator, noise)
        prediction, timing = self._decide(observation, given, scale)
        first = self.spec.last_observed
        return {
            "action": prediction[:, first : first + self.n_action_steps],
            "action_pred": prediction,
            "timing": timing | {"total": (time.perf_counter() - started) * 1000},
        }

    def select_action(self, obs_now: Any) -> Floats:
        """Return the next action [Da] for one unbatched observation {key: [...]}.

        Keeps the last To observations and the rest of the current chunk; call `reset` between episodes.
        The first observation of an episode stands for the missing earlier ones.

        Raises:
            ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
        """
        self._history.append(obs_now)
        if not self._queue:
            self._queue.extend(self.predict_action(self._history.stacked())["action"][0])
        return self._queue.popleft()

    def reset(self, seed: int | None = None) -> None:
        """Forget the observations and actions of the current episode; a seed also starts the noise anew."""
        self._history.clear()
        self._queue.clear()
        if seed is not None:
            self._generator = np.random.default_rng(seed)

    @abstractmethod
    def _decide(self, observation: Arrays, noise: Floats | None, noise_scale: float) -> tuple[Floats, dict[str, float]]:
        """Return predictions [B, Tp, Da] and the milliseconds of each stage.

        Args:
            observation: checked; numbers are float32, images uint8 or float32.
            noise: [B, Tp, Da], not yet scaled; None if neither noise nor a generator was given.
            noise_scale: factor on it.
        """

    def _checked_noise(
        self, batch: int, generator: np.random.Generator | None, noise: ArrayLike | None
    ) -> Floats | None:
        """Return the given noise or draw it from the given generator; None with neither."""
        shape = (batch, self.horizon, self.action_dim)
        if noise is None:
            return None if generator is None else generator.standard_normal(shape, dtype=np.float32)
        given = np.asarray(noise, dtype=np.float32)
        if given.shape != shape:
            raise ValueError(f"noise must have shape {list(shape)}, but has {list(given.shape)}.")
        if not np.isfinite(given).all():
            raise ValueError("noise holds NaN or infinity: a value is missing.")
        return given

    def _draw(self, batch: int) -> Floats:
        """Return noise [B, Tp, Da] from the policy's own generator."""
        return self._generator.standard_normal((batch, self.horizon, self.action_dim), dtype=np.float32)
