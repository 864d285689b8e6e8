"""Robomimic's tasks as Gymnasium environments: what files say of states, actions, starts, cameras, wrong input."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from rich.console import Console

import envs  # noqa: F401  (registers the environment)
from drift_policy.data.readers.robomimic import read_robomimic, read_start_state
from drift_policy.errors import DataError
from envs.rendering import WITHOUT_SCREEN, works

pytest.importorskip("robosuite", reason="needs the package `robosuite` of the robomimic extra")

from envs.robomimic.collect import CollectConfig, collect  # noqa: E402
from envs.robomimic.env import RobomimicEnv  # noqa: E402

# MuJoCo writes the numbers of a model with six digits, so what is loaded from a file is not quite what was recorded in.
MODEL_ACCURACY = 1e-4
ID = "drift_policy/Robomimic-v0"
needs_rendering = pytest.mark.skipif(
    not any(works(backend) for backend in WITHOUT_SCREEN), reason="neither EGL nor OSMesa works on this machine"
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scripted episodes of Lift."""
    path = tmp_path_factory.mktemp("lift") / "lift.hdf5"
    collect(CollectConfig(task="lift", output=str(path), episodes=2), Console(quiet=True))
    return path


@pytest.fixture(scope="module")
def env(recording: Path) -> Iterator[RobomimicEnv]:
    made = RobomimicEnv(start_states=recording)
    yield made
    made.close()


def demonstration(path: Path, number: int) -> dict[str, Any]:
    with h5py.File(path) as file:
        group = file[f"data/demo_{number}"]
        return {name: group[name][:] for name in ("actions", "states")} | {
            "object": group["obs/object"][:],
            "eef": group["obs/robot0_eef_pos"][:],
        }


def play(env: RobomimicEnv, actions: np.ndarray) -> tuple[np.ndarray, bool]:
    """Observations after each action, and whether the task was solved; the end of the episode ends it."""
    observations, terminated = [], False
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert (float(terminated), truncated) == (reward, False) and info == {"is_success": terminated}
        observations.append(observation)
        if terminated:
            break
    return np.stack(observations), terminated


def test_observations_are_those_of_the_file(env: RobomimicEnv, recording: Path) -> None:
    buffer = read_robomimic(recording)
    columns = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    expected = np.concatenate([buffer.data[name] for name in columns], axis=1)[: buffer.episode_lengths[0]]
    states = demonstration(recording, 0)["states"]
    for step in (0, 1, len(states) // 2, len(states) - 1):
        assert np.array_equal(env.reset(options={"state": states[step]})[0], expected[step])
    model = read_start_state(recording, "demo_0").model
    for step in (0, len(states) - 1):
        observation, _ = env.reset(options={"state": states[step], "model": model})
        assert observation == pytest.approx(expected[step], abs=MODEL_ACCURACY)


def test_seeds_below_the_number_of_demonstrations_start_where_they_do(env: RobomimicEnv, recording: Path) -> None:
    for number in (1, 0):
        observation, _ = env.reset(seed=number)
        shown = demonstration(recording, number)
        expected = np.concatenate([shown["object"][0], shown["eef"][0]])
        assert observation[:13] == pytest.approx(expected, abs=MODEL_ACCURACY)


def test_replayed_actions_have_the_effect_that_was_recorded(env: RobomimicEnv, recording: Path) -> None:
    shown = demonstration(recording, 1)
    env.reset(seed=1)
    assert play(env, shown["actions"])[1]
    env.reset(options={"state": shown["states"][0]})
    observations, solved = play(env, shown["actions"])
    assert solved
    # The solver of contacts starts from other forces than in the recording.
    assert observations[:-1, 10:13] == pytest.approx(shown["eef"][1 : len(observations)], abs=MODEL_ACCURACY)


def test_absolute_actions_do_the_same(recording: Path) -> None:
    actions = read_robomimic(recording, action_mode="absolute").episode(1)["action"]
    env = RobomimicEnv(start_states=recording, action_mode="absolute")
    assert env.action_space.shape == actions.shape[1:] == (10,)
    env.reset(seed=1)
    observations, solved = play(env, actions)
    env.close()
    assert solved
    expected = demonstration(recording, 1)["eef"][1 : len(observations)]
    assert observations[:-1, 10:13] == pytest.approx(expected, abs=10 * MODEL_ACCURACY)


def test_a_seed_fixes_the_start_whatever_came_before(env: RobomimicEnv) -> None:
    def starts(seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed)[0], env.reset()[0], *play(env, np.full((3, 7), 0.3))[0]])

    expected = starts(100000)
    assert not np.array_equal(starts(100001)[0], expected[0])
    assert not np.array_equal(expected[0], expected[1])
    env.reset(seed=0)  # loads the model of a demonstration
    play(env, np.ones((5, 7)))
    assert np.array_equal(starts(100000), expected)
    other = RobomimicEnv()
    assert np.array_equal(other.reset(seed=100000)[0], expected[0])
    other.close()


