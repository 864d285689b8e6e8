"""The surface of a policy in numpy: what exported and remote policies share. No torch.

Shape letters: B observations, N candidates that a decision draws, To observation steps, Tp predicted steps (horizon),
Ta executed steps, Da action size, F features of an observation step.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift_policy.runtime.observations import Arrays, ObservationHistory, checked_noise, checked_observation, stacked
from drift_policy.runtime.spec import PolicySpec, executed_steps
from drift_policy.runtime.step_features import decide, encode_newest

Floats = NDArray[np.float32]


class Decided(NamedTuple):
    """What came of a decision."""

    prediction: Floats  # [B, Tp, Da]
    timing: dict[str, float]  # milliseconds of each stage
    features: Floats | None = None  # [B, To, F], of a policy that encodes steps


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
        features: Sequence[ArrayLike] | None = None,
    ) -> dict[str, Any]:
        """Draw one action chunk for each observation, the most typical of the policy's N candidates.

        Args:
            obs: {key: [B, To, ...]} in the units of the demonstrations, oldest step first; images are
                [B, To, C, H, W], uint8 or float in 0..1. The array itself for a policy with one key.
            generator: source of the noise, for a repeatable answer.
            noise: the noise itself, standard normal: [B, N, Tp, Da] of all candidates, or [B, Tp, Da] of a single one,
                which a file that mirrors half of its candidates refuses.
            noise_scale: factor on the noise; 0.0 gives the most typical chunk. Default: the policy's.
            features: of a policy that `encodes_steps`: [B, F] of each of the first steps, from `encode_step` or an
                earlier answer; `obs` then holds the steps after them alone, at least one.

        Returns:
            {"action": [B, Ta, Da], "action_pred": [B, Tp, Da]} in the units of the demonstrations, float32, and
            "timing": the milliseconds of the decision's stages and their "total". With `features`, which may be an
            empty list, also "features": [B, To, F].

        Raises:
            ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
        """
        started = time.perf_counter()
        if features is not None and not self.encodes_steps:
            raise ValueError("This policy takes whole observations: leave features out.")
        known = [] if features is None else list(features)
        if len(known) >= self.n_obs_steps:
            raise ValueError(f"features of {len(known)} steps are too many: this policy observes {self.n_obs_steps}.")
        observation = checked_observation(self.spec, obs, self.n_obs_steps - len(known))
        batch = len(next(iter(observation.values())))
        scale = self.spec.noise_scale if noise_scale is None else noise_scale
        given = self._checked_noise(batch, generator, noise)
        decided = self._decide(observation, known, given, scale)
        answer = {
            "action": executed_steps(decided.prediction, self.n_obs_steps, self.n_action_steps),
            "action_pred": decided.prediction,
            "timing": decided.timing | {"total": (time.perf_counter() - started) * 1000},
        }
        return answer if features is None else answer | {"features": decided.features}

    @property
    def encodes_steps(self) -> bool:
        """Whether the robot loop encodes each step once, with `encode_step` and `features`."""
        return False

    def select_action(self, obs_now: Any) -> Floats:
        """Return the next action [Da] for one unbatched observation {key: [...]}.

        Keeps the last To observations and the rest of the current chunk; call `reset` between episodes. The first
        observation of an episode stands for the missing earlier ones. If the policy `encodes_steps`, those that the
        next decision observes are encoded when they come: after the first one, no call encodes more than one.

        Raises:
            ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
        """
        self._history.append(obs_now)
        window = self._history.window()
        if not self._queue:
            self._queue.extend(decide(self, window, stacked)["action"][0])
        action = self._queue.popleft()
        if len(self._queue) < self.n_obs_steps - 1:  # the next decision observes this step
            encode_newest(self, window, stacked)
        return action

    def reset(self, seed: int | None = None) -> None:
        """Forget the observations, their features and the actions of the episode; a seed also starts the noise anew."""
        self._history.clear()
        self._queue.clear()
        if seed is not None:
            self._generator = np.random.default_rng(seed)

    @abstractmethod
    def _decide(
        self, observation: Arrays, features: Sequence[ArrayLike], noise: Floats | None, noise_scale: float
    ) -> Decided:
        """Predict.

        Args:
            observation: checked; numbers are float32, images uint8 or float32.
            features: of the steps before those in `observation`; none unless the policy encodes steps.
            noise: [B, Tp, Da] of one candidate or [B, N, Tp, Da] of N > 1, not yet scaled; None if neither noise nor a
                generator was given.
            noise_scale: factor on it.
        """

    def _checked_noise(
        self, batch: int, generator: np.random.Generator | None, noise: ArrayLike | None
    ) -> Floats | None:
        """Return the given noise or draw it from the given generator; None with neither."""
        if noise is not None:
            return checked_noise(self.spec, noise, batch)
        return None if generator is None else self._draw(batch, generator)

    def _draw(self, batch: int, generator: np.random.Generator | None = None) -> Floats:
        """Return noise of all candidates from a generator, the policy's own if absent."""
        source = self._generator if generator is None else generator
        return source.standard_normal((batch, *self.spec.noise_shape), dtype=np.float32)
