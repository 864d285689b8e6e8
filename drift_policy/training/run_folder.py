"""The folder of a run: may a run start or go on there, and with which settings was it started."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.training.checkpoint import CheckpointStore
from drift_policy.training.parallel import launch_command

SCRIPT = "train_policy.py"
_SETTINGS_FILE = "config.yaml"
# Where a step is computed and read from, which does not change what it computes.
_PLACES = ("trainer.sharding", "trainer.data_placement", "trainer.num_workers")


@contextmanager
def claimed_folder(run_dir: Path, store: CheckpointStore, resume: bool, overrides: Sequence[str]) -> Iterator[None]:
    """Hold the folder of a run for this process.

    A folder without a checkpoint, as an early error leaves it, may be used again.

    Raises:
        UserError: it holds a run and `resume` is not set, or the other way round; another process is writing there;
            or it cannot be written at all.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(run_dir / ".lock", timeout=0):
            if resume and not store.has_last():
                raise UserError(f"There is nothing to resume in {run_dir}: leave out resume=true, or check name=.")
            if not resume and store.has_last():
                raise UserError(
                    f"{run_dir} already holds a run. Go on with it: {resume_command(overrides)} . "
                    "Or give the new run another name: name=... ."
                )
            yield
    except Timeout as error:
        raise UserError(f"Another process is training in {run_dir}: give this run another name, name=... .") from error
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"The folder {run_dir} cannot be written ({error}): choose another, output=... .") from error


def record_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Store the settings that determine the course of a run."""
    OmegaConf.save(OmegaConf.create(dict(settings)), run_dir / _SETTINGS_FILE)


def check_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Compare the settings of a run with those it was started with.

    Raises:
        ConfigurationError: the run to resume was started with other settings or other data.
        CheckpointError: its settings cannot be read.
    """
    path = run_dir / _SETTINGS_FILE
    try:
        before = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise CheckpointError(f"{path} cannot be read ({error}), so the run cannot be resumed.") from error
    now = OmegaConf.to_container(OmegaConf.create(dict(settings)))
    changed = [name for name in _differences(before, now) if name not in _PLACES]
    if changed:
        raise ConfigurationError(
            f"The run in {run_dir} was started with other values of {', '.join(changed)}. Resume it with what it was "
            "started with, or start a new run with another name=... ."
        )


def resume_command(overrides: Sequence[str]) -> str:
    """Return the command that goes on with a run that was started with these arguments."""
    kept = [override for override in overrides if not override.startswith("resume=")]
    return shlex.join([*launch_command(), SCRIPT, *kept, "resume=true"])


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            name
            for key in dict.fromkeys([*before, *now])
            for name in _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == now else [prefix]
