"""The folder where downloads and decoded arrays are kept."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "DRIFT_POLICY_CACHE"


def cache_folder() -> Path:
    """Return the folder named by DRIFT_POLICY_CACHE, or the platform's (~/.cache/drift_policy on Linux)."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else platformdirs.user_cache_path("drift_policy")
