"""The folder of a run: may a run start or go on there, and with which settings was it started."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drift_policy.config import with_defaults
from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.policy_config import IMAGE_SETTINGS, with_policy_defaults
from drift_policy.task import TaskConfig
from drift_policy.training.checkpoint import CheckpointStore
from drift_policy.training.config import RolloutConfig, TrainConfig
from drift_policy.training.parallel import launch_command
from drift_policy.training.trainer_config import TrainerConfig

SCRIPT = "train_policy.py"
_SETTINGS_FILE = "config.yaml"
# Settings that may change between the parts of a resumed run, because they do not change its course.
_FREE_SETTINGS = (
    "resume",
    "logger",
    "video_episodes",
    "evaluation",
    "allow_download",
    "data_path",
    "output",
    "plugins",
)
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


def course_of_a_run(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that determine the course of a run."""
    return {key: value for key, value in asdict(config).items() if key not in _FREE_SETTINGS}


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
        before: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise CheckpointError(f"{path} cannot be read ({error}), so the run cannot be resumed.") from error
    if not isinstance(before, dict):
        raise CheckpointError(f"{path} holds no settings, so the run cannot be resumed.")
    changed = [name for name in changed_settings(before, settings) if name not in _PLACES]
    if changed:
        raise ConfigurationError(
            f"The run in {run_dir} was started with other values of {', '.join(changed)}. Resume it with what it was "
            "started with, or start a new run with another name=... ."
        )


def resume_command(overrides: Sequence[str]) -> str:
    """Return the command that goes on with a run that was started with these arguments."""
    kept = [override for override in overrides if not override.startswith("resume=")]
    return shlex.join([*launch_command(), SCRIPT, *kept, "resume=true"])


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that two runs do not share.

    Args:
        before: `course_of_a_run` as it was stored, perhaps by an older release: a setting that is younger was at its
            default then, since every new setting's default is what was done before.
        now: `course_of_a_run` of today.
    """
    return _differences(_completed(before), _completed(OmegaConf.to_container(OmegaConf.create(dict(now)))))


def _completed(settings: Any) -> dict[str, Any]:
    """Fill in the defaults of settings that were not stored, and leave out those of images where there are none."""
    kinds = {"task": TaskConfig, "trainer": TrainerConfig, "rollout": RolloutConfig}
    filled = {
        key: with_defaults(kinds[key], value) if key in kinds and isinstance(value, dict) else value
        for key, value in settings.items()
    }
    policy = with_policy_defaults(filled.get("policy", {}))
    observations = filled.get("task", {}).get("observations", {})
    if not any(observation["kind"] == "image" for observation in observations.values()):
        policy = {key: value for key, value in policy.items() if key not in IMAGE_SETTINGS}
    return filled | {"policy": policy}


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            name
            for key in dict.fromkeys([*before, *now])
            for name in _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == now else [prefix]
