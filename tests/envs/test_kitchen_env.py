"""Franka Kitchen as a Gymnasium environment: physics, observations, noise, completion, starts, frames, wrong input."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401  (registers the environment)
from drift_policy.data.readers.kitchen_mjl import NOISE_AMPLITUDE
from drift_policy.evaluation.chunked_episode import ChunkedEpisode

pytest.importorskip("mujoco", reason="needs the package `mujoco` of the mujoco extra")
pytest.importorskip("gymnasium_robotics", reason="needs the package `gymnasium-robotics` of the mujoco extra")

from gymnasium_robotics.envs.franka_kitchen.kitchen_env import (  # noqa: E402
    OBS_ELEMENT_GOALS,
    OBS_ELEMENT_INDICES,
)
from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv as FrankaKitchenEnv  # noqa: E402
from gymnasium_robotics.envs.franka_kitchen.utils import (  # noqa: E402
    get_config_root_node,
    read_config_from_node,
)

from envs import rendering  # noqa: E402
from envs.kitchen import KitchenEnv  # noqa: E402
from envs.kitchen.env import TASKS  # noqa: E402
from envs.kitchen.observations import to_diffusion_policy, to_gymnasium_robotics  # noqa: E402

ENV_ID = "drift_policy/Kitchen-v0"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def env() -> KitchenEnv:
    return KitchenEnv()


@pytest.fixture(scope="module")
def exact() -> KitchenEnv:
    return KitchenEnv(robot_noise_ratio=0.0)


@pytest.fixture(scope="module")
def original() -> FrankaKitchenEnv:
    return FrankaKitchenEnv(robot_noise_ratio=0.0, object_noise_ratio=0.0)


def start_with(exact: KitchenEnv, *tasks: str) -> dict[str, Any]:
    """The usual start, with some subtasks done already."""
    exact.reset()
    start = exact.state()
    for task in tasks:
        start["qpos"][OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
    return start


def test_physics_and_observations_are_those_of_gymnasium_robotics(
    exact: KitchenEnv, original: FrankaKitchenEnv
) -> None:
    rng = np.random.default_rng(0)
    pairs = [(exact.reset(seed=5)[0], original.reset(seed=5)[0]["observation"])]
    for _ in range(20):
        action = rng.uniform(-1.3, 1.3, 9)
        pairs.append((exact.step(action)[0], original.step(action)[0]["observation"]))
        velocities = original.data.qvel
        assert np.array_equal(to_gymnasium_robotics(pairs[-1][0], velocities), pairs[-1][1])
    for observation, expected in pairs:
        assert np.array_equal(observation, to_diffusion_policy(expected))


def test_observations_lay_out_the_simulator_s_positions_and_a_masked_goal(exact: KitchenEnv) -> None:
    start = {"qpos": np.linspace(0, 0.03, 30), "qvel": np.zeros(29)}
    observation, _ = exact.reset(options=start)
    assert np.array_equal(observation, np.concatenate([start["qpos"], np.zeros(30)]))
    positions = KitchenEnv(robot_noise_ratio=0.0, obs_type="state")
    assert np.array_equal(positions.reset(options=start)[0], start["qpos"])
    assert positions.observation_space.shape == (30,)


def test_mapping_refuses_to_invent_and_to_lose_numbers() -> None:
    ours = np.concatenate([np.arange(30.0), np.zeros(30)])
    theirs = to_gymnasium_robotics(ours, np.arange(100.0, 129.0))
    assert theirs.tolist() == [*range(9), *range(100, 109), *range(9, 30), *range(109, 129)]
    assert np.array_equal(to_diffusion_policy(theirs), ours)
    batch = np.stack([theirs, theirs + 1]).reshape(2, 1, 59)
    assert to_diffusion_policy(batch).shape == (2, 1, 60)
    assert to_diffusion_policy(batch)[1, 0, :30].tolist() == [*range(1, 31)]
    with pytest.raises(ValueError, match="has no velocities, and inventing them would be wrong: give the 29"):
        to_gymnasium_robotics(ours)
    with pytest.raises(ValueError, match="a goal that is not zero"):
        to_gymnasium_robotics(ours + 1, np.zeros(29))
    with pytest.raises(ValueError, match=r"must be \[..., 59\], but has shape \[60\]"):
        to_diffusion_policy(ours)
    with pytest.raises(ValueError, match=r"must be \[..., 60\], but has shape \[59\]"):
        to_gymnasium_robotics(theirs, np.zeros(29))
    with pytest.raises(ValueError, match=r"velocities must be \[..., 29\], but has shape \[30\]"):
        to_gymnasium_robotics(ours, np.zeros(30))


def test_spaces_are_those_of_the_demonstrations() -> None:
    made = gym.make(ENV_ID)
    assert made.observation_space == gym.spaces.Box(-np.inf, np.inf, (60,), np.float64)
    assert made.action_space == gym.spaces.Box(-1, 1, (9,), np.float32)
    assert made.spec is not None and made.spec.max_episode_steps == 280


def test_gymnasium_checker_is_content() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The original's observations have no limits.
        warnings.filterwarnings("ignore", message=".*infinity. This is probably too")
        check_env(gym.make(ENV_ID).unwrapped, skip_render_check=True)


def test_noise_has_the_amplitudes_of_the_original_s_configuration() -> None:
    module = sys.modules[FrankaKitchenEnv.__module__].__file__
    assert module is not None
    file = Path(module).parents[1] / "assets/kitchen_franka/franka_assets/franka_config.xml"
    root, _ = get_config_root_node(config_file_name=str(file))
    stated = [read_config_from_node(root, f"qpos{number}", "pos_noise_amp", float)[0] for number in range(30)]
    assert NOISE_AMPLITUDE.tolist() == stated


def test_noise_is_seeded_bounded_and_on_positions_alone(env: KitchenEnv) -> None:
    seen, again = (np.stack([env.reset(seed=7)[0], *(env.reset()[0] for _ in range(99))]) for _ in range(2))
    assert np.array_equal(seen, again)
    assert not np.array_equal(seen[0], env.reset(seed=8)[0])
    share = (seen[:, :30] - env.state()["qpos"]) / (0.1 * NOISE_AMPLITUDE)
    assert np.abs(share).max() <= 1 + 1e-9 and (np.abs(share).max(axis=0) > 0.9).all()
    assert not seen[:, 30:].any()


def test_a_seed_fixes_an_episode(env: KitchenEnv) -> None:
    def play(seed: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.stack([env.reset(seed=seed)[0], *(env.step(rng.uniform(-1, 1, 9))[0] for _ in range(10))])

    first = play(7)
    play(8)
    assert np.array_equal(play(7), first)


@pytest.mark.parametrize("task", TASKS)
def test_a_subtask_is_done_when_its_joints_are_at_the_goal(exact: KitchenEnv, task: str) -> None:
    exact.reset(options=start_with(exact, task))
    assert exact.distance(task) == 0
    _, reward, terminated, truncated, info = exact.step(np.zeros(9))
    assert (reward, terminated, truncated) == (0.25, False, False)
    assert info == {"n_completed": 1, "completed_tasks": [task], "is_success": False}


def test_nothing_is_done_at_the_start_and_what_is_done_stays_done(exact: KitchenEnv) -> None:
    untouched = start_with(exact)
    assert exact.reset(options=untouched)[1] == {"n_completed": 0, "completed_tasks": [], "is_success": False}
    assert exact.step(np.zeros(9))[4]["n_completed"] == 0
    start = start_with(exact, "slide cabinet")
    start["qvel"][19] = -4.0  # it shuts
    exact.reset(options=start)
    infos = [exact.step(np.zeros(9))[4] for _ in range(10)]
    assert exact.distance("slide cabinet") > 0.3, "the door was to slide shut"
    assert {tuple(info["completed_tasks"]) for info in infos} == {("slide cabinet",)}
    assert exact.reset()[1]["n_completed"] == 0


@pytest.mark.parametrize(("done", "reward"), [(3, 0.75), (4, 1.0), (5, 1.0)])
def test_four_subtasks_are_success_and_do_not_end_the_episode(exact: KitchenEnv, done: int, reward: float) -> None:
    episode = ChunkedEpisode(exact, n_obs_steps=2, n_action_steps=3, max_steps=6)
    episode.reset(options=start_with(exact, *TASKS[:done]))
    info = episode.step(np.zeros((3, 9)))[4]
    assert (info["score"], info["success"], info["completed"]) == (reward, done >= 4, done)
    assert not info["episode_over"]


def test_all_seven_subtasks_end_the_episode(exact: KitchenEnv) -> None:
    episode = ChunkedEpisode(exact, n_obs_steps=2, n_action_steps=3, max_steps=6)
    episode.reset(options=start_with(exact, *TASKS))
    info = episode.step(np.zeros((3, 9)))[4]
    assert (info["completed"], info["steps"], info["episode_over"]) == (7, 1, True)


def test_a_given_start_is_taken_whatever_came_before(exact: KitchenEnv) -> None:
    start = start_with(exact, "kettle")
    start["qvel"] = np.linspace(-0.5, 0.5, 29)

    def play() -> np.ndarray:
        return np.stack([exact.reset(options=start)[0], *(exact.step(np.full(9, 0.2))[0] for _ in range(5))])

    first = play()
    exact.reset(seed=2)
    for _ in range(5):
        exact.step(np.ones(9))
    assert np.array_equal(play(), first)


def test_absolute_actions_are_position_targets() -> None:
    env = KitchenEnv(action_mode="absolute")
    assert env.action_space.low.tolist() == np.float32([-2.9, -1.8, -2.9, -3.1, -2.9, 0, -2.9, 0, 0]).tolist()
    assert env.action_space.high.tolist() == np.float32([2.9, 1.8, 2.9, 0, 2.9, 3.8, 2.9, 0.04, 0.04]).tolist()
    env.reset(seed=0)
    target = env.state()["qpos"][:9] + 0.2
    target[7:] = 0.02
    for _ in range(40):
        env.step(target)
    assert np.abs(env.state()["qpos"][:9] - target).max() < 0.03
    for _ in range(20):
        env.step(np.full(9, 8.0))
    assert (env.state()["qpos"][:7] < env.action_space.high[:7] + 0.05).all()


def test_velocities_outside_the_range_are_clipped(env: KitchenEnv) -> None:
    action = np.linspace(-1.4, 1.4, 9)
    env.reset(seed=0)
    beyond = env.step(action)[0]
    env.reset(seed=0)
    assert np.array_equal(env.step(action.clip(-1, 1))[0], beyond)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [0.0]}, r"\['state'\]; give all of qpos \[30\], qvel \[29\]"),
        ({"qpos": np.zeros(30)}, "give all of"),
        ({"qpos": np.zeros(30), "qvel": np.zeros(30)}, r"'qvel'\] has shape \(30,\)"),
        ({"qpos": np.full(30, np.nan), "qvel": np.zeros(29)}, "must be finite"),
        ({"qpos": "home", "qvel": np.zeros(29)}, "'qpos'.* is 'home'"),
    ],
)
def test_a_start_that_cannot_be_used_is_an_error(env: KitchenEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize(("action", "message"), [(np.zeros(7), r"shape \(7,\)"), (np.full(9, np.inf), "finite")])
def test_an_action_that_cannot_be_used_is_an_error(env: KitchenEnv, action: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"render_mode": "human"}, "'human'; use None or 'rgb_array'"),
        ({"render_size": 0}, "at least 1 pixel"),
        ({"obs_type": "image"}, "'image'; use one of state_goal, state"),
        ({"action_mode": "delta"}, "'delta'; use one of velocity, absolute"),
        ({"robot_noise_ratio": -1.0}, "use 0 or more"),
        ({"robot_noise_ratio": float("nan")}, "use 0 or more"),
    ],
)
def test_an_argument_that_cannot_be_used_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KitchenEnv(**arguments)


def test_importing_the_environments_loads_no_simulator_and_making_one_prints_nothing() -> None:
    program = (
        "import sys, envs, gymnasium; assert not {'mujoco', 'gymnasium_robotics'} & set(sys.modules);"
        f"gymnasium.make('{ENV_ID}')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout + result.stderr == ""


def test_rendering_needs_a_render_mode(env: KitchenEnv) -> None:
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        env.render()


def test_frames_show_the_microwave_open(exact: KitchenEnv) -> None:
    if not any(rendering.works(backend) for backend in rendering.WITHOUT_SCREEN):
        pytest.skip("neither EGL nor OSMesa works on this machine")
    env = KitchenEnv(render_mode="rgb_array", render_size=96)
    frames = []
    for tasks in ((), (), ("microwave",)):
        env.reset(options=start_with(exact, *tasks))
        frames.append(env.render())
    env.close()
    assert frames[0].shape == (96, 96, 3) and frames[0].dtype == np.uint8 and frames[0].std() > 20
    assert np.array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any(axis=-1).mean() > 0.02
