"""A task without an environment, as on a real robot: checkpoints and scores by the held-out action error."""

import csv
import json
import os
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from drift_policy.data.ranges import far_numbers
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.sources import ResolvedData
from drift_policy.data.windows import split_validation
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.evaluation.evaluate import EvalConfig, evaluate
from drift_policy.evaluation.offline import open_loop_manifest
from drift_policy.evaluation.open_loop import OpenLoopResult, measure_open_loop
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.metadata_keys import NUMBER_NAMES
from drift_policy.serialization import load_policy
from drift_policy.task import (
    ColumnConfig,
    DatasetConfig,
    Demonstrations,
    ObservationConfig,
    TaskConfig,
    control_rate,
    load_demonstrations,
    make_windows,
)
from drift_policy.training.config import TrainConfig
from drift_policy.training.run import build_policy_and_data, train
from tests.helpers.documents import run_command
from tests.helpers.point_task import point_demonstrations, point_task, point_training
from tests.helpers.policies import tiny_policy
from tests.helpers.training_runs import assert_same_state, press_ctrl_c, stop_before_step

QUIET = Console(quiet=True)


def robot_task() -> TaskConfig:
    return replace(point_task(), env=None)


def robot_training(folder: Path, **changes: Any) -> TrainConfig:
    return point_training(folder, task=robot_task(), **changes)