def test_actions_outside_the_range_are_clipped(env: RobomimicEnv) -> None:
    action = np.array([2, -3, 0.5, 0, 5, 0, 7.0])
    env.reset(seed=7)
    beyond = env.step(action)[0]
    env.reset(seed=7)
    assert np.array_equal(env.step(action.clip(-1, 1))[0], beyond)


def test_gymnasium_checker_is_content_and_nothing_is_rendered(env: RobomimicEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity. This is probably too")
        check_env(env, skip_render_check=True)
    assert env._cameras._context is None and env._film._context is None
    assert env._robosuite.sim._render_context_offscreen is None


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.zeros(10), r"shape \(10,\); delta actions have shape \(7,\)"), (np.full(7, np.nan), "finite")],
)
def test_an_action_that_cannot_be_used_is_an_error(env: RobomimicEnv, action: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "x"}, "give 'state'"),
        ({"state": np.zeros(32), "qpos": 0}, r"\['qpos', 'state'\]"),
        ({"state": np.zeros(5)}, r"A state of Lift has shape \(32,\), but \(5,\)"),
        ({"state": np.full(32, np.inf)}, "NaN or infinity"),
    ],
)
def test_a_start_that_cannot_be_used_is_an_error(env: RobomimicEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    with pytest.raises(DataError, match=r"options\['model'\] is no XML"):
        env.reset(options={"state": np.zeros(32), "model": "x"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "stack"}, "task is 'stack'; use one of 'lift', 'can'"),
        ({"obs_type": "keypoints"}, "obs_type"),
        ({"action_mode": "relative"}, "action_mode"),
        ({"render_mode": "human"}, "render_mode is 'human'; use one of None, 'rgb_array'"),
        ({"render_size": 0}, "render_size is 0; use 1 to 4096 pixels"),
    ],
)
def test_an_argument_that_does_not_fit_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobomimicEnv(**arguments)


def test_starts_of_another_task_are_an_error(recording: Path) -> None:
    with pytest.raises(DataError, match="holds demonstrations of 'Lift', but the environment is 'PickPlaceCan'"):
        RobomimicEnv(task="can", start_states=recording)


@needs_rendering
def test_images_are_those_of_the_file_whatever_else_renders(tmp_path: Path) -> None:
    path = tmp_path / "images.hdf5"
    random = {"policy": "random", "episodes": 1, "steps": 3, "images": True}
    collect(CollectConfig(task="lift", output=str(path), **random), Console(quiet=True))
    buffer = read_robomimic(path)
    env = gym.make(ID, obs_type="image", render_mode="rgb_array")
    other = gym.make(ID, obs_type="image")
    for step, state in enumerate(demonstration(path, 0)["states"]):
        observation, _ = env.reset(options={"state": state})
        assert observation in env.observation_space
        for key, value in observation.items():
            stored = buffer.data[key][step]
            assert np.array_equal(value, stored.transpose(2, 0, 1) if value.ndim == 3 else stored), key
        if step == 0:
            other.reset(seed=3)  # renders in another context
        if step == 1:
            other.close()  # frees that context, and nothing of ours
    assert list(observation) == [
        "agentview_image",
        "robot0_eye_in_hand_image",
        "robot0_eef_pos",
        "robot0_eef_quat",
        "robot0_gripper_qpos",
    ]
    assert observation["agentview_image"].std() > 20
    frame = env.render()
    assert frame.shape == (256, 256, 3) and frame.dtype == np.uint8
    env.step(np.full(7, 1.0))
    assert not np.array_equal(env.render(), frame)
    env.close()
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        RobomimicEnv.render(other.unwrapped)
