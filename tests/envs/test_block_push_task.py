"""The task block_push: demonstrations from the collect command, training and evaluation, files of Diffusion Policy."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from drift_policy.config import parse_config
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import DataError
from drift_policy.task import TaskConfig, load_demonstrations
from tests.helpers import programs
from tests.helpers.programs import run

pytest.importorskip("pybullet", reason="needs the package `pybullet` of the bullet extra")

from envs.block_push import BlockPushEnv  # noqa: E402
from envs.block_push.collect import play  # noqa: E402

ROOT = Path(__file__).parents[2]
SHORT = [
    *programs.SHORT,
    "trainer.num_steps=5",
    "trainer.log_every=1",
    "trainer.validate_every=5",
    "trainer.rollout_every=0",
    "evaluation.n_episodes=1",
    "evaluation.max_steps=4",
]


def task() -> TaskConfig:
    return parse_config(TaskConfig, OmegaConf.load(ROOT / "configs" / "task" / "block_push.yaml"), "task")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of the real command."""
    path = tmp_path_factory.mktemp("block_push") / "block_push" / "block_push.zarr.zip"
    result = run("-m", "envs.block_push.collect", "episodes=2", f"output={path}")
    assert result.returncode == 0, result.stderr
    assert "2 episodes" in result.stdout and "; 2 attempts" in result.stdout
    counts = [int(part.split(":")[1]) for part in result.stdout.partition("first into a target: ")[2].split(", ")]
    assert len(counts) == 4 and sum(counts) == 2
    return path


def test_the_task_is_that_of_the_benchmark() -> None:
    config = task()
    assert (config.horizon, config.n_obs_steps, config.n_action_steps) == (5, 3, 1)
    assert (config.env.max_steps, config.env.phases, config.env.kwargs) == (350, 2, {"action_mode": "relative"})


def test_recorded_episodes_replay_to_success() -> None:
    env = BlockPushEnv(action_mode="absolute")
    for seed in (300000, 300001):
        recording = play(seed, "absolute", 0.0)
        assert recording is not None
        observation, _ = env.reset(seed=seed)
        for expected, action in zip(recording.obs, recording.action, strict=True):
            assert np.array_equal(observation.astype(np.float32), expected)
            observation, _, terminated, _, info = env.step(action)
        assert terminated and info["is_success"]


def test_what_disturbs_a_command_is_not_recorded(demonstrations: Path) -> None:
    buffer = read_zarr(demonstrations)
    assert {name: column.shape[1:] for name, column in buffer.data.items()} == {"obs": (16,), "action": (2,)}
    columns = buffer.episode(0)
    disturbances = np.diff(columns["obs"][:, 8:10], axis=0) - columns["action"][:-1]
    assert 0.003 < disturbances.std() < 0.009, "the effector's target is the command and a disturbance of 6 mm"


def test_relative_actions_reach_the_same_end() -> None:
    recording = play(300000, "relative", 0.0)
    assert recording is not None
    assert np.abs(recording.action).max() <= 0.1
    moved = np.diff(recording.obs[:, 8:10], axis=0)
    np.testing.assert_allclose(moved, recording.action[:-1], atol=1e-6)


def test_two_workers_record_the_same(demonstrations: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.zarr"
    result = run("-m", "envs.block_push.collect", "episodes=2", "workers=2", f"output={path}")
    assert result.returncode == 0, result.stderr
    assert read_zarr(path).content_hash() == read_zarr(demonstrations).content_hash()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["episodes=0"], "episodes must be at least 1"),
        (["workers=0"], "workers must be at least 1"),
        (["action_mode=delta"], "action_mode must be one of relative, absolute"),
        (["disturbance=-1"], "disturbance must not be negative"),
        (["episodez=3"], "episodez does not exist"),
        (["disturbance=0.1", "max_attempts=1", "episodes=2"], "of 1 episodes succeeded"),
        (["output={existing}"], "exists already"),
        (["output="], "output"),
    ],
)
def test_wrong_settings_are_explained(
    settings: list[str],
    message: str,
    demonstrations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from envs.block_push.collect import main

    arguments = [f"output={tmp_path}/x.zarr", *(setting.format(existing=demonstrations) for setting in settings)]
    monkeypatch.setattr("sys.argv", ["collect", *arguments])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.zarr").exists()


def test_training_and_evaluation_run_end_to_end(demonstrations: Path, tmp_path: Path) -> None:
    data = str(demonstrations.parents[1])
    settings = [
        "task=block_push",
        f"output={tmp_path}",
        "name=test",
        "allow_download=false",
        *SHORT,
        "video_episodes=1",
    ]
    result = run("train_policy.py", *settings, DRIFT_POLICY_DATA=data)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "block_push" / "test"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["task"], manifest["data"]["episodes"]) == ("block_push", 2)
    assert manifest["data"]["origin"] == "environment"
    assert (folder / "action_fan.png").is_file()
    evaluation = manifest["evaluation"]
    assert evaluation["score_name"] == "share of completed phases"
    assert evaluation["phases"].keys() == {"p1", "p2"}
    assert evaluation["episodes"][0]["seed"] == 100000


def test_missing_demonstrations_name_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRIFT_POLICY_DATA", raising=False)
    monkeypatch.setenv("DRIFT_POLICY_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="holds block_push/block_push.zarr.zip. Make it in minutes") as raised:
        load_demonstrations(task(), None, True, lambda _: None)
    assert "python -m envs.block_push.collect episodes=1000 output=block_push.zarr.zip" in str(raised.value)


def test_diffusion_policys_file_is_read_by_the_same_task(tmp_path: Path) -> None:
    # The columns and types of multimodal_push_seed_abs.zarr, a folder in zarr 2.
    rng = np.random.default_rng(0)
    data = {"obs": rng.normal(size=(30, 16)).astype(np.float32), "action": rng.normal(size=(30, 2)).astype(np.float32)}
    path = tmp_path / "multimodal_push_seed_abs.zarr"
    write_zarr(path, ReplayBuffer(data, np.array([12, 30])), zarr_format=2)
    buffer = load_demonstrations(task(), str(path), False, lambda _: None).buffer
    assert (buffer.n_episodes, buffer.n_steps) == (2, 30)
    assert np.array_equal(buffer.data["obs"], data["obs"]) and np.array_equal(buffer.data["action"], data["action"])