def evaluated(run: Path, **changes: Any) -> tuple[OpenLoopResult, dict[str, Any]]:
    settings = {"task": robot_task(), "data_path": str(run.parents[2] / "point.zarr"), **changes}
    result = evaluate(EvalConfig(str(run), EvaluationConfig(), **settings), run, [], QUIET)
    assert isinstance(result, OpenLoopResult)
    return result, json.loads((run / "eval" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robot")
    return train(robot_training(folder, video_episodes=8), [], QUIET)


def test_the_best_checkpoint_has_the_lowest_held_out_error(run: Path) -> None:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = {int(row["step"]): float(row["val/executed_mse"]) for row in rows if row["val/executed_mse"]}
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    assert len(errors) == 2 and not any("rollout" in name for name in rows[0])
    assert index["best"] == f"step_{min(errors, key=lambda step: errors[step]):08d}"
    assert [entry["score"] for entry in index["scores"]] == sorted(errors.values())


def test_the_manifest_says_that_nothing_was_rolled_out(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["evaluation"] is None and manifest["config"]["task"]["env"] is None
    assert "held-out action error" in manifest["training"]["chosen_by"]
    assert [episode["episode"] for episode in manifest["open_loop"]["episodes"]] == held_out(run)
    assert not (run / "rollouts.mp4").exists() and (run / "open_loop.png").is_file()
    assert (run / "action_fan.png").is_file()


def held_out(run: Path) -> list[int]:
    numbers = np.flatnonzero(split_validation(12, 0.02)).tolist()
    assert len(numbers) == 1
    return numbers


def test_a_checkpoint_knows_what_the_data_call_its_numbers(tmp_path: Path, run: Path) -> None:
    assert load_policy(run).metadata[NUMBER_NAMES] == {}  # zarr files do not say it
    pytest.importorskip("pyarrow", reason="needs the package pyarrow of the lerobot extra")
    from tests.helpers.lerobot_folders import write_v21

    root = write_v21(tmp_path / "robot", lengths=(20, 20))
    dataset = DatasetConfig("robot", "robot", format="lerobot")
    columns = [ColumnConfig("observation.state", 1, 3), ColumnConfig("action")]
    observations = {
        "obs": ObservationConfig(columns),
        "touch": ObservationConfig([ColumnConfig("observation.tactile")]),
    }
    task = TaskConfig("robot", dataset, observations, [ColumnConfig("action", 1)], env=None)
    demonstrations = load_demonstrations(task, str(root), False, lambda _: None)
    policy, data = build_policy_and_data(point_training(tmp_path, task=task), demonstrations, torch.device("cpu"))
    assert policy.metadata[NUMBER_NAMES] == {"obs": ["b", "c", "x", "y"], "action": ["y"]}
    arrays = {key: values * 100 for key, values in data.train.stats_arrays().items()}
    called = [text.split()[0] for _, text in far_numbers(policy.normalizer, arrays, policy.metadata)]
    assert called[:4] == ["obs[b]", "obs[c]", "obs[x]", "obs[y]"] and called[-1] == "action[y]"
    assert "touch[5]" in called


def test_evaluating_repeats_the_measurement_of_the_training(run: Path) -> None:
    _, manifest = evaluated(run)
    trained = json.loads((run / "manifest.json").read_text())
    for name in ("action_error", "action_mse", "error_of_numbers", "episodes"):
        assert manifest["open_loop"][name] == trained["open_loop"][name]
    assert manifest["evaluation"] is None and manifest["data"]["sha256"] == trained["data"]["sha256"]


def test_an_earlier_evaluation_is_kept_unless_it_asked_the_same(run: Path, tmp_path: Path) -> None:
    data = str(run.parents[2] / "point.zarr")
    config = EvalConfig(str(run / "checkpoints" / "last"), EvaluationConfig(), robot_task(), data_path=data)
    folder = run / "checkpoints" / "last" / "eval"

    def evaluate_with(n_envs: int, policy_seed: int, **changes: Any) -> list[str]:
        evaluation = EvaluationConfig(n_envs=n_envs, policy_seed=policy_seed)
        evaluate(replace(config, evaluation=evaluation, **changes), run, [], QUIET)
        return sorted(path.name for path in folder.parent.glob("eval*"))

    assert [evaluate_with(1, 0), evaluate_with(2, 0)] == [["eval"], ["eval"]]
    assert evaluate_with(1, 1) == ["eval", "eval_1"]
    seeds = [
        json.loads((folder.parent / name / "manifest.json").read_text())["settings"] for name in ("eval_1", "eval")
    ]
    assert [settings["evaluation"]["policy_seed"] for settings in seeds] == [0, 1]
    assert (folder.parent / "eval_1" / "open_loop.png").is_file()
    assert evaluate_with(1, 2, output=str(folder)) == ["eval", "eval_1"]  # a named folder is replaced
    write_zarr(tmp_path / "new.zarr", point_demonstrations(episodes=5, seed=1))
    assert evaluate_with(1, 2, data_path=str(tmp_path / "new.zarr")) == ["eval", "eval_1", "eval_2"]


def test_an_output_that_cannot_be_written_is_known_before_the_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = EvalConfig(str(run), EvaluationConfig(), robot_task(), data_path="absent", output=str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"file/manifest.json cannot be written.*choose another, output="):
        evaluate(config, run, [], QUIET)


def test_the_candidates_are_the_policys_or_those_of_the_evaluation() -> None:
    policy, buffer = tiny_policy(observations={"obs": 4}, num_candidates=3), point_demonstrations(episodes=1)
    windows = make_windows(robot_task(), buffer, np.ones(1, bool), horizon=6, n_obs_steps=2, n_action_steps=3)
    drawn: list[int] = []
    policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[1]))
    for number, expected in ((None, 3), (2, 2)):
        drawn.clear()
        config = EvaluationConfig(n_episodes=1, num_candidates=number)
        result = measure_open_loop(policy, windows, buffer.episode_ends, config)
        assert set(drawn) == {expected}
        assert open_loop_manifest(policy, result, config)["num_candidates"] == expected


def test_the_settings_of_decisions_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, buffer = tiny_policy(observations={"obs": 4}), point_demonstrations(episodes=1)
    windows = make_windows(robot_task(), buffer, np.ones(1, bool), horizon=6, n_obs_steps=2, n_action_steps=3)
    original, given = policy.predict_action, list[dict[str, Any]]()

    def recording(obs: Any, **options: Any) -> dict[str, torch.Tensor]:
        given.append(options)
        return original(obs, **options)

    monkeypatch.setattr(policy, "predict_action", recording)
    settings = {"noise_scale": 0.25, "num_candidates": 2, "mirrored": False}
    measure_open_loop(policy, windows, buffer.episode_ends, EvaluationConfig(n_episodes=1, **settings))
    assert given and all(options.pop("generator") and options == settings for options in given)


def test_the_task_file_says_that_there_is_no_environment(run: Path, tmp_path: Path) -> None:
    (tmp_path / "point.yaml").write_text(
        "name: point\ndataset: {name: point, relative_path: point.zarr}\n"
        "observations: {obs: {columns: [{name: observation}]}}\naction: [{name: action}]\nenv: null\n"
    )
    data = str(run.parents[2] / "point.zarr")
    config = EvalConfig(str(run), EvaluationConfig(), data_path=data, output=str(tmp_path / "eval"))
    assert isinstance(evaluate(config, tmp_path, [], QUIET), OpenLoopResult)


def test_all_episodes_of_other_demonstrations_are_measured(run: Path, tmp_path: Path) -> None:
    write_zarr(tmp_path / "new.zarr", point_demonstrations(episodes=5, seed=1))
    result, _ = evaluated(run, data_path=str(tmp_path / "new.zarr"))
    assert [episode.episode for episode in result.episodes] == [0, 1, 2, 3, 4]


def test_other_units_than_those_of_the_training_are_noted(run: Path, tmp_path: Path) -> None:
    other = point_demonstrations(episodes=3, seed=1)
    in_pixels = {**other.data, "observation": other.data["observation"] * [1, 512, 1, 1]}
    write_zarr(tmp_path / "pixels.zarr", ReplayBuffer(in_pixels, other.episode_ends))
    report = Console(file=StringIO(), width=500)
    settings = EvalConfig(str(run), EvaluationConfig(), robot_task(), data_path=str(tmp_path / "pixels.zarr"))
    evaluate(settings, run, [], report)
    said = report.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"note     1 of 6 numbers .* far outside .*: obs\[1\] reaches from .* same units\?", said), said
    assert "open loop on 3 episodes" in said


