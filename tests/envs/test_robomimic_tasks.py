"""The tasks of robomimic: how they compose, what disagrees, and training and evaluation end to end on small files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.data.readers.robomimic import read_robomimic
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.evaluation.evaluate import env_of_checkpoint
from drift_policy.serialization import load_policy
from drift_policy.task import EnvConfig, env_for_data, make_env_factory
from drift_policy.task_files import task_env
from drift_policy.training.config import TrainConfig
from drift_policy.training.run import train
from tests.helpers.programs import ROOT, SHORT, run

pytest.importorskip("robosuite", reason="needs the package `robosuite` of the robomimic extra")

from envs.rendering import WITHOUT_SCREEN, works  # noqa: E402
from envs.robomimic.collect import CollectConfig, collect  # noqa: E402
from envs.robomimic.env import RobomimicEnv  # noqa: E402
from envs.robomimic.tasks import TASKS  # noqa: E402

FOLDER = ROOT / "configs" / "task"
CHANGES = [
    "trainer.num_steps=5",
    "trainer.batch_size=4",
    "trainer.rollout_every=0",
    "evaluation.n_episodes=1",
    "evaluation.max_steps=8",
    "video_episodes=1",
]
needs_rendering = pytest.mark.skipif(
    not any(works(backend) for backend in WITHOUT_SCREEN),
    reason="neither EGL nor OSMesa works on this machine, and training ends with a film",
)


@pytest.fixture(scope="module", autouse=True)
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield


def composed(*overrides: str) -> TrainConfig:
    """The configuration that train_policy.py would use."""
    return parse_config(TrainConfig, resolved(compose("train", [*overrides, "name=test"])))


def record(path: Path, **settings: Any) -> Path:
    collect(CollectConfig(output=str(path), **settings), Console(quiet=True))
    return path


@pytest.mark.parametrize("task", TASKS)
def test_numbers_and_cameras_are_those_of_diffusion_policy(task: str) -> None:
    config = composed(f"task={task}")
    arms = len(TASKS[task].robots)
    numbers = [f"robot{arm}_{key}" for arm in range(arms) for key in ("eef_pos", "eef_quat", "gripper_qpos")]
    assert [column.name for column in config.task.observations["obs"].columns] == ["object", *numbers]
    assert (config.task.horizon, config.task.n_obs_steps, config.task.n_action_steps) == (16, 2, 8)
    assert config.task.env.max_steps == (700 if task in ("transport", "tool_hang") else 400)
    assert config.task.dataset.relative_path == f"robomimic/{task}/ph/low_dim.hdf5"

    image = composed(f"task={task}_image").task
    cameras = {f"{camera}_image" for camera in TASKS[task].cameras}
    assert set(image.observations) == cameras | set(numbers)
    crop = [216, 216] if task == "tool_hang" else [76, 76]
    assert {key for key, observation in image.observations.items() if observation.crop == crop} == cameras
    assert (image.name, image.env.kwargs) == (f"{task}_image", {"task": task, "obs_type": "image"})
    assert image.env.max_steps == config.task.env.max_steps
    assert task_env(FOLDER, f"{task}_image") == image.env


def test_a_task_changes_training_and_rollouts_and_the_command_line_changes_those() -> None:
    config = composed("task=lift", "policy=diffusion_unet")
    assert (config.rollout.n_episodes, config.rollout.start_seed, config.trainer.rollout_every) == (20, 200000, 6000)
    assert config.trainer.batch_size == 256
    assert composed("task=lift", "rollout.n_episodes=3").rollout.n_episodes == 3
    image = composed("task=tool_hang_image", "policy=diffusion_unet")
    assert (image.trainer.batch_size, image.trainer.num_steps, image.rollout.n_episodes) == (64, 100000, 10)
    assert composed("task=pusht").rollout.n_episodes == 100


def test_the_kind_of_action_is_one_setting() -> None:
    config = composed("task=can", "task.action_space=absolute")
    assert config.task.dataset.options == {"action_mode": "absolute"}
    with pytest.raises(ConfigurationError, match="'delta', but the demonstrations are read as 'absolute' actions"):
        composed("task=can", "task.dataset.options.action_mode=absolute")


def test_an_environment_for_other_actions_than_the_data_is_an_error() -> None:
    env = EnvConfig(id="x", kwargs={"action_mode": "delta"}, from_data=["env_args", "action_mode"])
    with pytest.raises(ConfigurationError, match="action_mode is 'delta', but the demonstrations say 'absolute'"):
        env_for_data(env, {"action_mode": "absolute"})
    assert env_for_data(env, {"action_mode": "delta", "other": 1}).kwargs == {"action_mode": "delta"}


@pytest.mark.parametrize("name", [None, "../task/lift", "robomimic/common", "lift.yaml"])
def test_a_checkpoint_can_name_a_task_file_and_nothing_else(name: object) -> None:
    with pytest.raises(CheckpointError, match=r"is not one of .*lift, lift_image.*tool_hang"):
        task_env(FOLDER, name)


def trained(folder: Path, task: str, **recording: Any) -> Path:
    """The run of a short training on a file that is recorded for it; the task may bring further overrides."""
    data = record(folder / "demos.hdf5", task=task.split()[0].removesuffix("_image"), policy="random", **recording)
    changes = [*SHORT, *CHANGES, f"data_path={data}", f"output={folder}"]
    task, *overrides = task.split()
    return train(composed(f"task={task}", *changes, *overrides), [], Console(quiet=True))


@needs_rendering
@pytest.mark.parametrize(("task", "sizes"), [("tool_hang", (53, 7)), ("transport", (59, 14))])
def test_training_and_evaluation_run_end_to_end(task: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    folder = trained(tmp_path, task, episodes=2, steps=24)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["data"]["episodes"], manifest["data"]["steps"]) == (2, 48)
    (episode,) = manifest["evaluation"]["episodes"]
    assert (episode["seed"], episode["score"], episode["steps"]) == (100000, 0.0, 8)
    policy = load_policy(folder)
    assert (policy.config.observations["obs"].shape[0], policy.action_dim) == sizes
    said = policy.metadata["environment"]
    assert (said["env_args"]["name"], said["action_mode"]) == (TASKS[task].env_name, "delta")


def test_objects_are_observed_in_the_model_of_a_demonstration(tmp_path: Path) -> None:
    """Some of ToolHang's sensors would go on reading from the simulation before."""
    path = record(tmp_path / "demos.hdf5", task="tool_hang", policy="random", episodes=2, steps=2)
    env = RobomimicEnv(task="tool_hang", start_states=path)
    expected = read_robomimic(path, ["object"]).data["object"][[0, 2]]
    for number in (1, 0):
        observation, _ = env.reset(seed=number)
        assert observation[:44] == pytest.approx(expected[number], abs=1e-4)
    env.close()


