"""Errors that a user can act on: the command line prints their message, without a traceback and exits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class UserError(Exception):
    """Something the user gave does not fit; the message says what was given, what is expected and what to do."""

    title: ClassVar[str] = "error"  # heading of the message
    exit_code: ClassVar[int] = 2


class RunStoppedError(UserError):
    """The user stopped a run; the message says how to go on."""

    title = "stopped"
    exit_code = 130  # as shells report an interrupted program


class ConfigurationError(UserError):
    """A configuration value, name or combination that cannot work."""


class DataError(UserError):
    """Demonstrations that are missing, damaged or of the wrong shape."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, of another format, or does not fit the task."""


class EnvironmentProcessError(UserError):
    """The process of an environment that ended by itself, for lack of memory or by a fault of the simulator."""


def require(valid: bool, message: str) -> None:
    """Raise ConfigurationError(message) unless `valid`."""
    if not valid:
        raise ConfigurationError(message)


@contextmanager
def as_configuration_error() -> Iterator[None]:
    """Turn the ValueError of a check of the drift core, which knows no errors of users, into a ConfigurationError."""
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
