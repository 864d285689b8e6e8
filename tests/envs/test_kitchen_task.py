"""The Kitchen tasks: each reads its format; an end-to-end run on recorded demonstrations; help where there are none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from drift_policy.config import parse_config
from drift_policy.data.readers.kitchen_mjl import PHYSICS_STEPS
from drift_policy.errors import ConfigurationError, DataError
from drift_policy.serialization import load_policy
from drift_policy.task import TaskConfig, load_demonstrations, make_env_factory, make_windows
from tests.helpers.kitchen_files import (
    Demo,
    made_up_demos,
    mjl_order,
    recorded_demos,
    write_minari,
    write_mjl,
    write_numpy,
)
from tests.helpers.programs import SHORT, run

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("DRIFT_POLICY_DATA", "")) / "kitchen"
WRITERS = {"kitchen": write_numpy, "kitchen_abs": write_mjl, "kitchen_minari": write_minari}


def task_of(name: str) -> TaskConfig:
    return parse_config(TaskConfig, OmegaConf.load(ROOT / "configs" / "task" / f"{name}.yaml"), "task")


@pytest.mark.parametrize("name", WRITERS)
def test_a_step_of_the_policies_is_that_of_the_simulator(name: str) -> None:
    assert task_of(name).control_hz == 1 / (PHYSICS_STEPS * 0.002)


def needs_simulator() -> None:
    pytest.importorskip("mujoco", reason="needs the package `mujoco` of the mujoco extra")
    pytest.importorskip("gymnasium_robotics", reason="needs the package `gymnasium-robotics` of the mujoco extra")


@pytest.mark.parametrize("name", WRITERS)
def test_each_task_shows_a_policy_the_positions_of_its_demonstrations(tmp_path: Path, name: str) -> None:
    demos = made_up_demos((9, 6, 8))
    task = task_of(name)
    task.dataset.options = {}  # without noise on the demonstrations
    found = load_demonstrations(task, str(WRITERS[name](tmp_path / "data", demos)), False, lambda _: None)
    windows = make_windows(task, found.buffer, np.ones(3, bool), horizon=1, n_obs_steps=1, n_action_steps=1)
    batch = windows.batch(np.arange(len(windows)))
    ordered: list[Demo] = mjl_order(demos) if name == "kitchen_abs" else demos
    positions = np.concatenate([demo.qpos[:-1] for demo in ordered])
    expected = positions if name == "kitchen_minari" else np.concatenate([positions, np.zeros_like(positions)], axis=1)
    np.testing.assert_allclose(np.asarray(batch["obs"]["obs"])[:, 0], expected, rtol=1e-6)
    actions = np.concatenate([demo.action for demo in ordered])
    np.testing.assert_allclose(np.asarray(batch["action"])[:, 0], actions, rtol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("kitchen", 60), ("kitchen_abs", 60), ("kitchen_minari", 30)])
def test_each_task_s_environment_shows_and_takes_what_its_demonstrations_have(name: str, size: int) -> None:
    needs_simulator()
    task = task_of(name)
    env = make_env_factory(task.env, task.env.max_steps)()
    assert (env.observation_space.shape, env.action_space.shape) == ((size,), (9,))
    assert env.unwrapped._noise_ratio == 0.1  # type: ignore[attr-defined]  # it is a KitchenEnv
    high = env.action_space.high  # type: ignore[attr-defined]  # a Box
    assert (high == 1).all() == (task.action_space == "velocity")


@pytest.mark.parametrize("name", WRITERS)
def test_without_demonstrations_the_error_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(tmp_path))
    monkeypatch.setenv("DRIFT_POLICY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError) as error:
        load_demonstrations(task_of(name), None, False, lambda _: None)
    needed = {
        "kitchen_minari": ["D4RL/kitchen/complete-v2", "minari download", "DRIFT_POLICY_DATA=~/.minari/datasets"],
    }.get(name, ["kitchen", "curl -L -O https://diffusion-policy.cs.columbia.edu/data/training/kitchen.zip", "unzip"])
    assert all(text in str(error.value) for text in needed), str(error.value)


def test_a_range_that_counts_as_constant_must_be_positive() -> None:
    task = OmegaConf.load(ROOT / "configs" / "task" / "kitchen.yaml")
    task.constant_range = 0.0
    with pytest.raises(ConfigurationError, match="task.constant_range must be above 0, but is 0.0"):
        parse_config(TaskConfig, task, "task")


@pytest.mark.skipif(
    "DRIFT_POLICY_DATA" not in os.environ or not REAL.exists(),
    reason="DRIFT_POLICY_DATA does not name a folder with kitchen/, Diffusion Policy's kitchen.zip",
)
@pytest.mark.parametrize("name", ["kitchen", "kitchen_abs"])
def test_the_real_demonstrations_are_found_and_read(name: str) -> None:
    buffer = load_demonstrations(task_of(name), None, False, lambda _: None).buffer
    assert {column: array.shape[1:] for column, array in buffer.data.items()} == {"obs": (60,), "action": (9,)}
    assert not buffer.data["obs"][:, 30:].any(), "the goal is not masked, but the environment masks it"


def test_training_and_evaluation_run_end_to_end(tmp_path: Path) -> None:
    needs_simulator()
    from envs.rendering import WITHOUT_SCREEN, works

    if not any(works(backend) for backend in WITHOUT_SCREEN):
        pytest.skip("neither EGL nor OSMesa works on this machine, and training ends with a film")
    data = write_numpy(tmp_path / "data", recorded_demos(episodes=3, length=20))
    few = ["trainer.num_steps=5", "trainer.validate_every=5", "trainer.rollout_every=5", "trainer.batch_size=4"]
    one = ["rollout.n_episodes=1", "rollout.max_steps=8", "evaluation.n_episodes=1"]
    where = [f"data_path={data}", f"output={tmp_path}", "name=t"]
    trained = run("train_policy.py", "task=kitchen", *where, *SHORT, *few, *one, "video_episodes=1", timeout=250)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    folder = tmp_path / "kitchen" / "t"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["task"], manifest["data"]["episodes"], manifest["data"]["steps"]) == ("kitchen", 3, 60)
    assert (folder / "action_fan.png").is_file()
    normalizer = load_policy(folder).normalizer
    # Knobs that the random motions do not turn keep their units.
    knobs = torch.full((60,), 0.01)
    moved = normalizer.normalize("obs", knobs + 1) - normalizer.normalize("obs", knobs)
    torch.testing.assert_close(moved[9:17], torch.ones(8))
    evaluated = run(
        "eval_policy.py", f"ckpt={folder}", "evaluation.n_episodes=1", "evaluation.max_steps=16", timeout=250
    )
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "p4" in evaluated.stdout and "highest completion" in evaluated.stdout
    evaluation = json.loads((folder / "eval" / "manifest.json").read_text())["evaluation"]
    assert evaluation["episodes"] == manifest["evaluation"]["episodes"]
    assert sorted(evaluation["phases"]) == ["p1", "p2", "p3", "p4"]
    (episode,) = evaluation["episodes"]
    assert (episode["seed"], episode["steps"]) == (100000, 16)
    assert episode["score"] == min(episode["completed"] / 4, 1)
