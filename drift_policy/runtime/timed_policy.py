"""A PyTorch policy that tells how long each stage of a decision took."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drift_policy.candidates import most_typical
from drift_policy.heads import Generators
from drift_policy.policy import Observation, Policy
from drift_policy.policy_config import ACTION
from drift_policy.runtime.spec import describe_policy, executed_steps

STAGES = ("check", "normalise", "encode", "generate", "unnormalise")


class TimedPolicy:
    """`Policy.predict_action` with the time of each stage in its answer.

    On a GPU every stage is waited for, which makes the sum larger than an untimed decision.

    Args:
        policy: in evaluation mode.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.config, self.metadata = policy, policy.config, policy.metadata
        self.num_evaluations = policy.num_evaluations
        self.spec = describe_policy(policy)

    @torch.inference_mode()
    def predict_action(
        self,
        obs: Observation,
        *,
        generator: Generators = None,
        noise: Tensor | np.ndarray | None = None,
        noise_scale: float | None = None,
    ) -> dict[str, Any]:
        """Draw one action chunk for each observation; arguments and errors of `Policy.predict_action`.

        Returns:
            its answer, and "timing": the milliseconds of "check" (observation and noise, moved to the device),
            "normalise", "encode", "generate" (with the choice among candidates), "unnormalise" and their "total".
        """
        policy = self.policy
        marks = [time.perf_counter()]
        observation = policy._checked(obs)
        batch = len(next(iter(observation.values())))
        start = policy._noise(batch, generator, noise_scale, noise=noise)
        self._mark(marks)
        normalized = policy.normalize_observation(observation)
        self._mark(marks)
        condition = policy.encoder(normalized)
        self._mark(marks)
        chunk = most_typical(policy.propose(condition, start, generator))
        self._mark(marks)
        prediction = policy.normalizer.unnormalize(ACTION, chunk)
        self._mark(marks)
        timing = {stage: 1000 * (end - begin) for stage, begin, end in zip(STAGES, marks, marks[1:], strict=False)}
        return {
            "action": executed_steps(prediction, policy.n_obs_steps, policy.n_action_steps),
            "action_pred": prediction,
            "timing": timing | {"total": 1000 * (marks[-1] - marks[0])},
        }

    def _mark(self, marks: list[float]) -> None:
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)
        marks.append(time.perf_counter())
