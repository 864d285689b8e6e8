"""Policies on disk: config.json and model.safetensors. Nothing that is loaded is ever executed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.hub_download import HUB_PREFIX, download_snapshot, split_revision
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.tensor_files import save_file

if TYPE_CHECKING:
    from drift_policy.policy import Policy

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
INDEX_FILE = "checkpoints/index.json"


def save_policy(policy: "Policy", folder: str | Path) -> Path:
    """Write `policy` to `folder` (made if absent) and return the folder.

    Raises:
        CheckpointError: its mirror was never fitted, so that nobody could use what is written.
    """
    if policy.mirror is not None:
        policy.mirror.require_fitted()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    save_file(tensors, folder / MODEL_FILE)
    content = {
        "format_version": FORMAT_VERSION,
        "policy": policy.config.to_mapping(),
        "metadata": policy.metadata,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> "Policy":
    """Return the policy stored at `path`, in evaluation mode, on a CPU laid out for the single images of a robot loop.

    Args:
        path: a checkpoint folder (config.json and model.safetensors), a run folder (its best checkpoint by
            rollout score or, without an environment, by the error of held-out decisions; the last one if none was
            scored), or "hf://owner/name" on the Hugging Face Hub, with "@revision" behind it for one branch, tag or
            commit.
        device: where to put it.

    Raises:
        CheckpointError: the files are missing, damaged, of a newer format, or do not fit together.
    """
    from drift_policy.policy import build_policy

    folder = resolve_checkpoint(path)
    content = _read_config(folder / CONFIG_FILE)
    try:
        policy = build_policy(policy_config_from_mapping(content["policy"]), content.get("metadata"))
    except (ConfigurationError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} does not describe a policy: {error}") from error
    policy.load_state_dict(read_tensors(folder / MODEL_FILE, policy.state_dict()))
    policy = policy.to(device).eval()
    if policy.device.type == "cpu":
        policy.encoder.prefer_single_images()
    return policy


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint folder that `path` means; see `load_policy`."""
    if str(path).startswith(HUB_PREFIX):
        asked = str(path).removeprefix(HUB_PREFIX)
        repository, revision = split_revision(asked)
        return download_snapshot(repository, [CONFIG_FILE, MODEL_FILE], revision, asked=asked)
    folder = Path(path)
    if (folder / CONFIG_FILE).is_file():
        return folder
    if (folder / INDEX_FILE).is_file():
        return _best_of_run(folder / INDEX_FILE)
    what = "holds no config.json and no checkpoints/index.json" if folder.is_dir() else "does not exist"
    what = "is a file" if folder.is_file() else what
    raise CheckpointError(
        f"{folder} {what}. Give a run folder (runs/<task>/<name>), a checkpoint folder inside it, or hf://owner/name."
    )


def read_tensors(path: Path, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read a safetensors file that must hold exactly the tensors of `expected`, with finite numbers.

    Raises:
        CheckpointError: the file is missing or damaged, or a tensor is missing, extra or of another shape.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the whole checkpoint folder.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or download it again.") from error
    differing = sorted(expected.keys() ^ tensors.keys())
    if differing:
        where = "lacks" if differing[0] in expected else "has the unknown tensor"
        raise CheckpointError(
            f"{path} {where} {differing[0]} ({len(differing)} names differ): it is of another policy."
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensor.shape)}, but config.json asks for {list(expected[name].shape)}."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; the training that wrote it diverged.")
    return tensors


def _best_of_run(index_file: Path) -> Path:
    """Return the best checkpoint of a run, or its last one if none was scored."""
    index = _read_json(index_file)
    name = index.get("best") or index.get("last") if isinstance(index, dict) else None
    if not isinstance(name, str) or not (index_file.parent / name).is_dir():
        raise CheckpointError(
            f"{index_file} names the checkpoint {name!r}, which is not there. Give one of the folders in "
            f"{index_file.parent} instead of the run."
        )
    return index_file.parent / name


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the whole checkpoint folder.")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): copy or download it again.") from error


def _read_config(path: Path) -> dict[str, Any]:
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("policy"), dict):
        raise CheckpointError(f"{path} does not describe a policy: it has no entry 'policy'.")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, but this release of drift-policy reads version {FORMAT_VERSION}. "
            "Update the package, or export the checkpoint with the release that wrote it."
        )
    return content
