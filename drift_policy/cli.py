"""What the command-line programs share: the console, resolved configurations, and errors without tracebacks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from drift_policy.errors import ConfigurationError, UserError


@contextmanager
def command_line() -> Iterator[Console]:
    """Give a console; print a `UserError` as one paragraph on standard error and exit with its code."""
    console = Console()
    try:
        yield console
    except UserError as error:
        Console(stderr=True).print(Panel(Text(str(error)), title=error.title, border_style="red", title_align="left"))
        sys.exit(error.exit_code)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, interpolations filled in.

    Raises:
        ConfigurationError: a required value is missing or an interpolation leads nowhere.
    """
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigurationError(
            f"{error.full_key or 'The configuration'} has no usable value: {str(error).splitlines()[0]} "
            f"Set it on the command line: {error.full_key or 'key'}=... ."
        ) from error
