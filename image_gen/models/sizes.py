"""Checks of network sizes, whether they come from a user or from a downloaded file."""

from drift_policy.errors import require


def require_range(kind: str, name: str, value: int, least: int, most: int) -> None:
    """Require least <= value <= most; `most` keeps a damaged or hostile configuration from filling the memory.

    Raises:
        ConfigurationError: outside that range.
    """
    require(least <= value <= most, f"{kind}: {name} must be between {least} and {most}, but is {value}.")
