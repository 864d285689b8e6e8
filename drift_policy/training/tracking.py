"""Where metrics go: a CSV file always, Weights & Biases or TensorBoard besides it."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from statistics import mean
from typing import Any, Protocol
from uuid import uuid4

from drift_policy.errors import ConfigurationError
from drift_policy.training.logger_config import LoggerConfig

STEP = "step"
ROLLOUT_SCORE, ROLLOUT_SUCCESS = "rollout/score", "rollout/success"
_LAST_ROLLOUTS = 10


class Tracker(Protocol):
    """Receives the metrics of a run."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record `metrics` of an optimiser step."""

    def log_video(self, step: int, path: Path) -> None:
        """Record a film."""

    def finish(self, failed: bool = False) -> None:
        """Write what is still pending, and say whether the run got to its end."""


class CsvTracker:
    """Writes one row per logged step; a metric that appears later adds its column to the whole file.

    Args:
        path: the file.
        resume_step: keep the rows of an earlier part of the run up to this step, 0 to start again.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if resume_step and path.is_file():
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row[STEP]) <= resume_step]
        self._columns = [STEP]
        self._rewrite()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a row, or fill in the last one if it is of the same step."""
        if self._rows and int(self._rows[-1][STEP]) == step:
            self._rows[-1].update(metrics)
            self._rewrite()
            return
        row = {STEP: step, **metrics}
        self._rows.append(row)
        if set(row) <= set(self._columns):
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite()

    def log_video(self, step: int, path: Path) -> None:
        """A CSV file holds no films; they lie beside it."""

    def finish(self, failed: bool = False) -> None:
        """Every row is on disk already."""

    def _rewrite(self) -> None:
        self._columns = list(dict.fromkeys([STEP, *(key for row in self._rows for key in row)]))
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self._path)


class WandbTracker:
    """Logs to Weights & Biases: online for a user who is logged in, offline otherwise."""

    def __init__(self, config: LoggerConfig, run_dir: Path, settings: dict[str, Any], resume_step: int = 0) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigurationError("logger=wandb needs the package wandb: pip install wandb.") from error

        self._wandb = wandb
        mode = os.environ.get("WANDB_MODE") or ("online" if is_logged_in(wandb) else "offline")
        self._run = wandb.init(
            project=config.project,
            name=run_dir.name,
            id=_run_id(run_dir / "wandb_id.txt"),
            resume="allow" if resume_step else None,
            dir=str(run_dir),
            config=settings,
            mode=mode,  # type: ignore[arg-type]
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send the metrics of a step."""
        self._run.log(metrics, step=step)

    def log_video(self, step: int, path: Path) -> None:
        """Send a film by its path."""
        self._run.log({"rollouts": self._wandb.Video(str(path), format="mp4")}, step=step)

    def finish(self, failed: bool = False) -> None:
        """Close the run, which its page then shows as finished or as failed."""
        self._run.finish(exit_code=int(failed))


def is_logged_in(wandb: Any) -> bool:
    """Whether the package wandb has credentials; it does not ask the user for any.

    Args:
        wandb: the package.
    """
    if "prompt" in signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # older releases, whose login would prompt


def _run_id(path: Path) -> str:
    """Return the identity of a run, which a resumed run keeps."""
    if not path.is_file():
        path.write_text(uuid4().hex)
    return path.read_text()


class TensorboardTracker:
    """Writes TensorBoard event files below <run>/tensorboard."""

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigurationError("logger=tensorboard needs the package: pip install tensorboard.") from error

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_video(self, step: int, path: Path) -> None:
        """Note where the film lies: event files would need it decoded."""
        self._writer.add_text("rollouts", str(path.name), step)

    def finish(self, failed: bool = False) -> None:
        """Flush and close the event file."""
        self._writer.close()


@contextmanager
def finished(trackers: Sequence[Tracker]) -> Iterator[None]:
    """Finish the trackers of a run after a block, also if it raises."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for tracker in trackers:
            tracker.finish(failed)


def logged_rollouts(metrics_csv: Path) -> list[dict[str, float]]:
    """Return step, score and success of all rollouts of a run, as `CsvTracker` wrote them."""
    with metrics_csv.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(ROLLOUT_SCORE)]
    return [
        {"step": int(row[STEP]), "score": float(row[ROLLOUT_SCORE]), "success": float(row[ROLLOUT_SUCCESS])}
        for row in rows
    ]


def summary_of(rollouts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what Diffusion Policy reports of a run: its best score, and the mean of its last ten checkpoints.

    Comparable with the published numbers if the rollouts are on the test starts; docs/table7.md has the command.

    Args:
        rollouts: of `logged_rollouts`, at least one.
    """
    last = rollouts[-_LAST_ROLLOUTS:]
    return {
        "max_score": max(row["score"] for row in rollouts),
        "max_success": max(row["success"] for row in rollouts),
        "last": len(last),
        "mean_score_of_last": mean(row["score"] for row in last),
        "mean_success_of_last": mean(row["success"] for row in last),
    }


def make_trackers(config: LoggerConfig, run_dir: Path, settings: dict[str, Any], resume_step: int) -> list[Tracker]:
    """Return the CSV tracker and the one the configuration asks for."""
    trackers: list[Tracker] = [CsvTracker(run_dir / "metrics.csv", resume_step)]
    if config.name == "wandb":
        trackers.append(WandbTracker(config, run_dir, settings, resume_step))
    elif config.name == "tensorboard":
        trackers.append(TensorboardTracker(run_dir, resume_step))
    return trackers
