"""Push-T against recordings of the original environment (tests/golden/pusht_env) and against gym-pusht itself."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gym_pusht.envs.pusht import PushTEnv as GymPushT

import envs  # noqa: F401  (registers the environment)
from envs.pusht import BLOCK_KEYPOINTS_LOCAL, PushTEnv, benchmark_start, block_keypoints

GOLDEN = Path(__file__).parents[1] / "golden" / "pusht_env"
EPISODES = range(11)


@pytest.fixture(scope="module")
def rollouts() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "rollouts.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("episode", EPISODES)
def test_state_reward_contacts_and_done_equal_the_original(rollouts: dict[str, np.ndarray], episode: int) -> None:
    env = gym.make("drift_policy/PushT-v0", obs_type="state")
    state, _ = env.reset(seed=int(rollouts["seed"][episode]))
    states, rewards, contacts, done = [state], [], [], []
    for action in rollouts["actions"][episode]:
        state, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        states.append(state)
        rewards.append(float(reward))
        contacts.append(info["n_contacts"])
        done.append(terminated)
    np.testing.assert_allclose(states, rollouts["state"][episode], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rewards, rollouts["reward"][episode], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(contacts, rollouts["n_contacts"][episode])
    np.testing.assert_array_equal(done, rollouts["done"][episode])


@pytest.mark.parametrize("episode", EPISODES)
def test_keypoints_equal_the_original(rollouts: dict[str, np.ndarray], episode: int) -> None:
    env = gym.make("drift_policy/PushT-v0", obs_type="keypoints")
    observations = [env.reset(seed=int(rollouts["seed"][episode]))[0]]
    observations += [env.step(action)[0] for action in rollouts["actions"][episode]]
    np.testing.assert_allclose(observations, rollouts["obs"][episode], rtol=0, atol=1e-6)


def test_keypoint_constant_is_the_recorded_one(rollouts: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(BLOCK_KEYPOINTS_LOCAL, rollouts["block_keypoints_local"])
    state, obs = rollouts["state"][3, -1], rollouts["obs"][3, -1]
    np.testing.assert_allclose(block_keypoints(state[2:4], state[4]).ravel(), obs[:18], rtol=0, atol=1e-9)


def test_images_equal_the_original_pixel_for_pixel() -> None:
    with np.load(GOLDEN / "images.npz", allow_pickle=False) as file:
        actions, images, agent_pos = file["actions"], file["image"], file["agent_pos"]
    env = gym.make("drift_policy/PushT-v0", obs_type="image")
    env.reset(seed=100000)
    for action, image, position in zip(actions, images, agent_pos, strict=True):
        obs = env.step(action)[0]
        assert obs["image"].dtype == np.float32
        np.testing.assert_array_equal(obs["image"], image)
        np.testing.assert_allclose(obs["agent_pos"], position, rtol=0, atol=1e-6)


def test_shortcuts_leave_the_numbers_of_gym_pusht_bit_for_bit() -> None:
    """Also out-of-range targets: they are passed on."""
    env, reference = PushTEnv(obs_type="state"), GymPushT(obs_type="state")
    env.reset(seed=7)
    reference.reset(options={"reset_to_state": benchmark_start(7)})
    rng = np.random.default_rng(0)
    near_block = 0
    for _ in range(150):
        target = rng.uniform(-40, 552, 2) if rng.random() < 0.4 else np.array(env.block.position) + rng.normal(0, 60, 2)
        ours, theirs = env.step(target), reference.step(target)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:3] == theirs[1:3]
        assert ours[4]["coverage"] == theirs[4]["coverage"]
        near_block += env.n_contact_points > 0
    assert near_block > 10
