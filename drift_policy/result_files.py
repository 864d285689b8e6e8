"""The files that trainings and evaluations leave: can they be written, and what becomes of earlier ones."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from drift_policy.errors import ConfigurationError, require

MANIFEST = "manifest.json"  # what a training or an evaluation writes at its end


def require_writable(path: Path, setting: str = "output") -> None:
    """Require that a file can be written, before hours of work and not after; nothing is left behind.

    Args:
        path: the file that a setting names, or that lies in the folder that it names.
        setting: what the user calls it, for messages.

    Raises:
        ConfigurationError: it is a folder, or it or its folder cannot be written.
    """
    another = f"choose another, {setting}=... ."
    try:
        with suppress(FileNotFoundError):
            path.stat()  # refuses what can be no name
        require(not path.is_dir(), f"{path} is a folder, but a file is to be written there: {another}")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        require(not path.exists() or os.access(path, os.W_OK), f"{path} is write-protected: {another}")
        with tempfile.TemporaryFile(dir=folder):  # what a user may do, file systems do not tell beforehand
            pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ConfigurationError(f"{path} cannot be written ({error}): {another}") from error


def keep_earlier(place: Path, manifest: Path, content: Mapping[str, Any], compared: Sequence[str]) -> Path | None:
    """Rename what an earlier evaluation left in a place, unless it evaluated the same by the same settings.

    Args:
        place: the file or folder that is about to be written.
        manifest: the JSON file there, `place` itself or in it.
        content: of the new manifest, as far as it is known.
        compared: keys of what must be equal for the earlier result to be replaced.

    Returns:
        The new name: the old one with the first number that is free; None if nothing is renamed.
    """
    if not manifest.is_file():
        return None
    try:
        earlier = json.loads(manifest.read_text())
    except ValueError:  # whatever it is, it is not a result of these settings
        earlier = None
    now = json.loads(json.dumps({key: content.get(key) for key in compared}))
    if isinstance(earlier, dict) and all(earlier.get(key) == now[key] for key in compared):
        return None
    name, suffix = (place.name, "") if place.is_dir() else (place.stem, place.suffix)
    names = (place.with_name(f"{name}_{number}{suffix}") for number in count(1))
    kept = next(path for path in names if not path.exists())
    place.rename(kept)
    return kept
