"""What observations must look like, in words: the same for arrays and for tensors. Needs the standard library alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

RANGE_TOLERANCE = 1e-3  # a float image this far outside 0..1 is rounding, not another range
MISSING_VALUE = "holds NaN or infinity: a value is missing."


class Key(Protocol):
    """One key of an observation."""

    @property
    def kind(self) -> str:
        """State, or image."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape of one step."""


class Numbers(Protocol):
    """An array or a tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""


Value = TypeVar("Value", bound=Numbers)


def as_mapping(keys: Mapping[str, Key], obs: Any) -> Mapping[str, Any]:
    """Accept the bare array of a policy that has a single observation key.

    Raises:
        ValueError: it has several.
    """
    if isinstance(obs, Mapping):
        return obs
    if len(keys) > 1:
        raise ValueError(f"obs must be a dictionary with the keys {list(keys)}.")
    return dict.fromkeys(keys, obs)


def require_key(given: Mapping[str, Any], key: str) -> Any:
    """Return an entry of an observation.

    Raises:
        ValueError: it is missing.
    """
    if key not in given:
        raise ValueError(f"obs lacks the key {key!r}: it has {sorted(given)}.")
    return given[key]


def check_step(name: str, key: Key, value: Numbers) -> None:
    """Require the shape [...] of one step, without batch.

    Raises:
        ValueError: another shape.
    """
    if list(value.shape) != list(key.shape):
        raise ValueError(
            f"obs[{name!r}] must have shape {list(key.shape)} (one step, without batch), but has {list(value.shape)}."
            f"{_channels_hint(key, value)}"
        )


def check_steps(keys: Mapping[str, Key], values: Mapping[str, Value], steps: int) -> None:
    """Require the shapes [B, T, ...], with one B for all keys.

    Raises:
        ValueError: another shape.
    """
    batch: int | None = None
    for name, key in keys.items():
        found, expected = list(values[name].shape), [steps, *key.shape]
        if len(found) != len(expected) + 1 or found[1:] != expected:
            meaning = "numbers" if key.kind == "state" else "channels, height, width"
            raise ValueError(
                f"obs[{name!r}] must have shape [B, {', '.join(map(str, expected))}] (batch, observation steps, "
                f"{meaning}), but has {found}.{_channels_hint(key, values[name])}"
            )
        if batch is not None and found[0] != batch:
            raise ValueError(f"obs[{name!r}] has batch size {found[0]}, but another key has {batch}.")
        batch = found[0]


def check_range(name: str, low: float, high: float) -> None:
    """Require that a float image lies in 0..1.

    Raises:
        ValueError: it does not, or holds NaN.
    """
    # Written so that NaN, with which every comparison fails, is refused.
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(
            f"{name} is a float image with values from {low:g} to {high:g}: give float images in 0..1, or uint8."
        )


def refuse_type(name: str, dtype: object) -> NoReturn:
    """Say that an image is neither bytes nor floats.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is an image of {dtype}: give uint8 (0..255) or float (0..1).")


def _channels_hint(key: Key, value: Numbers) -> str:
    size = list(key.shape)
    if key.kind == "image" and len(value.shape) >= 3 and list(value.shape[-3:]) == [*size[1:], size[0]]:
        return " Its channels come last: move them before the height, for example np.moveaxis(image, -1, -3)."
    return ""
