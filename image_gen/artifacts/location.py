"""Where an artifact lies: a folder, a run folder, or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from drift_policy.errors import CheckpointError
from drift_policy.hub_download import HUB_PREFIX, download_snapshot, split_revision
from image_gen.artifacts.checks import Kind
from image_gen.artifacts.released import METADATA_FILE, PARAMETERS_FILE, is_released

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
RELEASE_REPOSITORY = "Goodeat/drifting"  # the authors' weights: models/gen/jax/<name> and models/mae/jax/<name>
_RELEASE_FOLDERS: dict[Kind, str] = {"generator": "models/gen/jax", "mae": "models/mae/jax"}
TRAINED_FOLDER = "checkpoints/last"  # of a run of ours
_INSIDE = ("", TRAINED_FOLDER, "params_ema")  # released run folders keep the averaged weights in params_ema


def find_artifact(source: str | Path, kind: Kind) -> Path:
    """Return the folder with the files of an artifact.

    Args:
        source: a folder (or the run folder around it); "hf://<name>", one of the authors' published models such as
            "hf://latent_L_sota"; or "hf://<owner>/<repository>[/<folder>]"; "@<revision>" behind either stays at one
            branch, tag or commit.
        kind: what is looked for; decides in which part of the authors' repository.

    Raises:
        CheckpointError: nothing is there, or the Hub cannot be read.
    """
    if str(source).startswith(HUB_PREFIX):
        return _download(str(source).removeprefix(HUB_PREFIX), kind)
    folder = Path(source)
    for inside in _INSIDE:
        if (folder / inside / CONFIG_FILE).is_file() or is_released(folder / inside):
            return folder / inside
    if folder.is_dir():
        what = f"holds neither {CONFIG_FILE} nor {METADATA_FILE}"
    else:
        what = "is a file, no folder" if folder.is_file() else "does not exist"
    raise CheckpointError(
        f"{folder} {what}. Give the folder of a run, a folder with {CONFIG_FILE} and {MODEL_FILE}, a released one with "
        f"{METADATA_FILE} and {PARAMETERS_FILE}, or hf://<name>."
    )


def _download(name: str, kind: Kind) -> Path:
    place, revision = split_revision(name)
    repository, folder = _split(place, kind)
    files = [CONFIG_FILE, MODEL_FILE, METADATA_FILE, PARAMETERS_FILE]
    wanted = [f"{folder}/{file}" if folder else file for file in files]
    snapshot = download_snapshot(repository, wanted, revision, asked=name)
    found = snapshot / folder
    if not ((found / CONFIG_FILE).is_file() or is_released(found)):
        raise CheckpointError(
            f"hf://{name}: the repository {repository} has no {kind} in its folder {folder or '/'}. Look at "
            f"https://huggingface.co/{repository}/tree/main for the names there."
        )
    return found


def _split(name: str, kind: Kind) -> tuple[str, str]:
    """Split a Hub name into the repository and the folder inside it."""
    parts = name.strip("/").split("/")
    if not all(parts) or ".." in parts:
        raise CheckpointError(f"hf://{name} is not a name: give hf://<name> or hf://<owner>/<repository>[/<folder>].")
    if len(parts) == 1:
        return RELEASE_REPOSITORY, f"{_RELEASE_FOLDERS[kind]}/{parts[0]}"
    return "/".join(parts[:2]), "/".join(parts[2:])
