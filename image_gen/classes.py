"""The classes that a generator draws, or that a classifier tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Classes(NamedTuple):
    """Numbered classes."""

    number: int
    names: list[str] | None = None  # one a class; None if they are unknown

    def difference(self, others: Classes) -> str | None:
        """Say how other classes differ from these; None if they are the same, as far as both have names."""
        if self.number != others.number:
            return f"{self.number} classes instead of {others.number}"
        if self.names is None or others.names is None or self.names == others.names:
            return None
        place = next(place for place, pair in enumerate(zip(self.names, others.names, strict=True)) if len({*pair}) > 1)
        return f"class {place} is {self.names[place]!r} instead of {others.names[place]!r}"


def stored_classes(metadata: Mapping[str, Any], number: int) -> Classes:
    """Return `number` classes with the names that the metadata of a checkpoint give them, if they do."""
    names = metadata.get("class_names")
    if not isinstance(names, list) or len(names) != number:
        return Classes(number)
    return Classes(number, [str(name) for name in names])
