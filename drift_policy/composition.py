"""What Hydra says of a configuration, in words of this project: its errors, and the options of its groups."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from drift_policy.cli import HYDRA_RAISES, NOT_BY_USER, end_of_composition
from drift_policy.errors import ConfigurationError

_ADVICE = "To append to your "  # how Hydra's lines begin that advise +setting=value


def options_of(*groups: str) -> str:
    """Return a line for each configuration group of the running program, with its options."""
    loader = GlobalHydra.instance().config_loader()
    return "\n".join(f"{group}: {', '.join(sorted(loader.get_group_options(group)))}" for group in groups)


# For hydra.help.template: Hydra's $APP_CONFIG_GROUPS has the groups of all programs below configs/.
OmegaConf.register_new_resolver("options_of", options_of, replace=True)


@contextmanager
def composition_errors(kind: type[Any], complete: Sequence[str] = ()) -> Iterator[None]:
    """Turn what Hydra raises before it runs the function of a program into errors for the user.

    Of a setting that does not exist Hydra itself says to append it with a plus, which is seldom possible.

    Args:
        kind: the dataclass of the whole configuration.
        complete: sections that are free mappings in `kind`, but whose files name all settings that there are.

    Raises:
        ConfigurationError: a setting that does not exist, with the closest ones that do, or another error of Hydra.
    """
    if HYDRA_RAISES in os.environ:  # the user asks for whole tracebacks
        yield
        return
    os.environ |= {HYDRA_RAISES: "1", NOT_BY_USER: "1"}
    try:
        yield
    except CompactHydraException as error:
        raise ConfigurationError(_explained(error, kind, complete)) from error
    finally:
        end_of_composition()


def _explained(error: CompactHydraException, kind: type[Any], complete: Sequence[str]) -> str:
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        *path, key = str(cause.full_key).split(".")
        known = [str(name) for name in cause.parent_node]
        added = str(error).partition(_ADVICE)[2].partition(" use ")[2].strip()  # how Hydra's advice ends
        return _unknown_setting(path, key, known, _section(kind, path), added, bool(path) and path[0] in complete)
    lines = [line for line in str(error).splitlines() if not line.startswith(_ADVICE)]
    return "\n".join([*lines, *([] if cause is None else [str(cause)])])


def _unknown_setting(path: list[str], key: str, known: list[str], section: Any, added: str, is_complete: bool) -> str:
    """Say that a setting does not exist, which ones do, and how to add it if that is possible.

    Args:
        path: the sections that it was looked for in.
        key: its name there.
        known: the names that the files give a value.
        section: type of the section, as far as `_section` knows it.
        added: the argument that adds the setting.
        is_complete: whether no others can be added, even if the type allows it.
    """
    name = ".".join([*path, key])
    of_type = [field.name for field in fields(section)] if is_dataclass(section) else []
    if key in of_type:
        return f"{name} has no value in the files of this configuration: add it with a plus, {added} ."
    names = list(dict.fromkeys([*known, *of_type]))
    close = get_close_matches(key, names)
    place = ".".join(path) or "the configuration"
    text = f"{name} does not exist"
    if close:
        text += f"; did you mean {' or '.join('.'.join([*path, other]) for other in close)}?"
    else:
        text += f"; {place} has {', '.join(names) or 'no settings'}."
    if get_origin(section) is dict and not is_complete:
        text += f" {place} takes names of your own too: with a plus, {added} ."
    return text


def _section(kind: Any, path: list[str]) -> Any:
    """Return the type of a section, None where the types do not say it."""
    for name in path:
        if is_dataclass(kind):
            kind = get_type_hints(kind).get(name)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return None
        if isinstance(kind, UnionType):
            kind = next(option for option in get_args(kind) if option is not NoneType)
    return kind
