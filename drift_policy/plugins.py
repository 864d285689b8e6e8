"""Modules of the user that register backbones, heads, networks or environments of their own."""

from collections.abc import Sequence
from importlib import import_module

from drift_policy.errors import ConfigurationError


def import_plugins(names: Sequence[str]) -> None:
    """Import the modules that a command line or configuration file names; a checkpoint never does.

    Raises:
        ConfigurationError: a module is not there, or fails to import.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigurationError(
                f"plugins names the module {name!r}, which cannot be imported ({error}): install it, or add its folder "
                "to PYTHONPATH."
            ) from error