@needs_rendering
def test_a_policy_for_absolute_poses_is_evaluated_by_its_checkpoint_alone(tmp_path: Path) -> None:
    folder = trained(tmp_path, "lift task.action_space=absolute", episodes=2, steps=24)
    # Two episodes, the environment in a process of its own.
    evaluation = [
        "evaluation.n_episodes=2",
        "evaluation.max_steps=8",
        "evaluation.asynchronous=true",
        "evaluation.n_envs=1",
    ]
    result = run("eval_policy.py", f"ckpt={folder}", *evaluation)
    assert result.returncode == 0, result.stderr
    scored = json.loads((folder / "eval" / "manifest.json").read_text())["evaluation"]["episodes"]
    assert [(episode["seed"], episode["steps"]) for episode in scored] == [(100000, 8), (100001, 8)]
    assert scored[:1] == json.loads((folder / "manifest.json").read_text())["evaluation"]["episodes"]
    policy = load_policy(folder)
    assert (policy.action_dim, policy.metadata["action_space"]) == (10, "absolute")
    other = env_of_checkpoint(policy, task_env(FOLDER, "can"))
    with pytest.raises(ConfigurationError, match="are of 'Lift', but the task can is 'PickPlaceCan'"):
        make_env_factory(other, other.max_steps)()


@needs_rendering
def test_a_policy_sees_through_the_cameras(tmp_path: Path) -> None:
    folder = trained(
        tmp_path, "lift_image evaluation.max_steps=2 trainer.batch_size=2", episodes=2, steps=9, images=True
    )
    policy = load_policy(folder)
    shapes = {key: spec.shape for key, spec in policy.config.observations.items()}
    assert shapes["agentview_image"] == shapes["robot0_eye_in_hand_image"] == [3, 84, 84]
    assert len(json.loads((folder / "manifest.json").read_text())["evaluation"]["episodes"]) == 1
