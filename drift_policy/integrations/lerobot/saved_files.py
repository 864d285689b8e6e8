"""The files of a LeRobot policy: its configuration, and the processors before and after it, in JSON and safetensors.

Nothing is executed, no class is looked up by the names in the files, and no file outside the folder is read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from drift_policy.errors import CheckpointError
from drift_policy.hub_download import HUB_PREFIX, download_snapshot, split_revision
from drift_policy.serialization import CONFIG_FILE, MODEL_FILE

PREPROCESSOR = "policy_preprocessor"
POSTPROCESSOR = "policy_postprocessor"
_TRAINING_FILE = "train_config.json"
_POLICY_FOLDER = "pretrained_model"  # beside training_state in a checkpoint of lerobot-train
_MAX_JSON_BYTES = 4 * 2**20
_MAX_STATISTICS_BYTES = 64 * 2**20
_LARGEST_EPS = 1e-6  # LeRobot's is 1e-8; larger ones would show beside the statistics
# Steps of a processor that change no number of an observation or action: names, the axis of the batch, the device.
_NEUTRAL_STEPS = ("rename_observations_processor", "to_batch_processor", "device_processor")


@dataclass(frozen=True)
class NormalizationStep:
    """A normaliser or unnormaliser of LeRobot.

    Attributes:
        path: of the processor's JSON, for messages.
        features: name -> {"type", "shape"}.
        modes: type of a feature -> how it is normalised.
        eps: what LeRobot adds to divisors.
        statistics: name of a feature -> name of a statistic -> numbers, float32.
    """

    path: Path
    features: dict[str, Any]
    modes: dict[str, str]
    eps: float
    statistics: dict[str, dict[str, Tensor]]

    def mode(self, feature: str, kind: str) -> str:
        """Return how a feature of a type is normalised; LeRobot leaves types that it was told nothing about alone.

        Raises:
            CheckpointError: the step knows the feature as something else.
        """
        known = self.features.get(feature)
        if not isinstance(known, dict) or known.get("type") != kind:
            raise CheckpointError(
                f"{self.path} does not know the feature {feature!r} of the type {kind}, which config.json names: the "
                "files are of different policies."
            )
        return self.modes.get(kind, "IDENTITY")

    def statistics_of(self, feature: str, size: int, needed: Sequence[str]) -> dict[str, Tensor]:
        """Return the statistics [D] of a feature; those that are not needed are left out where they are none.

        Args:
            feature: its name.
            size: D.
            needed: names of those that must be there.

        Raises:
            CheckpointError: one that is needed is missing, or is not [D] finite numbers.
        """
        known = self.statistics.get(feature, {})
        usable = {
            name: value
            for name, value in known.items()
            if list(value.shape) == [size] and bool(torch.isfinite(value).all())
        }
        for name in needed:
            if name not in known:
                raise CheckpointError(
                    f"{self.path} has no statistic {name!r} of {feature!r}: the policy was saved without the "
                    "statistics of its data set, and cannot be converted without them."
                )
            if name not in usable:
                raise CheckpointError(
                    f"{self.path}: the statistic {name!r} of {feature!r} must be {size} finite numbers, but has the "
                    f"shape {list(known[name].shape)} and begins with {known[name].flatten()[:4].tolist()}."
                )
        return usable


def find_folder(path: str | Path) -> Path:
    """Return the folder with the files of a policy.

    Args:
        path: that folder, a checkpoint of lerobot-train that holds it, or "hf://owner/name", with "@revision" behind it
            for one branch, tag or commit.

    Raises:
        CheckpointError: there is no config.json.
    """
    if str(path).startswith(HUB_PREFIX):
        asked = str(path).removeprefix(HUB_PREFIX)
        repository, revision = split_revision(asked)
        files = [CONFIG_FILE, MODEL_FILE, _TRAINING_FILE, f"{PREPROCESSOR}*", f"{POSTPROCESSOR}*"]
        return download_snapshot(repository, files, revision, asked=asked)
    for folder in (Path(path), Path(path) / _POLICY_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    what = f"holds no {CONFIG_FILE}" if Path(path).is_dir() else "does not exist"
    raise CheckpointError(
        f"{path} {what}. Give the folder {_POLICY_FOLDER} of a checkpoint of lerobot-train, or hf://owner/name."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing, too large or no JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the whole folder that LeRobot saved.")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has more than {_MAX_JSON_BYTES} bytes, which is no description of a policy.")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object, but a {type(content).__name__}.")
    return content


def read_dataset_name(folder: Path) -> str | None:
    """Return which data set `lerobot-train` says it trained on, None if it does not say."""
    path = folder / _TRAINING_FILE
    dataset = read_json(path).get("dataset") if path.is_file() else None
    name = dataset.get("repo_id") if isinstance(dataset, dict) else None
    return name if isinstance(name, str) else None


def read_normalization(folder: Path, processor: str, wanted: str) -> NormalizationStep:
    """Return the one step of a processor that changes numbers.

    Args:
        folder: of the policy.
        processor: `PREPROCESSOR` or `POSTPROCESSOR`.
        wanted: how LeRobot registers that step, "normalizer_processor" or "unnormalizer_processor".

    Raises:
        CheckpointError: a file is missing or damaged, or the processor does something else.
    """
    path = folder / f"{processor}.json"
    steps = read_json(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{path} is no processor of LeRobot: it has no list 'steps'.")
    names = [step.get("registry_name", step.get("class")) for step in steps]
    others = [name for name in names if name not in (*_NEUTRAL_STEPS, wanted)]
    if others or names.count(wanted) != 1:
        raise CheckpointError(
            f"{path} has the steps {names}; expected one {wanted} and beside it only {', '.join(_NEUTRAL_STEPS)}, "
            "as drift policies are saved: what other steps do cannot be folded into a policy."
        )
    for name, step in zip(names, steps, strict=True):
        _check_neutral(path, name, step)
    return _normalization_step(path, steps[names.index(wanted)])


def _check_neutral(path: Path, name: str, step: Mapping[str, Any]) -> None:
    config = step.get("config")
    dtype = config.get("float_dtype") if isinstance(config, dict) else None
    if name == "device_processor" and dtype not in (None, "float32", "float"):
        raise CheckpointError(f"{path} converts numbers to {dtype!r}; only float32 can be converted.")


def _normalization_step(path: Path, step: Mapping[str, Any]) -> NormalizationStep:
    config = step.get("config")
    config = config if isinstance(config, dict) else {}
    features, modes, eps = config.get("features"), config.get("norm_map"), config.get("eps")
    if not isinstance(features, dict) or not isinstance(modes, dict):
        raise CheckpointError(f"{path}: the step {step.get('registry_name')} lacks its features or its norm_map.")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps <= _LARGEST_EPS:
        raise CheckpointError(f"{path}: eps is {eps!r}; expected a number above 0 and up to {_LARGEST_EPS:g}.")
    if config.get("normalize_observation_keys") is not None:
        raise CheckpointError(f"{path}: normalize_observation_keys leaves features out, which cannot be converted.")
    modes = {str(kind): str(mode) for kind, mode in modes.items()}
    return NormalizationStep(path, features, modes, float(eps), _read_statistics(path, step.get("state_file")))


def _read_statistics(processor: Path, name: Any) -> dict[str, dict[str, Tensor]]:
    """Return the statistics beside a processor: feature -> name -> numbers, float32 as LeRobot reads them."""
    if name is None:  # saved without statistics, which matters only where some are needed
        return {}
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{processor}: state_file is {name!r}, which is no safetensors file beside it.")
    path = processor.parent / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the whole folder that LeRobot saved.")
    if path.stat().st_size > _MAX_STATISTICS_BYTES:
        raise CheckpointError(f"{path} has more than {_MAX_STATISTICS_BYTES} bytes, which are no statistics.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or download it again.") from error
    statistics: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        feature, _, statistic = full_name.rpartition(".")
        statistics.setdefault(feature, {})[statistic] = tensor.to(torch.float32)
    return statistics
