"""The action error in open loop, of a policy that misses the demonstrations by known amounts."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy import Policy
from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.evaluation.open_loop import OpenLoopEpisode, OpenLoopResult, measure_open_loop
from drift_policy.evaluation.rollout import EvaluationConfig, episode_generator
from drift_policy.policy_config import ACTION
from tests.helpers.policies import tiny_policy

ENDS = np.array([7, 13, 18])
EXECUTED, MISSES = 3, (10.0, 20.0)


@pytest.fixture
def missing() -> tuple[Policy, WindowDataset, list[tuple[int, torch.Generator]]]:
    """A policy that does what is observed but for its misses, the demonstrations, and what it noted of its decisions.

    What is observed in a step is the action of that step.
    """
    policy, given = tiny_policy(observations={"obs": 2}, n_action_steps=EXECUTED), list[tuple[int, torch.Generator]]()
    rng = np.random.default_rng(0)
    actions = rng.uniform(150, 450, (18, 2)).astype(np.float32)
    buffer = ReplayBuffer({"state": actions, "action": actions}, ENDS)
    sizes = {"horizon": 6, "n_obs_steps": 2, "n_action_steps": EXECUTED, "episode_mask": np.ones(3, bool)}
    windows = WindowDataset(buffer, {"obs": [Column("state")]}, [Column("action")], **sizes)  # type: ignore[arg-type]

    def predict_action(obs: dict[str, torch.Tensor], *, generator: torch.Generator, **_: Any) -> Any:
        time.sleep(0.002)
        (now,) = np.flatnonzero((actions == obs["obs"][0, -1].numpy()).all(axis=1))
        given.append((int(now), generator))
        end = ENDS[now < ENDS][0]
        demonstrated = actions[np.minimum(np.arange(now, now + EXECUTED), end - 1)]  # the last one is repeated
        return {"action": torch.from_numpy(demonstrated + np.array(MISSES, np.float32))[None]}

    policy.predict_action = predict_action  # type: ignore[method-assign, assignment]
    return policy, windows, given


def measured(missing: tuple[Policy, WindowDataset, Any], n_episodes: int = 3, policy_seed: int = 0) -> OpenLoopResult:
    policy, windows, _ = missing
    return measure_open_loop(policy, windows, ENDS, EvaluationConfig(n_episodes=n_episodes, policy_seed=policy_seed))


def test_errors_are_those_of_the_executed_steps_in_both_units(missing: tuple[Policy, WindowDataset, Any]) -> None:
    result, policy = measured(missing), missing[0]
    for episode in result.episodes:
        np.testing.assert_allclose(
            episode.predicted - episode.demonstrated, np.broadcast_to(MISSES, episode.predicted.shape), atol=1e-3
        )
        assert episode.action_error == pytest.approx(np.sqrt((10.0**2 + 20.0**2) / 2), rel=1e-4)
        normalised = [policy.normalizer.normalize(ACTION, torch.tensor([miss])) for miss in (MISSES, (0.0, 0.0))]
        assert episode.action_mse == pytest.approx(float((normalised[0] - normalised[1]).square().mean()), rel=1e-3)
    np.testing.assert_allclose(result.error_of_numbers, MISSES, rtol=1e-4)


def test_the_policy_decides_once_every_executed_steps_of_the_first_episodes(
    missing: tuple[Policy, WindowDataset, Any],
) -> None:
    result = measured(missing, n_episodes=2)
    assert [(episode.episode, len(episode.predicted)) for episode in result.episodes] == [(0, 2), (1, 2)]
    assert [now for now, _ in missing[2]] == [0, 3, 7, 10]
    assert len(result.latency_ms) == 4 and 2 <= result.latency(0) < 2000


def test_every_episode_has_random_numbers_of_its_own(missing: tuple[Policy, WindowDataset, Any]) -> None:
    measured(missing, policy_seed=5)
    seeds = [generator.initial_seed() for _, generator in missing[2]]
    expected = [episode_generator(5, episode).initial_seed() for episode in (0, 0, 1, 1, 2)]
    assert seeds == expected and len(set(seeds)) == 3


def test_errors_are_averaged_over_episodes_whatever_their_length() -> None:
    zeros = np.zeros((4, 3, 2), np.float32)
    episodes = [OpenLoopEpisode(0, zeros, zeros, 0.0), OpenLoopEpisode(1, zeros[:1] + 6, zeros[:1], 1.0)]
    result = OpenLoopResult(episodes, [])
    assert result.action_error.mean == 3.0 and result.action_mse.mean == 0.5
    np.testing.assert_allclose(result.error_of_numbers, [np.sqrt(36 / 5)] * 2, rtol=1e-5)
