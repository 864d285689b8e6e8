"""BlockPush as a Gymnasium environment: starts, observations, actions, the rule of success, rendering, wrong input."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv

import envs  # noqa: F401  (registers the environment)
from drift_policy.evaluation.chunked_episode import ChunkedEpisode

pytest.importorskip("pybullet", reason="needs the package `pybullet` of the bullet extra")

from envs.block_push import BlockPushEnv, benchmark_start  # noqa: E402

ENV_ID = "drift_policy/BlockPush-v0"
ROOT = Path(__file__).parents[2]
# Two blocks far from each other and from both targets, and the effector far from all of them.
START = np.array([0.4, -0.2, 1.0, 0.5, -0.1, 2.0, 0.3, -0.4, 0.3, -0.4, 0.28, 0.2, 0.1, 0.52, 0.2, 3.1])
TARGET_1, TARGET_2 = START[10:12], START[13:15]


@pytest.fixture(scope="module")
def env() -> BlockPushEnv:
    return BlockPushEnv()


def start_with(block_1: Any = START[:2], block_2: Any = START[3:5]) -> dict[str, Any]:
    state = START.copy()
    state[:2], state[3:5] = block_1, block_2
    return {"state": state}


def play(env: gym.Env[Any, Any], seed: int, steps: int = 60) -> np.ndarray:
    """Drive into the blocks in a fixed way and return every observation."""
    rng = np.random.default_rng(seed)
    observations = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        way = observations[-1][:2] - observations[-1][6:8]
        action = 0.025 * way / np.linalg.norm(way) + rng.normal(scale=0.01, size=2)
        observations.append(env.step(action.astype(np.float32))[0])
    return np.stack(observations)


# What the benchmark's own code draws for these seeds: numpy's RandomState, its order of draws, yaws modulo pi.
BENCHMARK = {
    0: [0.40976270, -0.13544319, 1.85071904, 0.30783756, -0.26515791, 2.88418058, 0.3, -0.4, 0.3, -0.4]
    + [0.51980894, 0.20282992, 0.07968668, 0.28418235, 0.19575233, 0.01365312],
    100000: [0.35751217, -0.19752554, 2.07499166, 0.46190703, -0.15638271, 2.18118434, 0.3, -0.4, 0.3, -0.4]
    + [0.52490794, 0.19781285, 0.04236076, 0.27922683, 0.19470588, 0.10437873],
}


@pytest.mark.parametrize("seed", BENCHMARK)
def test_a_seed_gives_the_start_of_the_benchmark(env: BlockPushEnv, seed: int) -> None:
    np.testing.assert_allclose(benchmark_start(seed), BENCHMARK[seed], atol=1e-8)
    # Everything comes to rest where it was put.
    np.testing.assert_allclose(env.reset(seed=seed)[0], BENCHMARK[seed], atol=2e-4)


def test_starts_keep_the_distances_of_the_benchmark() -> None:
    states = np.stack([benchmark_start(seed) for seed in range(300)])
    blocks, targets = states[:, [0, 1, 3, 4]], states[:, [10, 11, 13, 14]]
    assert (np.abs(blocks[:, 0] - blocks[:, 2]) > 0.1).all()
    assert (np.abs(blocks - [0.4, -0.2, 0.4, -0.2]) <= [0.1, 0.15, 0.1, 0.15]).all()
    assert (np.abs(np.abs(targets - [0.4, 0.2, 0.4, 0.2]) - [0.12, 0, 0.12, 0]) <= [0.005, 0.0075] * 2).all()
    assert 100 < (targets[:, 0] < 0.4).sum() < 200, "either target may be the nearer one"


def test_spaces() -> None:
    made = gym.make(ENV_ID)
    assert made.observation_space.shape == (16,) and made.observation_space.dtype == np.float64
    assert made.action_space == gym.spaces.Box(-0.1, 0.1, (2,), np.float32)
    assert made.spec is not None and made.spec.max_episode_steps == 350
    absolute = gym.make(ENV_ID, action_mode="absolute").action_space
    np.testing.assert_allclose([absolute.low, absolute.high], [[0.15, -0.5], [0.7, 0.5]], atol=1e-7)


def test_gymnasium_checker_is_content() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ENV_ID).unwrapped, skip_render_check=True)


def test_observations_show_what_was_set(env: BlockPushEnv) -> None:
    state = np.arange(16) / 100 + [0.3, -0.3, 0, 0.4, -0.1, 0, 0.3, 0.2, 0.32, 0.2, 0.3, 0.1, 0, 0.4, 0.1, 0]
    observation, info = env.reset(options={"state": state})
    np.testing.assert_allclose(observation[:8], state[:8], atol=2e-4)  # physical
    np.testing.assert_array_equal(observation[8:], state[8:])  # given
    assert env.observation_space.contains(observation)
    assert info["n_completed"] == 0
    state[[2, 5]] += np.pi  # a turn by half: looks the same
    np.testing.assert_allclose(env.reset(options={"state": state})[0], observation, atol=1e-6)


def test_the_same_seed_and_actions_give_the_same_observations_to_the_last_bit(env: BlockPushEnv) -> None:
    first = play(env, seed=3)
    assert np.abs(first[-1, :6] - first[0, :6]).max() > 0.05, "a block was to be pushed"
    play(env, seed=4, steps=37)
    assert np.array_equal(play(env, seed=3), first)
    other = BlockPushEnv()
    assert np.array_equal(play(other, seed=3), first)
    other.close()
    assert not np.array_equal(play(env, seed=4)[0], first[0])


def test_resets_without_a_seed_continue_a_seeded_sequence(env: BlockPushEnv) -> None:
    def starts(seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed)[0], env.reset()[0]])

    assert np.array_equal(starts(7), starts(7))
    assert not np.array_equal(starts(7)[0], starts(7)[1])


def test_relative_actions_move_the_target_of_the_effector(env: BlockPushEnv) -> None:
    env.reset(options={"state": START})
    observation = env.step([0.02, -0.01])[0]
    np.testing.assert_allclose(observation[8:10], START[8:10] + [0.02, -0.01], atol=1e-12)
    assert 0.015 < observation[6] - START[6] < 0.02, "the effector follows with a lag"
    np.testing.assert_allclose(env.step([0.5, 0.0])[0][8], START[8] + 0.12, atol=1e-12)
    for _ in range(5):
        observation = env.step([-0.1, -0.1])[0]
    np.testing.assert_allclose(observation[8:10], [0.15, -0.5], atol=1e-12)
    np.testing.assert_allclose(observation[6:8], [0.15, -0.5], atol=5e-3)


def test_absolute_actions_are_the_target_of_the_effector() -> None:
    absolute = BlockPushEnv(action_mode="absolute")
    absolute.reset(options={"state": START})
    for action, expected in (([0.35, -0.3], [0.35, -0.3]), ([9.0, 9.0], [0.7, 0.5])):
        np.testing.assert_allclose(absolute.step(action)[0][8:10], expected, atol=1e-12)


def test_both_modes_do_the_same() -> None:
    relative, absolute = BlockPushEnv(), BlockPushEnv(action_mode="absolute")
    relative.reset(options={"state": START})
    absolute.reset(options={"state": START})
    for _ in range(20):
        observation = relative.step([0.008, 0.015])[0]
        np.testing.assert_allclose(absolute.step(observation[8:10])[0], observation, atol=1e-9)


@pytest.mark.parametrize(
    ("places", "completed", "first"),
    [
        ({}, 0, (-1, -1)),
        ({"block_1": TARGET_2 + [0.03, -0.03]}, 1, (0, 1)),
        ({"block_2": TARGET_1 + [0.03, -0.03]}, 1, (1, 0)),
        ({"block_1": TARGET_1 + [0.04, -0.04]}, 0, (-1, -1)),  # 57 mm away
        ({"block_1": TARGET_1 + [0.024, 0], "block_2": TARGET_1 - [0.024, 0]}, 1, (0, 0)),  # both in one target
        ({"block_1": TARGET_1, "block_2": TARGET_2}, 2, (0, 0)),
        ({"block_1": TARGET_2, "block_2": TARGET_1}, 2, (0, 1)),
    ],
)
def test_phases_are_counted(env: BlockPushEnv, places: dict[str, Any], completed: int, first: tuple[int, int]) -> None:
    _, info = env.reset(options=start_with(**places))
    assert info["n_completed"] == completed
    _, reward, terminated, truncated, info = env.step([0.0, 0.0])
    assert (reward, terminated, truncated) == (completed / 2, completed == 2, False)
    assert (info["n_completed"], info["is_success"]) == (completed, completed == 2)
    assert (info["first_block"], info["first_target"]) == first


def test_a_block_pushed_in_and_out_again_keeps_the_first_phase_only() -> None:
    episode = ChunkedEpisode(gym.make(ENV_ID), n_obs_steps=1, n_action_steps=1, max_steps=100)
    options = start_with(block_1=TARGET_1 - [0, 0.08])
    options["state"][6:10] = [*(TARGET_1 - [0, 0.12])] * 2
    options["state"][2] = 0.0
    episode.reset(options=options)
    infos = [episode.step(np.array([[0.0, 0.02]]))[4] for _ in range(14)]
    observation, reward, terminated, _, info = episode.env.step([0.0, 0.0])
    assert observation[1] - TARGET_1[1] > 0.05, "the block was to be pushed through"
    assert (reward, terminated, info["n_completed"]) == (0.5, False, 1)
    entry = int(info["entry_steps"][0, 0])
    assert entry > 0 and info["entry_steps"].tolist() == [[entry, -1], [-1, -1]]
    assert [step["score"] for step in infos] == [0.0] * (entry - 1) + [0.5] * (15 - entry)
    assert (infos[-1]["completed"], infos[-1]["success"]) == (1, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pose": START}, r"unknown reset options \['pose'\]"),
        ({"state": START[:14]}, r"shape \(14,\); give sixteen numbers"),
        ({"state": "home"}, "is 'home'; give sixteen numbers"),
        ({"state": np.where(np.arange(16) == 4, np.nan, START)}, "must be finite"),
        ({"state": np.where(np.arange(16) == 6, 0.9, START)}, r"number 6 of options\['state'\] is 0.9.*0.05..0.8"),
        ({"state": np.where(np.arange(16) == 0, 7.0, START)}, "number 0 .* is 7"),
    ],
)
def test_a_start_that_cannot_be_used_is_an_error(env: BlockPushEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize(("action", "message"), [(np.zeros(3), r"shape \(3,\)"), ([0.0, np.inf], "must be finite")])
def test_an_action_that_cannot_be_used_is_an_error(env: BlockPushEnv, action: Any, message: str) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_arguments_that_cannot_be_used_are_errors(env: BlockPushEnv) -> None:
    with pytest.raises(ValueError, match="action_mode is 'delta'; use one of relative, absolute"):
        BlockPushEnv(action_mode="delta")
    with pytest.raises(ValueError, match="'human'; use None or 'rgb_array'"):
        BlockPushEnv(render_mode="human")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        BlockPushEnv(render_size=0)
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        env.render()
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        BlockPushEnv().step([0.0, 0.0])


def test_a_closed_environment_says_so() -> None:
    closed = BlockPushEnv()
    closed.reset(seed=0)
    closed.close()
    closed.close()
    with pytest.raises(ValueError, match="closed; make a new one"):
        closed.step([0.0, 0.0])


def test_frames_show_the_blocks_and_only_what_moved() -> None:
    env = BlockPushEnv(render_mode="rgb_array", render_size=96)
    frames = []
    for options in (start_with(), start_with(), start_with(block_1=(0.6, 0.0))):
        env.reset(options=options)
        frames.append(env.render().astype(int))
    assert frames[0].shape == (96, 96, 3)
    assert np.array_equal(frames[0], frames[1])
    red, green, blue = np.moveaxis(frames[0], -1, 0)
    for name, color in {
        "red": red - green - blue,
        "green": green - red - blue // 2,
        "blue": blue - red - green,
    }.items():
        assert (color > 0).sum() > 5, f"nothing is {name}"
    assert 0.001 < (frames[0] != frames[2]).any(axis=-1).mean() < 0.05


def test_processes_of_their_own_give_the_same_observations() -> None:
    vector = AsyncVectorEnv([make_env] * 2, context="spawn")
    observations = [vector.reset(seed=[3, 5])[0]]
    observations += [vector.step(np.full((2, 2), 0.02, np.float32))[0] for _ in range(8)]
    vector.close()
    env = make_env()
    for index, seed in enumerate((3, 5)):
        expected = [env.reset(seed=seed)[0]] + [env.step(np.full(2, 0.02, np.float32))[0] for _ in range(8)]
        assert np.array_equal(np.stack(observations)[:, index], np.stack(expected))


def make_env() -> gym.Env[Any, Any]:
    return BlockPushEnv()


def test_nothing_is_printed_and_importing_the_environments_loads_no_simulator() -> None:
    program = (
        "import sys, envs, gymnasium; assert 'pybullet' not in sys.modules; "
        "gymnasium.make('drift_policy/BlockPush-v0').reset(seed=0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout + result.stderr == ""
