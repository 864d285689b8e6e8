"""Trackers: the CSV file in all its lives, and the real Weights & Biases and TensorBoard without a network."""

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from drift_policy.errors import ConfigurationError
from drift_policy.training import run as run_module
from drift_policy.training import tracking
from drift_policy.training.config import LoggerConfig
from drift_policy.training.run import train
from drift_policy.training.tracking import (
    CsvTracker,
    TensorboardTracker,
    WandbTracker,
    is_logged_in,
    make_trackers,
    summary_of,
)
from tests.helpers.point_task import point_training

QUIET = Console(quiet=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_late_metrics_add_their_column(tmp_path: Path) -> None:
    tracker = CsvTracker(tmp_path / "metrics.csv")
    tracker.log(1, {"a": 1.0})
    tracker.log(2, {"a": 2.0, "b": 3.0})
    tracker.log(2, {"c": 4.0})
    tracker.log(3, {"a": 5.0})
    assert rows_of(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.0", "b": "", "c": ""},
        {"step": "2", "a": "2.0", "b": "3.0", "c": "4.0"},
        {"step": "3", "a": "5.0", "b": "", "c": ""},
    ]


def test_resumed_file_forgets_rows_after_the_checkpoint(tmp_path: Path) -> None:
    tracker = CsvTracker(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        tracker.log(step, {"a": float(step)})
    resumed = CsvTracker(tmp_path / "metrics.csv", resume_step=2)
    resumed.log(3, {"a": 30.0})
    assert [row["a"] for row in rows_of(tmp_path / "metrics.csv")] == ["1.0", "2.0", "30.0"]
    CsvTracker(tmp_path / "metrics.csv")
    assert rows_of(tmp_path / "metrics.csv") == []


def test_wandb_runs_offline_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no stored login
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run_dir = tmp_path / "task" / "name"
    run_dir.mkdir(parents=True)
    tracker = WandbTracker(LoggerConfig(name="wandb"), run_dir, {"seed": 0})
    tracker.log(1, {"a": 1.0})
    tracker.finish()
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert "deprecated" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("known", [False, True])
def test_every_release_of_wandb_is_asked_for_credentials_without_a_prompt(known: bool) -> None:
    def login(key: str | None = None, verify: bool = True, prompt: bool = True) -> bool:
        assert not prompt and not verify
        return known

    def login_before(key: str | None = None, verify: bool = False) -> bool:
        raise AssertionError("it would prompt")

    api = SimpleNamespace(api_key="key" if known else None)
    assert is_logged_in(SimpleNamespace(login=login)) is known
    assert is_logged_in(SimpleNamespace(login=login_before, api=api)) is known


def test_tensorboard_writes_the_values(tmp_path: Path) -> None:
    tracker = TensorboardTracker(tmp_path)
    tracker.log(7, {"val/action_mse": 0.25})
    tracker.log_video(7, tmp_path / "rollouts.mp4")
    tracker.finish()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("val/action_mse")
    assert (event.step, event.value) == (7, 0.25)


class Watched(CsvTracker):
    """Remembers how it was finished."""

    def finish(self, failed: bool = False) -> None:
        with self._path.with_name("finished.txt").open("a") as file:
            file.write(f"{failed} ")


def test_trackers_are_finished_also_when_the_end_of_a_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CsvTracker", Watched)
    config = point_training(tmp_path, trainer={"num_steps": 2, "rollout_every": 0})

    def broken(*_: object) -> None:
        raise OSError("no space for a picture")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(run_module, "plot_curves", broken)
        train(config, [], QUIET)
    run = train(replace(config, resume=True), [], QUIET)
    assert (run / "finished.txt").read_text() == "True False "


def test_csv_is_always_written(tmp_path: Path) -> None:
    kinds = [type(tracker) for tracker in make_trackers(LoggerConfig(name="tensorboard"), tmp_path, {}, 0)]
    assert kinds == [CsvTracker, TensorboardTracker]


def test_unknown_logger_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="csv, wandb, tensorboard"):
        LoggerConfig(name="mlflow")


def test_rollouts_are_summed_up_as_diffusion_policy_reports_them() -> None:
    scores = [1.5, 1.0, *(0.1 * number for number in range(1, 11))]
    rollouts = [{"step": 10.0 * number, "score": score, "success": score / 2} for number, score in enumerate(scores)]
    assert summary_of(rollouts) == pytest.approx(
        {
            "max_score": 1.5,
            "max_success": 0.75,
            "last": 10,
            "mean_score_of_last": 0.55,
            "mean_success_of_last": 0.275,
        }
    )
    assert summary_of(rollouts[:1])["last"] == 1
