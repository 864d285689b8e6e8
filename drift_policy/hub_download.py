"""Files of a repository on the Hugging Face Hub: hf://owner/name, with @revision behind it to stay at one version."""

from collections.abc import Sequence
from pathlib import Path

from drift_policy.errors import CheckpointError

HUB_PREFIX = "hf://"


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "owner/name@revision" into the name and the branch, tag or commit; without one, the newest version counts.

    Raises:
        CheckpointError: nothing stands after the @.
    """
    place, separator, revision = name.partition("@")
    if separator and not revision:
        raise CheckpointError(f"{HUB_PREFIX}{name} has no revision after the @: give a branch, a tag or a commit.")
    return place, revision or None


def download_snapshot(repository: str, files: Sequence[str], revision: str | None, *, asked: str) -> Path:
    """Download files of a repository, as far as it has them, and return their folder.

    Args:
        repository: "owner/name".
        files: paths in the repository.
        revision: branch, tag or commit; None is the newest version of the main branch.
        asked: what the user gave behind hf://, for messages.

    Raises:
        CheckpointError: huggingface_hub is missing, or the Hub does not give them.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            "Loading from the Hugging Face Hub needs huggingface_hub: pip install 'drift-policy[hub]'."
        ) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files), revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{HUB_PREFIX}{asked} could not be read from the Hugging Face Hub: {error}") from error


def folder_of_weights(weights: str | Path, files: Sequence[str]) -> Path:
    """Return a folder with published weights: `weights` itself, or files of the repository of that name on the Hub.

    diffusers would do the same, but try again for a minute where there is no network.

    Args:
        weights: a folder, or "owner/name".
        files: names of what is needed.

    Raises:
        CheckpointError: see `download_snapshot`.
    """
    folder = Path(weights)
    return folder if folder.is_dir() else download_snapshot(str(weights), files, None, asked=str(weights))
