"""What the command-line programs share: the console, resolved configurations, and errors without tracebacks."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError, RunStoppedError, UserError

Config = TypeVar("Config")
# Variables of the environment: with the first one Hydra raises its errors instead of printing them; the second one says
# that it was `composition.composition_errors` that set it.
HYDRA_RAISES = "HYDRA_FULL_ERROR"
NOT_BY_USER = "DRIFT_POLICY_READS_HYDRA_ERRORS"


def of_task(name: str, default: Any, *, _root_: DictConfig) -> Any:
    """Return what the task says of a setting of the policy, or the policy's own where it says nothing or null."""
    value = OmegaConf.select(_root_, f"task.{name}")
    return default if value is None else value


# For configs/policy: ${of_task:kernel,affinity}. `oc.select` would give null where a task says null.
OmegaConf.register_new_resolver("of_task", of_task, replace=True)


@contextmanager
def command_line() -> Iterator[Console]:
    """Give a console; end the program with one paragraph instead of a traceback on what a user can act on.

    That is a `UserError`, which brings its exit code, a full disk, and Ctrl-C.
    """
    console = Console()
    try:
        yield console
    except UserError as error:
        _exit(str(error), error.title, error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _exit(f"The disk is full: {error}. Free some space and run the command again.", "error", UserError.exit_code)
    except KeyboardInterrupt:
        _exit("Interrupted.", RunStoppedError.title, RunStoppedError.exit_code)


def _exit(message: str, title: str, code: int) -> None:
    Console(stderr=True).print(Panel(Text(message), title=title, border_style="red", title_align="left"))
    sys.exit(code)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, interpolations filled in; its composition ends here.

    Raises:
        ConfigurationError: a required value is missing or an interpolation leads nowhere.
    """
    end_of_composition()
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigurationError(
            f"{error.full_key or 'The configuration'} has no usable value: {str(error).splitlines()[0].rstrip('.')}. "
            f"Set it on the command line: {error.full_key or 'key'}=... ."
        ) from error


def end_of_composition() -> None:
    """Let Hydra report as ever what the function of the program raises, here and in programs that this one starts."""
    if os.environ.pop(NOT_BY_USER, None):
        os.environ.pop(HYDRA_RAISES, None)


def parse_arguments(kind: type[Config], arguments: Sequence[str], usage: str) -> Config:
    """Return the dataclass `kind` filled from `setting=value` arguments; --help prints `usage` and ends the program.

    For the programs that come with the package: those with a configuration folder use Hydra.

    Raises:
        ConfigurationError: an argument that is no setting=value, an unknown setting, or a value that does not fit.
    """
    if {"-h", "--help"} & set(arguments):
        print(usage)
        sys.exit()
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        if not separator or not name.isidentifier():
            raise ConfigurationError(f"{argument!r} is not understood: give setting=value; --help shows the settings.")
    return parse_config(kind, OmegaConf.from_dotlist(list(arguments)))
