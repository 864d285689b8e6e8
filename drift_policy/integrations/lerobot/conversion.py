"""A policy that LeRobot trained with the plug-in, as a policy of ours: from real units to real units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drift_policy.data.normalizer import Normalizer
from drift_policy.digests import file_sha256
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.integrations.lerobot.inner_policy import SETTINGS, key_of, policy_config_of
from drift_policy.integrations.lerobot.normalization import NEEDED, action_maps, observation_maps
from drift_policy.integrations.lerobot.saved_files import (
    POSTPROCESSOR,
    PREPROCESSOR,
    NormalizationStep,
    find_folder,
    read_dataset_name,
    read_json,
    read_normalization,
)
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import ACTION, PolicyConfig
from drift_policy.serialization import CONFIG_FILE, MODEL_FILE, read_tensors

POLICY_TYPE = "drift"
_TRAINED, _AVERAGED = "policy.", "average.module."  # prefixes of the weights in the plug-in's state
_UPDATES = "average.n_averaged"
_IMAGE, _ACTION = "VISUAL", "ACTION"  # types of features in LeRobot
_NUMBERS = ("STATE", "ENV")


@dataclass(frozen=True)
class _Features:
    """What config.json says the policy observes and does."""

    kinds: dict[str, str]  # observed feature -> its type
    shapes: dict[str, list[int]]  # the same -> its shape of one step
    action: list[int]

    @property
    def images(self) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind == _IMAGE]


def convert_checkpoint(path: str | Path) -> Policy:
    """Return the policy that LeRobot saved, in evaluation mode, with LeRobot's normalisation inside.

    Its observation keys are LeRobot's names with "_" for "."; numbers are in the units of the data set, images as ever
    bytes or floats in 0..1. It decides with the averaged weights if LeRobot does. LeRobot is not needed.

    Args:
        path: the folder that LeRobot saved, a checkpoint of lerobot-train with that folder inside, or
            "hf://owner/name" on the Hugging Face Hub.

    Raises:
        CheckpointError: the files are missing, damaged or of another type of policy, or normalise in a way that our
            normaliser cannot.
    """
    folder = find_folder(path)
    settings = _read_settings(folder / CONFIG_FILE)
    features = _read_features(settings, folder / CONFIG_FILE)
    config = _policy_config(settings, features, folder / CONFIG_FILE)
    before = read_normalization(folder, PREPROCESSOR, "normalizer_processor")
    after = read_normalization(folder, POSTPROCESSOR, "unnormalizer_processor")
    normalizer, modes = _normalizer(config, features, before, after)
    policy = build_policy(config)
    origin = _load_weights(policy, folder / MODEL_FILE, averaged=settings["ema_decay"] > 0)
    policy.set_normalizer(normalizer)
    dataset = read_dataset_name(folder)
    policy.metadata = {
        "origin": "LeRobot checkpoint",
        "lerobot": {
            "features": {key_of(name): name for name in features.kinds},
            "normalization": modes,
            **origin,
        },
    } | ({} if dataset is None else {"data": {"name": dataset}})
    return policy.eval()


def _read_settings(path: Path) -> dict[str, Any]:
    """Return config.json, checked to be of our policy type and to have the settings that are read."""
    settings = read_json(path)
    kind = settings.get("type")
    if kind != POLICY_TYPE:
        what = "no policy of LeRobot: it has no 'type'" if kind is None else f"a policy of LeRobot's type {kind!r}"
        raise CheckpointError(
            f"{path} describes {what}. Only what lerobot-train --policy.type={POLICY_TYPE} wrote can be converted."
        )
    missing = [name for name in (*SETTINGS, "ema_decay", "input_features", "output_features") if name not in settings]
    if missing:
        raise CheckpointError(
            f"{path} lacks {missing[0]!r}: another release of lerobot_policy_drift wrote it. Load the policy with "
            "that of this release, and save it again."
        )
    decay = settings["ema_decay"]
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
        raise CheckpointError(f"{path}: ema_decay must be in [0, 1), but is {decay!r}.")
    return settings


def _read_features(settings: Mapping[str, Any], path: Path) -> _Features:
    inputs, outputs = settings["input_features"], settings["output_features"]
    if not isinstance(inputs, dict) or not isinstance(outputs, dict) or ACTION not in outputs:
        raise CheckpointError(f"{path} must have input_features and output_features, with {ACTION!r} among the latter.")
    observed = {name: _feature(path, name, description, (*_NUMBERS, _IMAGE)) for name, description in inputs.items()}
    return _Features(
        kinds={name: kind for name, (kind, _) in observed.items()},
        shapes={name: shape for name, (_, shape) in observed.items()},
        action=_feature(path, ACTION, outputs[ACTION], (_ACTION,))[1],
    )


def _feature(path: Path, name: str, description: Any, kinds: Sequence[str]) -> tuple[str, list[int]]:
    """Return type and shape of a feature."""
    kind = description.get("type") if isinstance(description, dict) else None
    shape = description.get("shape") if isinstance(description, dict) else None
    if (
        not isinstance(kind, str)
        or kind not in kinds
        or not isinstance(shape, list)
        or not all(type(size) is int for size in shape)
    ):
        raise CheckpointError(
            f"{path}: the feature {name!r} must have a type ({', '.join(kinds)}) and a shape, but is "
            f"{str(description)[:100]}."
        )
    return kind, shape


def _policy_config(settings: Mapping[str, Any], features: _Features, path: Path) -> PolicyConfig:
    try:
        return policy_config_of(settings, features.shapes, features.images, features.action)
    except (ConfigurationError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a policy: {error}") from error


def _normalizer(
    config: PolicyConfig, features: _Features, before: NormalizationStep, after: NormalizationStep
) -> tuple[Normalizer, dict[str, str]]:
    """Fold the statistics of both processors; return also key -> how LeRobot normalises it."""
    sizes = {key_of(name): features.shapes[name][0] for name, kind in features.kinds.items() if kind != _IMAGE}
    sizes[ACTION] = config.action_dim
    maps: dict[str, Tensor] = {}
    modes: dict[str, str] = {}
    for name, kind in [*features.kinds.items(), (ACTION, _ACTION)]:
        step, key = (after if kind == _ACTION else before), key_of(name)
        mode = modes[key] = step.mode(name, kind)
        if mode not in NEEDED or (kind == _IMAGE and mode != "IDENTITY"):
            possible = "IDENTITY" if kind == _IMAGE else ", ".join(NEEDED)
            raise CheckpointError(
                f"{step.path} normalises {name!r} with {mode}; what can be converted there is {possible}."
            )
        if kind == _IMAGE:
            continue
        statistics, where = step.statistics_of(name, sizes[key], NEEDED[mode]), f"{step.path}, {name!r}"
        if mode == "IDENTITY":
            pair = torch.ones(sizes[key]), torch.zeros(sizes[key])
        elif kind == _ACTION:
            pair = action_maps(mode, statistics, where)
        else:
            pair = observation_maps(mode, statistics, step.eps, where)
        maps[f"scale_{key}"], maps[f"offset_{key}"] = pair
    normalizer = Normalizer(sizes)
    normalizer.load_state_dict(maps)
    return normalizer, modes


def _load_weights(policy: Policy, path: Path, averaged: bool) -> dict[str, Any]:
    """Put the weights with which LeRobot decides into the policy and return what there is to say of them."""
    own = policy.state_dict()
    expected = {f"{_TRAINED}{name}": tensor for name, tensor in own.items()}
    if averaged:
        expected |= {f"{_AVERAGED}{name}": tensor for name, tensor in own.items()} | {_UPDATES: torch.tensor(0)}
    state = read_tensors(path, expected)
    updates = int(state[_UPDATES]) if averaged else 0
    prefix = _AVERAGED if updates > 0 else _TRAINED
    policy.load_state_dict({name: state[f"{prefix}{name}"] for name in own})
    for name, buffer in policy.normalizer.named_buffers():
        if not bool((buffer == (1.0 if name.startswith("scale_") else 0.0)).all()):
            raise CheckpointError(
                f"{path}: {prefix}normalizer.{name} is not the identity, as it is where LeRobot's processors normalise."
            )
    digest = file_sha256(path)
    return {"weights": "trained" if updates == 0 else "averaged", "averaged_updates": updates, "model_sha256": digest}
