"""Whether a value that was read from a file is what a field of a dataclass says."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin


def has_type(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has the type of a field; nothing is converted, but integers are floats."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(has_type(value, part) for part in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(has_type(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
