"""The real programs, run as a user runs them, in temporary folders."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from tests.helpers import programs
from tests.helpers.point_env import ID
from tests.helpers.point_task import point_demonstrations
from tests.helpers.programs import error_of, run
from tests.helpers.pusht_data import random_pusht

SHORT = ["task=pusht", *programs.SHORT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random demonstrations in the layout of Push-T."""
    path = tmp_path_factory.mktemp("cli")
    write_zarr(path / "pusht.zarr", random_pusht(episodes=6))
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A finished run of the real training command."""
    settings = [f"data_path={folder}/pusht.zarr", f"output={folder}/runs", "name=base", "video_episodes=1"]
    result = run("train_policy.py", *SHORT, *settings)
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "pusht" / "base"


def test_training_writes_the_run(trained: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["task"] == "pusht"
    assert manifest["command"].startswith("python train_policy.py task=pusht")
    assert len(manifest["evaluation"]["episodes"]) == 2
    assert manifest["evaluation"]["num_candidates"] == manifest["policy"]["num_candidates"]
    scores = [row["score"] for row in manifest["training"]["rollouts"]]
    assert max(scores) == manifest["training"]["checkpoints"][0]["score"]
    metadata = json.loads((trained / "checkpoints" / "last" / "config.json").read_text())["metadata"]
    assert metadata["simulators"] == {name: manifest["versions"][name] for name in ("gym-pusht", "pymunk")}
    for name in ("metrics.csv", "curves.png", "action_fan.png", "config.yaml", "checkpoints/last/training.json"):
        assert (trained / name).is_file()


def test_evaluation_prints_the_score_and_writes_every_episode(trained: Path) -> None:
    settings = ["task=pusht", "evaluation.n_episodes=3", "evaluation.max_steps=16", "evaluation.num_candidates=4"]
    result = run("eval_policy.py", f"ckpt={trained}", *settings)
    assert result.returncode == 0, result.stderr
    assert "highest coverage" in result.stdout
    manifest = json.loads((trained / "eval" / "manifest.json").read_text())
    assert [episode["seed"] for episode in manifest["evaluation"]["episodes"]] == [100000, 100001, 100002]
    assert manifest["evaluation"]["protocol"]["max_steps"] == 16
    assert manifest["evaluation"]["num_candidates"] == 4
    assert {"low", "high", "mean", "n"} == manifest["evaluation"]["score"].keys()
    assert manifest["versions"]["torch"]


def test_fine_tuning_starts_from_a_run(folder: Path, trained: Path, tmp_path: Path) -> None:
    settings = [*SHORT, f"data_path={folder}/pusht.zarr", f"output={tmp_path}", f"initial_ckpt={trained}"]
    result = run("train_policy.py", *settings, "trainer.num_steps=2", "trainer.rollout_every=0", "name=tuned")
    assert result.returncode == 0, result.stderr
    origin = json.loads((tmp_path / "pusht/tuned/manifest.json").read_text())["initial_checkpoint"]
    best = json.loads((trained / "checkpoints/index.json").read_text())["best"]
    assert (origin["path"], origin["folder"]) == (str(trained), best)
    assert f"initial  weights and normaliser of {trained}: {best}, sha256 {origin['sha256'][:16]}" in result.stdout
    expected = f"initial_ckpt={trained} does not fit: policy.network.width is 8 here and 16 in the checkpoint."
    assert expected in error_of(run("train_policy.py", *settings, "policy.network.width=8", "name=other"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["initial_ckpt=/nowhere/run"], "/nowhere/run does not exist. Give a run folder"),
        (["task=psht"], "pusht"),
        (["trainer.num_stepz=3"], "trainer.num_stepz does not exist; did you mean trainer.num_steps"),
        (["trainer.num_steps=many"], "trainer.num_steps"),
        (["policy.network.widht=3"], "widht"),
        (["policy.horizon=4"], "horizon=4"),
        (["policy=unicycle"], "unicycle"),
        (["device=warp"], "device=warp"),
        (["policy.horizon=long"], "policy.horizon must be a whole number"),
        (["data_path=/nowhere/pusht.zarr"], "/nowhere/pusht.zarr, which does not exist"),
    ],
)
def test_wrong_training_settings_are_explained(
    folder: Path, tmp_path: Path, settings: list[str], expected: str
) -> None:
    arguments = [*SHORT, f"data_path={folder}/pusht.zarr", f"output={tmp_path}", *settings]
    assert expected in error_of(run("train_policy.py", *arguments))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_corrected_command_may_use_the_same_folder(folder: Path, tmp_path: Path) -> None:
    settings = [*SHORT, f"output={tmp_path}", "trainer.num_steps=2", "trainer.rollout_every=0"]
    assert "does not exist" in error_of(run("train_policy.py", *settings, "data_path=/nowhere/pusht.zarr"))
    result = run("train_policy.py", *settings, f"data_path={folder}/pusht.zarr")
    assert result.returncode == 0, result.stderr


def test_truncated_demonstrations_are_explained(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "pusht.zarr", folder / "cut.zarr")
    next((folder / "cut.zarr" / "data" / "action" / "c").rglob("0")).rename(folder / "chunk")
    text = error_of(run("train_policy.py", *SHORT, f"data_path={folder}/cut.zarr", f"output={tmp_path}"))
    assert "cut.zarr" in text and "incomplete" in text


def test_nan_in_demonstrations_is_explained(folder: Path, tmp_path: Path) -> None:
    data = {
        "action": np.ones((60, 2), np.float32),
        "state": np.ones((60, 5), np.float32),
        "keypoint": np.ones((60, 9, 2), np.float32),
    }
    buffer = ReplayBuffer({name: array.copy() for name, array in data.items()}, np.array([30, 60]))
    buffer.data["state"][41, 0] = np.nan  # after the buffer's own check, as a damaged file would be
    write_zarr(folder / "nan.zarr", buffer)
    text = error_of(run("train_policy.py", *SHORT, f"data_path={folder}/nan.zarr", f"output={tmp_path}"))
    assert "state" in text and "NaN" in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "ckpt"),
        (["ckpt=nowhere"], "nowhere does not exist"),
        (["ckpt={run}", "task=psht"], "Could not find 'task/psht'"),
        (["ckpt={run}", "evaluation.n_episodes=0"], "n_episodes"),
        (["ckpt={run}", "evaluation.sead=0"], "evaluation.sead does not exist; evaluation has n_episodes, start_seed"),
        (["ckpt={run}", "device=warp"], "device=warp"),
        (["ckpt={run}", "video_episodes=-1"], "video_episodes"),
    ],
)
def test_wrong_evaluation_settings_are_explained(trained: Path, settings: list[str], expected: str) -> None:
    assert expected in error_of(run("eval_policy.py", *(setting.format(run=trained) for setting in settings)))


def test_checkpoint_that_is_not_one_is_explained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in error_of(run("eval_policy.py", f"ckpt={tmp_path}"))


TASK_FILE = """
defaults: [mine/point@_here_, _self_]
name: elsewhere
"""
SHARED_FILE = """
dataset: {name: point, relative_path: point.zarr}
observations: {obs: {columns: [{name: observation}]}}
action: [{name: action}]
horizon: 8
n_obs_steps: 2
n_action_steps: 4
env: {id: '%s', max_steps: 10}
"""


def test_a_task_file_outside_the_repository_trains_and_is_evaluated(tmp_path: Path) -> None:
    tasks = tmp_path / "my configs" / "task"
    (tasks / "mine").mkdir(parents=True)
    (tasks / "elsewhere.yaml").write_text(TASK_FILE)
    (tasks / "mine" / "point.yaml").write_text(SHARED_FILE % ID)
    write_zarr(tmp_path / "point.zarr", point_demonstrations())
    place = f"hydra.searchpath=['file://{tasks.parent}']"
    settings = ["task=elsewhere", *programs.SHORT, f"data_path={tmp_path}/point.zarr", f"output={tmp_path}", "name=run"]
    trained = run("train_policy.py", *settings, place)
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "elsewhere" / "run"
    command = shlex.split(json.loads((folder / "manifest.json").read_text())["command"])
    assert command[1] == "train_policy.py" and place in command
    assert f"{shlex.quote(place)} resume=true" in error_of(run("train_policy.py", *settings, place))

    short = [f"ckpt={folder}", "evaluation.n_episodes=2"]
    text = error_of(run("eval_policy.py", *short))
    assert "trained on the task 'elsewhere'" in text and "hydra.searchpath=[file:///path/to/configs]" in text
    evaluated = run("eval_policy.py", *short, place)
    assert evaluated.returncode == 0, evaluated.stderr
    manifest = json.loads((folder / "eval" / "manifest.json").read_text())
    assert len(manifest["evaluation"]["episodes"]) == 2 and place in shlex.split(manifest["command"])
    named = run("eval_policy.py", *short, place, "task=elsewhere")
    assert named.returncode == 0, named.stderr


@pytest.mark.parametrize("script", ["train_policy.py", "eval_policy.py"])
def test_help_begins_with_commands(script: str) -> None:
    result = run(script, "--help")
    assert result.returncode == 0 and "powered by Hydra" not in result.stdout
    head, _, settings = result.stdout.partition("== Config ==")
    _, _, groups = head.partition("== Configuration groups ==")
    assert "\ntask: adroit_door, " in groups and "image_gen" not in head and "study" not in head
    assert ("\npolicy/head: diffusion, drift, " in groups) == (script == "train_policy.py")
    assert head.count(f"python {script} ") >= 4 and "device:" in settings and "What they mean:" in settings
