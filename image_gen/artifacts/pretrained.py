"""Generators and masked autoencoders on disk: config.json and model.safetensors, or a released artifact."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from drift_policy.errors import CheckpointError
from drift_policy.tensor_files import save_file
from image_gen.artifacts.checks import Kind, Model, build_model, check_tensors, kind_of, read_json
from image_gen.artifacts.location import CONFIG_FILE, MODEL_FILE, find_artifact
from image_gen.artifacts.released import is_released, read_released
from image_gen.models import MAE, DiT

FORMAT_VERSION = 1


def load_generator(source: str | Path, device: str | torch.device = "cpu") -> DiT:
    """Return a generator in evaluation mode.

    Args:
        source: a folder that `save_pretrained` wrote; a folder with the authors' `ema_params.msgpack` and
            `metadata.json` (or the run folder around it); "hf://<name>" for one of their published models
            ("latent_B_sota", "latent_L_sota", "pixel_B_sota", "pixel_L_sota", "ablation"); or
            "hf://<owner>/<repository>[/<folder>]".
        device: where to put it.

    Raises:
        CheckpointError: files are missing, damaged, of a newer format, or of another network.
    """
    model, _ = load_model(source, "generator")
    assert isinstance(model, DiT)  # load_model has checked the kind
    return model.to(device)


def load_mae(source: str | Path, device: str | torch.device = "cpu") -> MAE:
    """Return a masked autoencoder in evaluation mode; see `load_generator`.

    The published ones are "hf://mae_latent_256", "hf://mae_latent_640" and "hf://mae_pixel_640".
    """
    model, _ = load_model(source, "mae")
    assert isinstance(model, MAE)  # load_model has checked the kind
    return model.to(device)


def load_model(source: str | Path, kind: Kind) -> tuple[Model, dict[str, Any]]:
    """Return a network on the CPU, in evaluation mode, with the metadata beside it (step, decay of the average, ...).

    Raises:
        CheckpointError: see `load_generator`.
    """
    folder = find_artifact(source, kind)
    both = (folder / CONFIG_FILE).is_file() and is_released(folder)
    if both:
        raise CheckpointError(f"{folder} holds two checkpoints, one of each format: move one of them elsewhere.")
    model, metadata = read_released(folder) if is_released(folder) else _read_own(folder)
    if kind_of(model) != kind:
        raise CheckpointError(
            f"{folder} holds a {kind_of(model)}, but a {kind} was asked for: use load_{kind_of(model)}, or give "
            "another folder."
        )
    return model.eval(), metadata


def save_model(model: Model, folder: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write `model` to `folder` (made if absent) and return the folder.

    Args:
        model: a generator or masked autoencoder.
        folder: for config.json and model.safetensors.
        metadata: JSON values to keep beside the weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / MODEL_FILE)
    content = {
        "format_version": FORMAT_VERSION,
        "kind": kind_of(model),
        "model": asdict(model.config),
        "metadata": metadata or {},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def _read_own(folder: Path) -> tuple[Model, dict[str, Any]]:
    content = read_json(folder / CONFIG_FILE)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has format version {version!r}, but this release reads version {FORMAT_VERSION}. "
            "Update drift-policy, or write the checkpoint again with `python -m image_gen.artifacts.convert`."
        )
    settings, metadata = content.get("model"), content.get("metadata")
    if content.get("kind") not in ("generator", "mae") or not (
        isinstance(settings, dict) and isinstance(metadata, dict)
    ):
        raise CheckpointError(f"{folder / CONFIG_FILE} describes neither a generator nor an MAE: give another folder.")
    model = build_model(content["kind"], settings, folder / CONFIG_FILE)
    path = folder / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the whole folder.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or download it again.") from error
    check_tensors(tensors, model.state_dict(), path, CONFIG_FILE)
    model.load_state_dict(tensors, assign=True)
    return model, metadata
