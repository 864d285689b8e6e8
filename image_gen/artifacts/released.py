"""The authors' published artifacts: `metadata.json` and `ema_params.msgpack` in one folder."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from drift_policy.errors import CheckpointError
from image_gen.artifacts.checks import Kind, Model, build_model, check_tensors, kind_of, read_json
from image_gen.artifacts.names import from_released, released_tensors, to_released

METADATA_FILE = "metadata.json"
PARAMETERS_FILE = "ema_params.msgpack"
_KINDS: dict[Any, Kind] = {"gen": "generator", "mae": "mae"}
# Precision of the authors' computation; here the caller chooses it (autocast, .to(dtype)).
_PRECISION_SETTINGS = ("use_bf16", "attn_fp32")


def is_released(folder: Path) -> bool:
    """Whether `folder` holds a released artifact."""
    return (folder / METADATA_FILE).is_file() or (folder / PARAMETERS_FILE).is_file()


def read_released(folder: Path) -> tuple[Model, dict[str, Any]]:
    """Return the model of a released artifact, with its weights, and what else its metadata say.

    Raises:
        CheckpointError: a file is missing, damaged or truncated; an array is missing, unknown, of another shape or
            type, or not finite.
    """
    from image_gen.artifacts.flax_tree import read_tree

    content = read_json(folder / METADATA_FILE)
    config = content.get("model_config")
    if content.get("kind") not in list(_KINDS) or not isinstance(config, dict):
        raise CheckpointError(
            f"{folder / METADATA_FILE} describes the kind {content.get('kind')!r}; expected 'gen' or 'mae' with an "
            "entry 'model_config'."
        )
    settings = {name: value for name, value in config.items() if name not in _PRECISION_SETTINGS}
    model = build_model(_KINDS[content["kind"]], settings, folder / METADATA_FILE)

    places = released_tensors(model)
    found = read_tree(folder / PARAMETERS_FILE)
    tensors: dict[str, Tensor] = {}
    for name, place in places.items():
        if place.path in found:
            tensors[name] = from_released(found.pop(place.path), place.layout)
    tensors |= found  # what is left has no place in the network, which the check reports
    expected = model.state_dict()
    check_tensors(tensors, expected, folder / PARAMETERS_FILE, METADATA_FILE, {n: p.path for n, p in places.items()})
    model.load_state_dict(tensors, assign=True)
    return model, {name: content[name] for name in ("step", "ema_decay", "backend") if name in content}


def write_released(model: Model, folder: Path, metadata: dict[str, Any]) -> Path:
    """Write `model` in the authors' format to `folder` (made if absent) and return the folder."""
    from image_gen.artifacts.flax_tree import write_tree

    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    places = released_tensors(model)
    write_tree(folder / PARAMETERS_FILE, {p.path: to_released(state[name], p.layout) for name, p in places.items()})
    content = {
        "format": "flax.msgpack",
        "kind": next(name for name, kind in _KINDS.items() if kind == kind_of(model)),
        "backend": "torch",
        "ema_decay": metadata.get("ema_decay"),
        "step": metadata.get("step"),
        "path": PARAMETERS_FILE,
        "model_config": _released_config(model),
    }
    (folder / METADATA_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def _released_config(model: Model) -> dict[str, Any]:
    values = asdict(model.config)
    names = {field.name for field in fields(model.config)}
    precision = {"use_bf16": False, "attn_fp32": True} if "use_rope" in names else {"use_bf16": False}
    return values | precision
