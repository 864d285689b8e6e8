"""The Adroit door as a Gymnasium environment: gymnasium-robotics' physics, starts, scores, rendering, wrong input."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401  (registers the environment)
from drift_policy.errors import ConfigurationError
from drift_policy.evaluation.chunked_episode import ChunkedEpisode
from drift_policy.task import EnvConfig, make_env_factory

pytest.importorskip("mujoco", reason="needs the package `mujoco` of the mujoco extra")
pytest.importorskip("gymnasium_robotics", reason="needs the package `gymnasium-robotics` of the mujoco extra")

from gymnasium_robotics.envs.adroit_hand.adroit_door import AdroitHandDoorEnv  # noqa: E402

from envs import rendering  # noqa: E402
from envs.adroit import AdroitDoorEnv  # noqa: E402

ENV_ID = "drift_policy/AdroitDoor-v0"
ROOT = Path(__file__).parents[2]
START = {"qpos": np.linspace(-0.1, 0.1, 30), "qvel": np.linspace(0, 1, 30), "door_body_pos": np.array([-0.2, 0.3, 0.3])}


@pytest.fixture(scope="module")
def env() -> AdroitDoorEnv:
    return AdroitDoorEnv()


@pytest.fixture(autouse=True)
def backends_are_tried_anew() -> Iterator[None]:
    rendering._works_once.cache_clear()
    yield
    rendering._works_once.cache_clear()


def start_with_door_at(angle: float) -> dict[str, Any]:
    qpos = np.zeros(30)
    qpos[28] = angle
    return {"qpos": qpos, "qvel": np.zeros(30), "door_body_pos": START["door_body_pos"]}


def test_physics_and_observations_are_those_of_gymnasium_robotics(env: AdroitDoorEnv) -> None:
    original = AdroitHandDoorEnv()
    rng = np.random.default_rng(0)
    assert np.array_equal(env.reset(seed=5)[0], original.reset(seed=5)[0])
    for _ in range(50):
        action = rng.uniform(-1.3, 1.3, 28)
        observation, _, terminated, truncated, info = env.step(action)
        expected = original.step(action)
        assert np.array_equal(observation, expected[0])
        assert (terminated, truncated, info["is_success"]) == (False, False, bool(expected[4]["success"]))


def test_spaces_are_those_of_the_demonstrations() -> None:
    made = gym.make(ENV_ID)
    assert made.observation_space == gym.spaces.Box(-np.inf, np.inf, (39,), np.float64)
    assert made.action_space == gym.spaces.Box(-1, 1, (28,), np.float32)
    assert made.spec is not None and made.spec.max_episode_steps == 300


def test_gymnasium_checker_is_content() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The original's observations have no limits.
        warnings.filterwarnings("ignore", message=".*infinity. This is probably too")
        check_env(gym.make(ENV_ID).unwrapped, skip_render_check=True)


def test_a_seed_fixes_the_start_and_the_resets_after_it(env: AdroitDoorEnv) -> None:
    def starts(seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed)[0], env.reset()[0]])

    assert np.array_equal(starts(7), starts(7))
    assert not np.array_equal(starts(7)[0], starts(8)[0])
    assert not np.array_equal(starts(7)[0], starts(7)[1])


def test_a_given_start_is_taken_whatever_came_before(env: AdroitDoorEnv) -> None:
    def play() -> np.ndarray:
        observations = [env.reset(options=START)[0]]
        observations += [env.step(np.full(28, 0.2))[0] for _ in range(20)]
        return np.stack(observations)

    env.reset(seed=1)
    first = play()
    assert np.array_equal(first[0][:27], START["qpos"][1:28])
    assert first[0][28] == START["qpos"][28] and first[0][27] == START["qpos"][29]
    assert np.array_equal(env.model.body_pos[env.door_body_id], START["door_body_pos"])
    env.reset(seed=2)
    for _ in range(10):
        env.step(np.ones(28))
    assert np.array_equal(play(), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [0.0]}, r"\['state'\]; give all of qpos \[30\]"),
        ({"qpos": np.zeros(30), "qvel": np.zeros(30)}, "give all of"),
        ({**START, "qvel": np.zeros(28)}, r"'qvel'\] has shape \(28,\)"),
        ({**START, "door_body_pos": [0, np.nan, 0]}, "must be finite"),
        ({**START, "qpos": "home"}, "'qpos'.* is 'home'"),
    ],
)
def test_a_start_that_cannot_be_used_is_an_error(env: AdroitDoorEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize(("action", "message"), [(np.zeros(27), r"shape \(27,\)"), (np.full(28, np.inf), "finite")])
def test_an_action_that_cannot_be_used_is_an_error(env: AdroitDoorEnv, action: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_actions_outside_the_range_are_clipped(env: AdroitDoorEnv) -> None:
    action = np.linspace(-1.4, 1.4, 28)
    env.reset(seed=0)
    beyond = env.step(action)[0]
    env.reset(seed=0)
    assert np.array_equal(env.step(action.clip(-1, 1))[0], beyond)


@pytest.mark.parametrize(("angle", "success", "phases"), [(0.0, False, 0), (1.3, False, 1), (1.45, True, 2)])
def test_success_is_reward_and_score(angle: float, success: bool, phases: int) -> None:
    env = gym.make(ENV_ID)
    env.reset(options=start_with_door_at(angle))
    _, reward, terminated, truncated, info = env.step(np.zeros(28))
    assert (reward, terminated, truncated, info["is_success"]) == (float(success), False, False, success)
    assert info["door_angle"] == pytest.approx(angle, abs=0.02)
    assert info["n_completed"] == phases

    episode = ChunkedEpisode(gym.make(ENV_ID), n_obs_steps=2, n_action_steps=3, max_steps=6)
    episode.reset(options=start_with_door_at(angle))
    for _ in range(2):
        info = episode.step(np.zeros((3, 28)))[4]
    assert (info["score"], info["success"], info["steps"], info["episode_over"]) == (float(success), success, 6, True)


def test_an_open_door_that_falls_shut_keeps_its_score() -> None:
    episode = ChunkedEpisode(gym.make(ENV_ID), n_obs_steps=1, n_action_steps=1, max_steps=100)
    start = start_with_door_at(1.4)
    start["qvel"][28] = -40.0
    episode.reset(options=start)
    infos = [episode.step(np.zeros((1, 28)))[4]["score"] for _ in range(40)]
    assert episode.unwrapped.data.qpos[28] < 1.35, "the door was to fall shut"
    assert infos == [infos[0]] * 40


def test_importing_the_environments_loads_no_simulator() -> None:
    program = "import sys, envs; print({'mujoco', 'gymnasium_robotics', 'pymunk'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "set()"


def test_worker_processes_print_no_notice() -> None:
    program = "import envs, gymnasium; gymnasium.make('drift_policy/AdroitDoor-v0')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout + result.stderr == ""


def test_a_missing_simulator_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("envs.adroit")]:
        monkeypatch.delitem(sys.modules, name)
    # None is how an import is made to fail.
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.adroit_hand.adroit_door", None)
    with pytest.raises(ConfigurationError, match=r"AdroitDoor-v0.*gymnasium_robotics.*\[all\]"):
        make_env_factory(EnvConfig(id=f"envs:{ENV_ID}"), max_steps=5)


def test_frames_show_the_door_move() -> None:
    if not any(rendering.works(backend) for backend in rendering.WITHOUT_SCREEN):
        pytest.skip("neither EGL nor OSMesa works on this machine")
    env = gym.make(ENV_ID, render_mode="rgb_array", render_size=96)
    frames = []
    for angle in (0.0, 0.0, 1.4):
        env.reset(options=start_with_door_at(angle))
        frames.append(env.render())
    env.close()
    assert frames[0].shape == (96, 96, 3) and frames[0].dtype == np.uint8 and frames[0].std() > 20
    assert np.array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any(axis=-1).mean() > 0.02


def test_rendering_needs_a_render_mode(env: AdroitDoorEnv) -> None:
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        env.render()
    with pytest.raises(ValueError, match="'human'; use None or 'rgb_array'"):
        AdroitDoorEnv(render_mode="human")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        AdroitDoorEnv(render_size=0)


@pytest.mark.parametrize(
    ("working", "given", "chosen"),
    [({"egl", "osmesa"}, None, "egl"), ({"osmesa"}, None, "osmesa"), ({"egl", "glfw"}, "glfw", "glfw")],
)
def test_the_first_backend_that_works_is_chosen(
    monkeypatch: pytest.MonkeyPatch, working: set[str], given: str | None, chosen: str
) -> None:
    monkeypatch.setattr(rendering, "works", working.__contains__)
    monkeypatch.setenv("MUJOCO_GL", "egl")  # so that it is restored at the end
    if given is None:
        monkeypatch.delenv("MUJOCO_GL")
    else:
        monkeypatch.setenv("MUJOCO_GL", given)
    assert rendering.choose_backend() == chosen
    assert os.environ["MUJOCO_GL"] == chosen


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "neither EGL nor OSMesa works.*libegl1.*libosmesa6"), ("egl", "MUJOCO_GL=egl does not work.*libegl1")],
)
def test_a_machine_that_cannot_render_says_which_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, given: str | None, message: str
) -> None:
    monkeypatch.setattr(rendering, "works", lambda backend: False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if given:
        monkeypatch.setenv("MUJOCO_GL", given)
    with pytest.raises(ConfigurationError, match=message):
        AdroitDoorEnv(render_mode="rgb_array")


def test_an_unknown_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(ConfigurationError, match="one of egl, osmesa, glfw, but is 'vulkan'"):
        rendering.choose_backend()


def test_a_backend_that_does_not_start_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    assert not rendering.works("egl")