def test_episodes_that_are_shorter_than_the_horizon_are_noted(tmp_path: Path) -> None:
    data = {name: column[:100] for name, column in point_demonstrations().data.items()}
    write_zarr(tmp_path / "short.zarr", ReplayBuffer(data, np.array([5, 10, 40, 70, 100])))
    report = Console(file=StringIO(), width=500)
    train(robot_training(tmp_path, data_path=str(tmp_path / "short.zarr"), trainer={"num_steps": 1}), [], report)
    said = report.file.getvalue()  # type: ignore[attr-defined]
    assert "note     2 of 5 episodes are shorter than the horizon of 8 steps" in said
    assert "held-out error of decisions" in said and "open loop on 1 episode," in said


def test_episodes_that_were_trained_on_are_left_out_of_a_data_set_that_grew(run: Path, tmp_path: Path) -> None:
    old, new = point_demonstrations(), point_demonstrations(episodes=2, seed=1)
    data = {name: np.concatenate([new.data[name], column]) for name, column in old.data.items()}
    write_zarr(tmp_path / "grown.zarr", ReplayBuffer(data, np.concatenate([new.episode_ends, old.episode_ends + 40])))
    result, _ = evaluated(run, data_path=str(tmp_path / "grown.zarr"))
    assert [episode.episode for episode in result.episodes] == [0, 1, *(2 + number for number in held_out(run))]


