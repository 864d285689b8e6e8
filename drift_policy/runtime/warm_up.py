"""First decisions before the robot moves: libraries load, allocate and compile in them. Needs numpy alone."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from drift_policy.runtime.array_policy import ArrayPolicy
from drift_policy.runtime.observations import Arrays
from drift_policy.runtime.spec import PolicySpec, describe_policy
from drift_policy.runtime.step_features import encodes_steps


@dataclass(frozen=True)
class WarmUp:
    """How long the first decisions took."""

    first_ms: float  # with everything that happens only once
    last_ms: float  # what a decision from a whole observation takes from now on


def warm_up(policy: Any, *, calls: int = 3, batch_size: int = 1) -> WarmUp:
    """Make decisions that nobody executes, of whole observations and, where a policy can, of the newest step alone.

    The policy's queue and the random numbers of later decisions are not touched.

    Args:
        policy: anything with `predict_action`.
        calls: number of decisions; compiled policies need 2 or 3.
        batch_size: B of the decisions to come.

    Raises:
        ValueError: calls or batch_size is below 1.
    """
    if calls < 1 or batch_size < 1:
        raise ValueError(f"calls and batch_size must be at least 1, but are {calls} and {batch_size}.")
    spec = describe_policy(policy)
    observation = blank_observation(spec, batch_size)
    noise = np.zeros((batch_size, *spec.noise_shape), np.float32)
    options = {"noise": noise, **on_the_way(policy, spec, [0] * batch_size)}
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        policy.predict_action(observation, **options)
        times.append((time.perf_counter() - started) * 1000)
        if encodes_steps(policy):
            newest = {key: value[:, -1:] for key, value in observation.items()}
            features = [policy.encode_step(newest)] * (spec.n_obs_steps - 1)
            policy.predict_action(newest, **options, features=features)
    return WarmUp(times[0], times[-1])


def blank_observation(spec: PolicySpec, batch_size: int = 1) -> Arrays:
    """Return an observation of zeros and black images, {key: [B, To, ...]}."""
    return {
        key: np.zeros((batch_size, spec.n_obs_steps, *value.shape), np.uint8 if value.kind == "image" else np.float32)
        for key, value in spec.observations.items()
    }


def on_the_way(policy: Any, spec: PolicySpec, seeds: list[int]) -> dict[str, Any]:
    """Return the generators of a PyTorch policy whose head draws noise beside the given one: one an observation.

    Policies with one evaluation, exported and remote ones need none.
    """
    if spec.num_evaluations == 1 or isinstance(policy, ArrayPolicy):
        return {}
    import torch

    return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
