"""The folder of an image run: may a run start or go on there, and with which settings was it started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drift_policy.errors import CheckpointError
from drift_policy.manifest import write_json
from drift_policy.training.folder_guard import (
    AUTO,
    OTHER_NAME,
    claimed_folder,
    differing_settings,
    goes_on,
    refuse_changes,
    setting_of,
)
from drift_policy.training.parallel import Processes
from image_gen.training.checkpoint import CheckpointStore
from image_gen.training.config import (
    DataConfig,
    DriftConfig,
    FeatureConfig,
    MaeRecipe,
    OptimizerConfig,
    RunConfig,
)
from image_gen.training.samples import FILES_DIGEST, MIRRORED, TOKENIZER_DIGEST

SETTINGS_FILE = "settings.json"
# Settings that may change between the parts of a resumed run: they say where and how long, not what is computed.
_FREE = ("resume", "logger", "output", "device", "write_config", "picture")
_FREE_OF_TRAINER = ("num_steps", "max_seconds", "sharding", "num_threads", "log_every", "sample_every")
# Stored, and free all the same: where files and queues lie (what is in files is compared as `data`), how memory is
# saved, and what is saved how often.
_WITHOUT_EFFECT = (
    "dataset.path",
    "dataset.latents",
    "dataset.tokenizer_weights",
    "dataset.flip",  # what it comes to is compared as `data.mirrored`
    "drift.bank.device",
    "drift.bank.save_limit_mb",
    "feature.activation_checkpointing",
    "feature.checkpoint_size",
    *(
        f"{trainer}.{name}"
        for trainer in ("trainer", "mae.trainer", "feature.mae_training.trainer")
        for name in ("activation_checkpointing", "checkpoint_every")
    ),
)
_ENCODERS = "encoders_sha256"
# Digests among the settings -> what a user calls what they stand for.
_DIGESTS = {
    _ENCODERS: "the weights of its encoders (feature.mae, feature.convnext, feature.own)",
    f"data.{FILES_DIGEST}": "the image files, by their names (dataset.path)",
    f"data.{TOKENIZER_DIGEST}": "the weights of its tokenizer (dataset.tokenizer_weights)",
}
_SECTIONS = {
    "dataset": DataConfig,
    "drift": DriftConfig,
    "feature": FeatureConfig,
    "trainer": OptimizerConfig,
    "mae": MaeRecipe,
}


def run_folder(config: RunConfig) -> Path:
    """Return the folder of a run."""
    return Path(config.output) / config.dataset.name / config.name


@contextmanager
def claimed(
    config: RunConfig, processes: Processes, how_to_go_on: str = f"resume={AUTO}", if_busy: str = OTHER_NAME
) -> Iterator[bool]:
    """Hold the folder of a run, the first process for all; give whether to go on with what is there.

    Args:
        config: of the run.
        processes: who trains together.
        how_to_go_on: what the user adds to the command to go on with a run, for messages.
        if_busy: see `claimed_folder`.

    Raises:
        UserError: see `claimed_folder`.
    """
    run_dir = run_folder(config)
    has_run = CheckpointStore(run_dir).has_last
    with ExitStack() as claim:
        with processes.agreed():
            if processes.is_main:
                how = f"the same command with {how_to_go_on}"
                claim.enter_context(claimed_folder(run_dir, has_run, config.resume, how, if_busy))
        yield goes_on(config.resume, has_run)  # no process has saved anything yet


def record_settings(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Store the settings that a resumed run must share."""
    write_json(run_dir / SETTINGS_FILE, dict(settings))


def check_settings(run_dir: Path, settings: Mapping[str, Any], advice: str | None = None) -> None:
    """Compare the settings of a run with those it was started with.

    A setting that an older release did not store was at its default then: a new one's default is what was done before.

    Args:
        run_dir: the folder of the run.
        settings: `course_of` today.
        advice: what to do if they differ; see `refuse_changes`.

    Raises:
        ConfigurationError: the run to resume was started with other settings or other data.
        CheckpointError: its settings cannot be read.
    """
    path = run_dir / SETTINGS_FILE
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}), so the run cannot be resumed.") from error
    now = json.loads(json.dumps(settings))
    defaults = {name: asdict(kind()) for name, kind in _SECTIONS.items()}
    changed = differing_settings(_completed(_with_mirrored(before), now, defaults), now)
    # Older releases stored no digests, and who only looks whether a run is there has not loaded its encoders.
    unknown = [name for name in _DIGESTS if None in (setting_of(before, name), setting_of(now, name))]
    changed = [_DIGESTS.get(name, name) for name in changed if name not in (*_WITHOUT_EFFECT, *unknown)]
    refuse_changes(run_dir, changed, advice)


def course_of(config: RunConfig, data_facts: Mapping[str, Any], encoders_digest: str | None = None) -> dict[str, Any]:
    """Return the settings that determine the course of a run, with the identity of the data and of frozen encoders.

    The number of steps is free, so that a finished run can be made longer; not so for a masked autoencoder whose
    classifier is trained in the last steps.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    recipe = settings.get("mae", settings)
    free = [n for n in _FREE_OF_TRAINER if n != "num_steps" or not recipe.get("classification_steps")]
    recipe["trainer"] = {name: value for name, value in recipe["trainer"].items() if name not in free}
    settings["dataset"] = {name: value for name, value in settings["dataset"].items() if name != "num_workers"}
    return settings | {"data": dict(data_facts), **({} if encoders_digest is None else {_ENCODERS: encoders_digest})}


def _with_mirrored(before: Any) -> Any:
    """Fill in whether samples were mirrored: older releases always did so where the cache had mirrored ones."""
    match before:
        case {"dataset": {"flip": flip}, "data": {**data}} if MIRRORED not in data:
            return {**before, "data": {**data, MIRRORED: flip or data.get("flip", False)}}
    return before


def _completed(before: Any, now: Any, defaults: Any) -> Any:
    """Fill in the defaults of the settings of `now` that were not stored."""
    if not all(isinstance(values, dict) for values in (before, now, defaults)):
        return before
    filled = dict(before)
    for key, value in now.items():
        if key in before:
            filled[key] = _completed(before[key], value, defaults.get(key))
        elif key in defaults:
            filled[key] = defaults[key]
    return filled
