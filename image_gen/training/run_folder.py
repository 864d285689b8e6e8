"""The folder of an image run: may a run start or go on there, and with which settings was it started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.manifest import write_json
from image_gen.training.checkpoint import CheckpointStore
from image_gen.training.config import RunConfig

SETTINGS_FILE = "settings.json"
# Settings that may change between the parts of a resumed run: they say where and how long, not what is computed.
_FREE = ("resume", "logger", "output", "device", "write_config", "picture")
_FREE_OF_TRAINER = ("num_steps", "max_seconds", "sharding", "num_threads", "log_every", "sample_every")


def run_folder(config: RunConfig) -> Path:
    """Return the folder of a run."""
    return Path(config.output) / config.dataset.name / config.name


def check_folder(run_dir: Path, store: CheckpointStore, resume: bool) -> None:
    """Require a run to go on with, or none, and make the folder.

    Raises:
        UserError: it holds a run and `resume` is not set, or the other way round, or it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {run_dir} cannot be written ({error}): choose another, output=... .") from error
    if resume and not store.has_last():
        raise UserError(f"There is nothing to resume in {run_dir}: leave out resume=true, or check name=.")
    if not resume and store.has_last():
        raise UserError(
            f"{run_dir} already holds a run. Go on with it by the same command and resume=true, or give the new run "
            "another name: name=... ."
        )


def record_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Store the settings that a resumed run must share."""
    write_json(run_dir / SETTINGS_FILE, dict(settings))


def check_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Compare the settings of a run with those it was started with.

    Raises:
        ConfigurationError: the run to resume was started with other settings or other data.
        CheckpointError: its settings cannot be read.
    """
    path = run_dir / SETTINGS_FILE
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}), so the run cannot be resumed.") from error
    changed = _differences(before, json.loads(json.dumps(settings)))
    if changed:
        raise ConfigurationError(
            f"The run in {run_dir} was started with other values of {', '.join(changed)}. Resume it with what it was "
            "started with, or start a new run with another name=... ."
        )


def course_of(config: RunConfig, data_facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the course of a run, with the identity of the data.

    The number of steps is free, so that a finished run can be made longer; not so for a masked autoencoder whose
    classifier is trained in the last steps.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    recipe = settings.get("mae", settings)
    free = [n for n in _FREE_OF_TRAINER if n != "num_steps" or not recipe.get("classification_steps")]
    recipe["trainer"] = {name: value for name, value in recipe["trainer"].items() if name not in free}
    settings["dataset"] = {name: value for name, value in settings["dataset"].items() if name != "num_workers"}
    return settings | {"data": dict(data_facts)}


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            name
            for key in dict.fromkeys([*before, *now])
            for name in _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == now else [prefix]
