"""The robot loop: history, action queue and reset of `select_action`."""

from typing import Any

import numpy as np
import pytest
import torch

from drift_policy import Policy
from tests.helpers.policies import HEAD_NAMES, CallCounter, tiny_policy


def episode(steps: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, generator=generator) for _ in range(steps)]


def expected_actions(policy: Policy, observations: list[torch.Tensor]) -> list[torch.Tensor]:
    """Predict from the stacked history at every Ta-th step; the first observation fills the missing ones."""
    actions: list[torch.Tensor] = []
    padded = [observations[0]] * (policy.n_obs_steps - 1) + observations
    for start in range(0, len(observations), policy.n_action_steps):
        history = torch.stack(padded[start : start + policy.n_obs_steps]).unsqueeze(0)
        actions.extend(policy.predict_action({"obs": history})["action"][0])
    return actions[: len(observations)]


@pytest.mark.parametrize("head", HEAD_NAMES)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (2, 3), (3, 1), (3, 2)], ids=str)
def test_equals_predictions_on_the_stacked_history(head: str, sizes: tuple[int, int]) -> None:
    policy = tiny_policy(head, n_obs_steps=sizes[0], n_action_steps=sizes[1])
    observations = episode(8)
    torch.manual_seed(1)
    selected = [policy.select_action({"obs": observation}) for observation in observations]
    torch.manual_seed(1)
    expected = expected_actions(policy, observations)
    assert all(action.shape == (2,) for action in selected)
    assert all(torch.equal(action, other) for action, other in zip(selected, expected, strict=True))


def test_the_network_runs_once_per_chunk() -> None:
    policy = tiny_policy(n_action_steps=3)
    network = CallCounter(policy.head.network)
    calls = []
    for observation in episode(7):
        policy.select_action(observation)
        calls.append(network.calls)
    assert calls == [1, 1, 1, 2, 2, 2, 3]


def test_reset_forgets_history_and_queue() -> None:
    policy = tiny_policy("regression", n_obs_steps=3, n_action_steps=3)
    fresh = [policy.select_action(observation) for observation in episode(5, seed=1)]
    policy.reset()
    for observation in episode(4, seed=2):  # leaves two actions in the queue
        policy.select_action(observation)
    continued = policy.select_action(episode(1, seed=1)[0])
    assert not torch.equal(continued, fresh[0])
    policy.reset()
    again = [policy.select_action(observation) for observation in episode(5, seed=1)]
    assert all(torch.equal(one, other) for one, other in zip(again, fresh, strict=True))


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_driver_may_reuse_its_buffer(kind: str) -> None:
    policy = tiny_policy("regression", n_obs_steps=3, n_action_steps=1)
    observations = episode(6)
    expected = [policy.select_action(observation) for observation in observations]
    policy.reset()
    buffer: Any = np.zeros(5, np.float32) if kind == "array" else torch.zeros(5)
    for observation, action in zip(observations, expected, strict=True):
        buffer[:] = observation.numpy() if kind == "array" else observation
        assert torch.equal(policy.select_action({"obs": buffer}), action)


def test_arrays_and_float64_are_accepted() -> None:
    policy = tiny_policy("regression")
    observation = episode(1)[0]
    expected = policy.select_action(observation)
    forms: list[Any] = [observation.numpy(), observation.double().numpy(), {"obs": observation.numpy()}]
    for form in forms:
        policy.reset()
        assert torch.equal(policy.select_action(form), expected)


@pytest.mark.parametrize(
    ("message", "obs"),
    [
        (r"lacks the key 'obs': it has \['state'\]", {"state": torch.zeros(5)}),
        (r"obs\['obs'\] must have shape \[5\] \(one step, without batch\), but has \[4\]", {"obs": torch.zeros(4)}),
        (r"obs\['obs'\] must have shape \[5\].* has \[1, 5\]", {"obs": torch.zeros(1, 5)}),
        (r"obs\['obs'\] holds NaN", {"obs": torch.full((5,), torch.nan)}),
    ],
)
def test_a_wrong_observation_is_named(message: str, obs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_policy().select_action(obs)


def test_a_wrong_observation_is_named_while_actions_are_queued() -> None:
    policy = tiny_policy(n_action_steps=3)
    policy.select_action(torch.zeros(5))
    with pytest.raises(ValueError, match=r"must have shape \[5\]"):
        policy.select_action(torch.zeros(6))
