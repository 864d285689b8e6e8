"""Demonstrators of robomimic's tasks: what is recorded can be read, replays, and is the same for the same seed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_policy.data.readers.robomimic import describe_robomimic, read_robomimic, read_start_state
from drift_policy.data.readers.robomimic_environment import check_installed_robosuite
from drift_policy.errors import ConfigurationError

h5py = pytest.importorskip("h5py", reason="needs the package `h5py` of the hdf5 extra")
pytest.importorskip("robosuite", reason="needs the package `robosuite` of the robomimic extra")

from envs.rendering import choose_backend  # noqa: E402
from envs.robomimic import collect as collect_module  # noqa: E402
from envs.robomimic.collect import CollectConfig, Player  # noqa: E402
from envs.robomimic.simulation import is_success, make_robosuite, observe, restore_state  # noqa: E402

ROOT = Path(__file__).parents[2]
LOW_DIM_KEYS = {
    "object": 10,
    "robot0_eef_pos": 3,
    "robot0_eef_quat": 4,
    "robot0_eef_vel_ang": 3,
    "robot0_eef_vel_lin": 3,
    "robot0_gripper_qpos": 2,
    "robot0_gripper_qvel": 2,
    "robot0_joint_pos": 7,
    "robot0_joint_pos_cos": 7,
    "robot0_joint_pos_sin": 7,
    "robot0_joint_vel": 7,
}


def run(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "envs.robomimic.collect", *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def lift_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demonstrations") / "lift.hdf5"
    result = run("task=lift", "episodes=2", f"output={path}", "seed=3")
    assert result.returncode == 0, result.stderr
    assert "2 episodes of 2 played" in result.stdout
    assert "robosuite" not in result.stderr, "notices of robosuite"
    assert [child.name for child in path.parent.iterdir()] == [path.name], "left-overs"
    return path


def test_the_reader_takes_what_was_recorded(lift_file: Path) -> None:
    description = describe_robomimic(lift_file)
    check_installed_robosuite(description.environment, "1.4.1")
    assert (description.environment.name, description.environment.version) == ("Lift", "1.4.1")
    assert description.environment.takes_poses
    assert description.demos == ("demo_0", "demo_1")
    delta = read_robomimic(lift_file, action_mode="delta")
    absolute = read_robomimic(lift_file, action_mode="absolute")
    shapes = {key: array.shape[1:] for key, array in delta.data.items()}
    assert shapes == {**{key: (size,) for key, size in LOW_DIM_KEYS.items()}, "action": (7,)}
    assert delta.data["action"].dtype == np.float64
    assert absolute.data["action"].shape == (delta.n_steps, 10)
    np.testing.assert_array_equal(absolute.data["action"][:, 9], delta.data["action"][:, 6])


def test_a_demonstration_holds_what_robomimics_do(lift_file: Path) -> None:
    with h5py.File(lift_file) as file:
        data = file["data"]
        assert set(data.attrs) == {"env_args", "total", "policy", "collection"}
        assert data.attrs["policy"] == "scripted"
        environment = json.loads(data.attrs["env_args"])
        assert (environment["type"], environment["env_kwargs"]["controller_configs"]["kp"]) == (1, 150)
        demo = data["demo_0"]
        steps = demo.attrs["num_samples"]
        assert set(demo) == {"actions", "actions_abs", "states", "rewards", "dones", "obs"}
        assert set(demo["obs"]) == set(LOW_DIM_KEYS)
        actions, absolute, rewards = demo["actions"][:], demo["actions_abs"][:], demo["rewards"][:]
        assert actions.shape == absolute.shape == (steps, 7)
        assert np.abs(actions).max() <= 1 and set(actions[:, 6]) == {-1.0, 1.0}
        # The demonstration ends a few steps after the first success.
        assert 25 < steps < 70 and 4 <= steps - np.argmax(rewards) <= 8 and rewards.max() == 1
        assert set(demo["dones"][:]) == {0, 1} and demo["dones"][-1] == 1
        # A goal is the present position and what the action adds to it.
        np.testing.assert_allclose(absolute[:, :3], demo["obs/robot0_eef_pos"][:] + 0.05 * actions[:, :3], atol=1e-6)


def test_replayed_actions_succeed_again_and_states_reproduce_observations(lift_file: Path) -> None:
    environment = describe_robomimic(lift_file).environment
    env = make_robosuite(environment.name, environment.kwargs)
    columns = read_robomimic(lift_file).episode(1)
    start = read_start_state(lift_file, "demo_1")
    restore_state(env, start.state, start.model)
    for step, action in enumerate(columns["action"]):
        observation = observe(env)
        for key in LOW_DIM_KEYS:
            np.testing.assert_allclose(observation[key], columns[key][step], atol=1e-3, err_msg=f"{key} at {step}")
        env.step(action)
    assert is_success(env)
    with h5py.File(lift_file) as file:
        states = file["data/demo_1/states"][:]
    for step in (0, len(states) // 2, len(states) - 1):
        restore_state(env, states[step])
        for key, value in observe(env).items():
            np.testing.assert_allclose(value, columns[key][step], atol=1e-6, err_msg=f"{key} at {step}")


def test_the_same_seed_gives_the_same_episode_and_leaves_global_generators_alone() -> None:
    np.random.seed(11)
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # a tuple, as asked for
    players = [Player(CollectConfig("lift", "unused.hdf5", seed=seed)) for seed in (5, 5, 6)]
    players[1].play(3)  # what was played before makes no difference
    first, again, other = (player.play(0) for player in players)
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]
    assert np.array_equal(first.actions, again.actions) and np.array_equal(first.states, again.states)
    assert not np.array_equal(first.states[0], other.states[0])
    assert not np.array_equal(first.actions[0], players[0].play(1).actions[0])


@pytest.mark.parametrize("task", ["can", "square"])
def test_the_longer_tasks_are_solved(task: str) -> None:
    player = Player(CollectConfig(task, "unused.hdf5", noise=0.0))
    episodes = [player.play(number) for number in range(2)]
    assert any(episode.success for episode in episodes)
    for episode in episodes:
        assert np.abs(episode.actions).max() <= 1
        assert episode.observations["object"].shape == (len(episode.actions), 14)


def test_random_actions_of_any_task_are_kept_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "transport.hdf5"
    config = CollectConfig("transport", str(path), episodes=1, policy="random", steps=3)
    collect_module.collect(config, collect_module.Console(quiet=True))
    with h5py.File(path) as file:
        assert file["data"].attrs["policy"] == "random"
    assert read_robomimic(path).data["action"].shape == (3, 14)
    assert read_robomimic(path, action_mode="absolute").data["action"].shape == (3, 20)


def test_images_are_those_of_robomimic_and_upright(tmp_path: Path) -> None:
    try:
        choose_backend()
    except ConfigurationError as error:
        pytest.skip(str(error))
    path = tmp_path / "lift.hdf5"
    config = CollectConfig("lift", str(path), episodes=1, policy="random", steps=2, images=True, camera_size=32)
    collect_module.collect(config, collect_module.Console(quiet=True))
    columns = read_robomimic(path).data
    for camera in ("agentview_image", "robot0_eye_in_hand_image"):
        assert columns[camera].shape == (2, 32, 32, 3) and columns[camera].dtype == np.uint8
    view = columns["agentview_image"][0].mean(axis=(1, 2))
    assert view[24:].mean() > view[:6].mean() + 50, "the white table must be below the grey wall"
    kwargs = describe_robomimic(path).environment.kwargs
    assert kwargs["use_camera_obs"] and kwargs["camera_names"] == ["agentview", "robot0_eye_in_hand"]
    assert (kwargs["camera_heights"], kwargs["camera_widths"]) == (32, 32)


def test_processes_record_what_one_would(tmp_path: Path) -> None:
    paths = [tmp_path / "one.hdf5", tmp_path / "two.hdf5"]
    for workers, path in enumerate(paths, start=1):
        config = CollectConfig("lift", str(path), episodes=2, policy="random", steps=2, workers=workers)
        collect_module.collect(config, collect_module.Console(quiet=True))
    one, two = (read_robomimic(path).data for path in paths)
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_a_tenth_is_for_validation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    player = Player(CollectConfig("lift", "unused.hdf5", policy="random", steps=1))
    monkeypatch.setattr(collect_module, "Player", lambda config: player)
    path = tmp_path / "lift.hdf5"
    config = CollectConfig("lift", str(path), episodes=20, policy="random")
    collect_module.collect(config, collect_module.Console(quiet=True))
    train, valid = (read_robomimic(path, filter_key=key).n_episodes for key in ("train", "valid"))
    assert (train, valid) == (18, 2)


def test_a_demonstrator_that_fails_is_reported_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(collect_module, "MAX_STEPS", 1)
    config = CollectConfig("lift", str(tmp_path / "lift.hdf5"), episodes=1)
    with pytest.raises(ConfigurationError, match="Only 0 of 13 episodes succeeded"):
        collect_module.collect(config, collect_module.Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "lid"}, "task must be one of lift, can"),
        ({"task": "tool_hang"}, "tool_hang has no scripted demonstrator.*policy=random"),
        ({"policy": "human"}, "policy must be one of scripted, random"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"noise": 2.0}, "noise must be between 0 and 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"output": __file__}, "exists already"),
    ],
)
def test_settings_that_cannot_be_are_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CollectConfig(**{"task": "lift", "output": "unused.hdf5", **values})


def test_environments_that_robosuite_cannot_make_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="no environment 'Lid': its environments are .*Lift"):
        make_robosuite("Lid", {})
    with pytest.raises(ConfigurationError, match="cannot make 'Lift'.*no_such_argument"):
        make_robosuite("Lift", {"robots": ["Panda"], "no_such_argument": 1})


def test_a_state_of_another_model_is_an_error() -> None:
    env = make_robosuite("Lift", {"robots": ["Panda"]})
    with pytest.raises(ValueError, match=r"Lift has shape \(32,\), but \(5,\)"):
        restore_state(env, np.zeros(5))
