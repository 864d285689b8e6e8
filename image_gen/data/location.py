"""Where image data lie: a path, the folder DRIFT_POLICY_DATA, or the cache."""

from __future__ import annotations

import os
from pathlib import Path

from drift_policy.data.cache import cache_folder
from drift_policy.errors import DataError

DATA_VARIABLE = "DRIFT_POLICY_DATA"


def find_data(name: str, path: str | Path | None, how_to_get: str) -> Path:
    """Return the folder of a data set.

    Order: `path`; `name` in the folder that DRIFT_POLICY_DATA names; `name` in the cache (DRIFT_POLICY_CACHE, else the
    operating system's cache folder).

    Args:
        name: of the data set, and of its folder.
        path: given by the user, or None.
        how_to_get: end of the message if nothing is there.

    Raises:
        DataError: no such folder; says where it was looked for and how to get the data.
        ConfigurationError: the cache's folder is needed and cannot be known.
    """
    if path is not None:
        candidates = [Path(path).expanduser()]
    else:
        named = os.environ.get(DATA_VARIABLE)
        candidates = [Path(named).expanduser() / name] if named else []
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    if path is None:  # asked for last: it may need a package that data elsewhere do not
        candidates.append(cache_folder() / name)
        if candidates[-1].is_dir():
            return candidates[-1]
    looked = " and ".join(str(candidate) for candidate in candidates)
    advice = f"\nThe folder around it is then named by {DATA_VARIABLE}, or give dataset.path=... ."
    where = advice if path is None else ""
    raise DataError(f"'{name}' was looked for in {looked}, but is not there: {how_to_get}{where}")