def test_errors_are_those_of_the_executed_steps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, buffer = load_policy(run), point_demonstrations(episodes=3)
    windows = make_windows(robot_task(), buffer, np.ones(3, bool), horizon=8, n_obs_steps=2, n_action_steps=4)
    offset = torch.tensor([0.3, -0.1])

    def knowing(obs: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        """The demonstrated actions of this and the next three steps, off by a constant."""
        now = obs["obs"][0, -1, :2].numpy()
        row = next(i for i, seen in enumerate(buffer.data["observation"]) if np.array_equal(seen[:2], now))
        return {"action": torch.from_numpy(buffer.data["action"][row : row + 4])[None] + offset}

    monkeypatch.setattr(policy, "predict_action", knowing)
    result = measure_open_loop(policy, windows, buffer.episode_ends, EvaluationConfig(n_episodes=2))
    assert [(episode.episode, len(episode.predicted)) for episode in result.episodes] == [(0, 5), (1, 5)]
    assert np.allclose(result.error_of_numbers, [0.3, 0.1], atol=1e-6)
    assert result.action_error.mean == pytest.approx(np.sqrt((0.09 + 0.01) / 2), abs=1e-6)


def test_without_held_out_episodes_the_last_checkpoint_counts(tmp_path: Path) -> None:
    report = Console(file=StringIO(), width=500)
    run = train(robot_training(tmp_path, trainer={"val_ratio": 0.0}), [], report)
    said = report.file.getvalue()  # type: ignore[attr-defined]
    assert "step 10: error " in said and "step 20: error " in said, said
    assert f"chosen   {run / 'checkpoints' / 'last'}" in said
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["open_loop"] is None and "the last one" in manifest["training"]["chosen_by"]
    assert json.loads((run / "checkpoints" / "index.json").read_text())["best"] is None
    with pytest.raises(ConfigurationError, match="trained on every episode.*data_path="):
        evaluated(run)


def test_a_resumed_run_chooses_as_if_it_had_not_stopped(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before_step(monkeypatch, 13, press_ctrl_c)
    with pytest.raises(Exception, match="Stopped at step"):
        train(robot_training(tmp_path, name="parts"), [], QUIET)
    parts = train(robot_training(tmp_path, name="parts", resume=True), [], QUIET)
    assert_same_state(run, parts)


def test_the_real_data_of_a_robot_train_and_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="needs the package pyarrow of the lerobot extra")
    data = os.environ.get("DRIFT_POLICY_DATA")
    if not data or not (Path(data) / "g1_bottle_lerobot").is_dir():
        pytest.skip("needs g1_bottle_lerobot in the folder DRIFT_POLICY_DATA")
    monkeypatch.chdir(tmp_path)
    run_command("python train_policy.py task=g1_bottle trainer.val_ratio=0.01", tmp_path)
    manifest = json.loads((tmp_path / "runs/g1_bottle/drift_seed0/manifest.json").read_text())
    assert (manifest["data"]["episodes"], manifest["data"]["steps"]) == (100, 35965)
    assert len(manifest["open_loop"]["error_of_numbers"]) == 26


def test_settings_that_need_an_environment_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no environment to film"):
        evaluated(run, video_episodes=1)
    with pytest.raises(ConfigurationError, match="data_path is for tasks without an environment"):
        evaluated(run, task=point_task())
    other = robot_task()
    other.observations["obs"].columns[0].stop = 3
    with pytest.raises(CheckpointError, match="belongs to another task"):
        evaluated(run, task=other)


def test_a_checkpoint_knows_the_rate_of_its_recordings() -> None:
    buffer, source = point_demonstrations(), ResolvedData(Path("here"), "path", "a test")
    stated, recorded = replace(robot_task(), control_hz=20.0), Demonstrations(buffer, source, control_hz=30.0)
    assert control_rate(stated, Demonstrations(buffer, source)) == 20
    assert control_rate(robot_task(), recorded) == 30
    assert control_rate(point_task(), Demonstrations(buffer, source)) == 10  # that of the environment
    assert control_rate(robot_task(), Demonstrations(buffer, source)) is None
    with pytest.raises(ConfigurationError, match=r"task\.control_hz is 20\.0, but .* recorded at 30\.0"):
        control_rate(stated, recorded)


def test_damaged_metadata_are_refused(run: Path, tmp_path: Path) -> None:
    policy = load_policy(run)
    policy.metadata["trained_episodes"] = [0, 99]
    policy.save_pretrained(tmp_path / "damaged")
    config = EvalConfig(
        str(tmp_path / "damaged"), EvaluationConfig(), robot_task(), data_path=str(run.parents[2] / "point.zarr")
    )
    with pytest.raises(CheckpointError, match="trained_episodes"):
        evaluate(config, tmp_path, [], QUIET)


def test_scores_of_another_measure_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = robot_training(tmp_path)
    run = Path(config.output) / "point" / config.name
    stop_before_step(monkeypatch, 12, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 13"):
        train(config, [], QUIET)
    state = run / "checkpoints/last/training.json"
    content = json.loads(state.read_text())
    assert content["scores"] == "val/executed_mse" and len(content["best"]) == 1
    del content["scores"]  # as an older release left it, with an error that no decision has
    content["best"][0]["score"] = 0.0
    state.write_text(json.dumps(content))
    train(replace(config, resume=True), [], QUIET)
    (row,) = json.loads((run / "checkpoints/index.json").read_text())["scores"]
    assert row["step"] == 20 and row["score"] > 0
