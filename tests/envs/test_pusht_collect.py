"""Recording demonstrations: what is stored is what the environment showed and was told."""

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  registers the environment
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import ConfigurationError
from envs.pusht import collect as collect_module
from envs.pusht.collect import CollectConfig, collect
from tests.helpers.policies import tiny_policy


def test_recorded_episodes_replay_to_the_same_states(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(collect_module, "_MAX_STEPS", 12)
    original = collect_module._play
    monkeypatch.setattr(collect_module, "_play", lambda *arguments: original(*arguments) or True)
    policy = tiny_policy(observations={"obs": 20})
    config = CollectConfig(ckpt="", output="unused.zarr", episodes=2, start_seed=300000)
    buffer, attempts = collect(config, policy)
    assert (attempts, buffer.n_episodes, buffer.n_steps) == (2, 2, 24)

    write_zarr(tmp_path / "recorded.zarr.zip", buffer)
    stored = read_zarr(tmp_path / "recorded.zarr.zip")
    for episode in range(2):
        columns = stored.episode(episode)
        env = gym.make("drift_policy/PushT-v0", obs_type="keypoints")
        observation, info = env.reset(seed=300000 + episode)
        for step, action in enumerate(columns["action"]):
            np.testing.assert_allclose(columns["keypoint"][step].ravel(), observation[:18], atol=1e-3)
            np.testing.assert_allclose(columns["state"][step, :2], observation[18:], atol=1e-3)
            np.testing.assert_allclose(columns["state"][step, 2:], info["block_pose"], atol=1e-3)
            observation, _, _, _, info = env.step(action)


def test_hopeless_policy_is_reported(monkeypatch) -> None:
    monkeypatch.setattr(collect_module, "_MAX_STEPS", 3)
    config = CollectConfig(ckpt="", output="unused.zarr", episodes=1, max_attempts=2)
    with pytest.raises(ConfigurationError, match="Only 0 of 2 episodes succeeded"):
        collect(config, tiny_policy(observations={"obs": 20}))
