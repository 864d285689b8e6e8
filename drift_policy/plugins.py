"""Modules of the user that register backbones, heads, networks or environments of their own."""

from collections.abc import Sequence
from importlib import import_module

from drift_policy.errors import ConfigurationError, require


def import_plugins(names: Sequence[str]) -> None:
    """Import the modules that a command line or configuration file names; a checkpoint never does.

    Raises:
        ConfigurationError: not the name of a module, or a module that is not there or lacks a package it needs.
    """
    for name in names:
        require(
            all(part.isidentifier() for part in name.split(".")),
            f"plugins names {name!r}, which is no module: give a name such as my_package.my_backbones.",
        )
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigurationError(
                f"plugins names the module {name!r}, which cannot be imported ({error}): install it, or add its folder "
                "to PYTHONPATH."
            ) from error
