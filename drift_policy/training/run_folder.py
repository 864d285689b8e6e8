"""The settings that a run was started with, in its folder, and the command that goes on with it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drift_policy.config import with_defaults
from drift_policy.device import choose_device
from drift_policy.errors import CheckpointError
from drift_policy.manifest import write_json
from drift_policy.policy_config import IMAGE_SETTINGS, with_policy_defaults
from drift_policy.task import POLICY_DEFAULTS, TaskConfig
from drift_policy.training.config import RolloutConfig, TrainConfig
from drift_policy.training.folder_guard import differing_settings, refuse_changes
from drift_policy.training.parallel import launch_command
from drift_policy.training.trainer_config import TrainerConfig

SCRIPT = "train_policy.py"
_SETTINGS_FILE = "config.yaml"
_PARTS_FILE = "parts.json"
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
# Those that are stored with the others, but may change too.
_FREE_PARTS = (
    # Where and how fast a step is computed and read: it changes rounding at most.
    "trainer.sharding",
    "trainer.data_placement",
    "trainer.num_workers",
    "trainer.num_threads",
    # How much is lost in a crash, and how many rows metrics.csv has.
    "trainer.checkpoint_every",
    "trainer.log_every",
    # How fast rollouts are; rollout.decision_batch_size above 1 leaves their rounding to it too.
    "rollout.n_envs",
    "rollout.asynchronous",
)
# Of a task: what it says of policies, whose own settings are compared, of seconds, which a training does not know, and
# how its data can be had, whose hash is compared.
_WITHOUT_EFFECT = tuple(f"task.{name}" for name in (*POLICY_DEFAULTS, "control_hz", "dataset.hint", "dataset.url"))

# The learning rate falls to zero at the last step: a training of another length is another one from the beginning.
_OTHER_LENGTH = (
    "The learning rate follows the number of steps, so a run cannot be made longer or shorter: resume it with what it "
    "was started with, start another one with another name=..., or go on from its weights with initial_ckpt=... and "
    "another name."
)


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
    changed = [name for name in changed_settings(before, settings) if name not in _FREE_PARTS]
    if "device" in changed and _is_same_kind(str(before.get("device")), str(settings.get("device"))):
        changed.remove("device")
    advice = _OTHER_LENGTH if changed == ["trainer.num_steps"] else None
    refuse_changes(run_dir, changed, advice, _completed(before), _completed(settings))


def _is_same_kind(device: str, other: str) -> bool:
    """Whether two devices are of one kind, as cuda and cuda:1 are; "auto" is what it finds on this machine."""
    kinds = {choose_device(name).type if name == "auto" else name.partition(":")[0] for name in (device, other)}
    return len(kinds) == 1


def record_part(run_dir: Path, started: Mapping[str, Any], from_step: int) -> list[dict[str, Any]]:
    """Add a part of a run to those in its folder and return them all, each with the step that it went on from.

    Parts that left nothing behind, since the run goes on from an earlier checkpoint, are forgotten. The record of a run
    that is older than it begins with the first part that has one.

    Args:
        run_dir: the folder of the run.
        started: `describe_run` of the part.
        from_step: the step of the checkpoint that it goes on from; 0 begins a run.

    Raises:
        CheckpointError: the record cannot be read.
    """
    path = run_dir / _PARTS_FILE
    try:
        before = json.loads(path.read_text())["parts"] if path.is_file() else []
        kept = [part for part in before if part["from_step"] < from_step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}): delete it, and the manifest will lack the parts "
            "before this one."
        ) from error
    parts = [*kept, {**started, "from_step": from_step}]
    write_json(path, {"parts": parts})
    return parts


def resume_command(overrides: Sequence[str]) -> str:
    """Return the command that goes on with a run that was started with these arguments."""
    kept = [override for override in overrides if not override.startswith("resume=")]
    return shlex.join([*launch_command(), SCRIPT, *kept, "resume=true"])


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that two runs do not share, but for those of a task that have no effect.

    Args:
        before: `course_of_a_run` as it was stored, perhaps by an older release: a setting that is younger was at its
            default then, since every new setting's default is what was done before.
        now: `course_of_a_run` of today.
    """
    changed = differing_settings(_completed(before), _completed(OmegaConf.to_container(OmegaConf.create(dict(now)))))
    return [name for name in changed if name not in _WITHOUT_EFFECT]


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
