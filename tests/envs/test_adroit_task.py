"""The task adroit_door from the command line: a small file of the true schema, two updates, one short episode."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from drift_policy.config import parse_config
from drift_policy.task import TaskConfig, load_demonstrations, make_windows
from drift_policy.task_files import load_task

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("DRIFT_POLICY_DATA", "")) / "adroit_door/door_human_demos.npz"


def task() -> TaskConfig:
    return parse_config(TaskConfig, OmegaConf.load(ROOT / "configs" / "task" / "adroit_door.yaml"), "task")


@pytest.mark.skipif(
    "DRIFT_POLICY_DATA" not in os.environ or not REAL.exists(),
    reason="DRIFT_POLICY_DATA does not name a folder with adroit_door/door_human_demos.npz",
)
def test_the_real_demonstrations_are_found_and_read() -> None:
    demonstrations = load_demonstrations(task(), None, False, lambda _: None)
    assert demonstrations.source.path == REAL
    buffer = demonstrations.buffer
    assert (buffer.n_episodes, buffer.n_steps) == (25, 6729)
    assert {name: column.shape[1:] for name, column in buffer.data.items()} == {"observation": (39,), "action": (28,)}
    assert (buffer.episode_lengths.min(), buffer.episode_lengths.max()) == (223, 300)
    # Fixed for ever: any other value means that a step, a number or an episode end is read differently.
    assert buffer.content_hash() == "44d9f7838977a7b04b517ac247060a6dd9688128338d2d24287a65d167ba10cf"


def test_the_same_demonstrations_in_minari_s_format_are_the_same_task(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs the package `h5py` of the hdf5 extra")
    rng = np.random.default_rng(0)
    episodes = [(rng.normal(size=(length + 1, 39)), rng.normal(size=(length, 28))) for length in (12, 17)]
    file = tmp_path / "minari" / "data" / "main_data.hdf5"
    file.parent.mkdir(parents=True)
    with h5py.File(file, "w") as data:
        for number, (observations, actions) in enumerate(episodes):
            group = data.create_group(f"episode_{number}")
            group["observations"], group["actions"], group["rewards"] = observations, actions, np.zeros(len(actions))
    steps = {
        "observation": np.concatenate([observations[:-1] for observations, _ in episodes]),
        "action": np.concatenate([actions for _, actions in episodes]),
    }
    np.savez(tmp_path / "demos.npz", **steps, episode_ends=np.array([12, 29]))
    sources = {"adroit_door": tmp_path / "demos.npz", "adroit_door_minari": tmp_path / "minari"}
    tasks = {name: load_task(ROOT / "configs" / "task", name) for name in sources}
    batches = []
    for name, path in sources.items():
        buffer = load_demonstrations(tasks[name], str(path), False, lambda _: None).buffer
        windows = make_windows(tasks[name], buffer, np.ones(2, bool), horizon=4, n_obs_steps=2, n_action_steps=2)
        batches.append(windows.batch(np.arange(len(windows))))
    np.testing.assert_array_equal(*(np.asarray(batch["obs"]["obs"]) for batch in batches))
    np.testing.assert_array_equal(*(np.asarray(batch["action"]) for batch in batches))
    assert tasks["adroit_door"].env == tasks["adroit_door_minari"].env


def test_training_and_evaluation_run_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="needs the package `mujoco` of the mujoco extra")
    pytest.importorskip("gymnasium_robotics", reason="needs the package `gymnasium-robotics` of the mujoco extra")
    from envs.rendering import WITHOUT_SCREEN, works
    from tests.helpers.door_demonstrations import write_door_demonstrations

    if not any(works(backend) for backend in WITHOUT_SCREEN):
        pytest.skip("neither EGL nor OSMesa works on this machine, and training ends with a film")
    data = write_door_demonstrations(tmp_path / "demos.npz", episodes=3, length=24)
    run("train_policy.py", "task=adroit_door", f"data_path={data}", f"output={tmp_path}/runs", "name=test", *SHORT)
    folder = tmp_path / "runs" / "adroit_door" / "test"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["task"], manifest["data"]["episodes"], manifest["data"]["steps"]) == ("adroit_door", 3, 72)
    assert (folder / "action_fan.png").is_file()
    run("eval_policy.py", f"ckpt={folder}", *EPISODE)
    evaluation = json.loads((folder / "eval" / "manifest.json").read_text())["evaluation"]
    assert evaluation["score_name"] == "success"
    assert evaluation["episodes"] == manifest["evaluation"]["episodes"]
    assert evaluation["episodes"] == [{"seed": 100000, "score": 0.0, "success": False, "steps": 16, "completed": 0}]
    assert np.isfinite(evaluation["latency_ms"]["p50"])


EPISODE = ["evaluation.n_episodes=1", "evaluation.max_steps=16"]
SHORT = [
    "device=cpu",
    "trainer.num_threads=1",
    "trainer.num_steps=2",
    "trainer.warmup_steps=1",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    "trainer.validate_every=2",
    "trainer.rollout_every=2",
    "rollout.n_episodes=1",
    "rollout.max_steps=8",
    "policy.network.width=16",
    "video_episodes=1",
    *EPISODE,
]


def run(script: str, *arguments: str) -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
