"""The folder where downloads and decoded arrays are kept."""

import os
from pathlib import Path

from drift_policy.errors import ConfigurationError

CACHE_VARIABLE = "DRIFT_POLICY_CACHE"


def cache_folder() -> Path:
    """Return the folder named by DRIFT_POLICY_CACHE, or the platform's (~/.cache/drift_policy on Linux).

    Raises:
        ConfigurationError: DRIFT_POLICY_CACHE is not set, and the package that knows the platform's folder is missing.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    try:
        import platformdirs  # here: a machine that names its folder needs no package for it
    except ImportError as error:
        raise ConfigurationError(
            "The operating system's cache folder is known by the package platformdirs, which is not installed: pip "
            f"install platformdirs, or name a folder by the environment variable {CACHE_VARIABLE}."
        ) from error
    return platformdirs.user_cache_path("drift_policy")
