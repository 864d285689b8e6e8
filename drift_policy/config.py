"""Checked conversion of plain mappings (YAML, JSON, command line) to configuration dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, cast

from drift_policy.errors import ConfigurationError

if TYPE_CHECKING:
    from omegaconf import DictConfig

Config = TypeVar("Config")


def parse_config(kind: type[Config], values: Mapping[str, Any] | DictConfig, where: str = "") -> Config:
    """Return the dataclass `kind` filled with `values`.

    Args:
        kind: a dataclass whose field types OmegaConf understands.
        values: field -> value; fields that are left out keep their defaults.
        where: the name of this part of the configuration, for error messages, for example "policy.head"; empty for
            the whole of it.

    Raises:
        ConfigurationError: an unknown field, a value of another type, or a required field without value.
    """
    # Imported here, so that a policy that is configured in Python gets along without OmegaConf.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # Config is a dataclass
    for key in values:
        if str(key) not in known:
            raise ConfigurationError(f"{_join(where, str(key))} does not exist{_suggestion(str(key), known)}.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            name = _join(where, missing[0])
            raise ConfigurationError(f"{name} has no value: set {name}=... .")
        return cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key = _join(where, error.full_key or "") or "The configuration"
        text = _first_line(error)
        if "is not a ListConfig" in text:
            text = f"a list is expected, {key}=[...]."
        raise ConfigurationError(f"{key} does not fit: {text}") from error


def with_defaults(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values of the dataclass `kind` with the defaults of the fields that they lack, nested ones too.

    What is no field stays, and values that fit none of its types are returned as they are: to compare, not to use.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        filled = OmegaConf.merge(OmegaConf.structured(kind, flags={"struct": False}), values)
        return cast(dict[str, Any], OmegaConf.to_container(filled))
    except OmegaConfBaseException:
        return dict(values)


def parse_choice(values: Mapping[str, Any] | DictConfig, where: str) -> tuple[str, dict[str, Any]]:
    """Split {"name": ..., other settings} into the name and the settings.

    Raises:
        ConfigurationError: there is no name.
    """
    settings = {str(key): value for key, value in values.items()}
    name = settings.pop("name", None)
    if not isinstance(name, str) or name == "???":  # how OmegaConf writes a missing value
        raise ConfigurationError(f"{where}.name has no value: it says which {where} to use.")
    return name, settings


def _join(where: str, key: str) -> str:
    return ".".join(part for part in (where, key) if part)


def _suggestion(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}" if close else f"; expected one of {', '.join(known) or 'nothing'}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
