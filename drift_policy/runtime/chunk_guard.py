"""Checks of a chunk before a robot executes any of it. Needs numpy alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift_policy.errors import require

ON_VIOLATION = ("hold", "stop")


class ChunkRejectedError(RuntimeError):
    """A chunk violates a limit, and the guard says stop, or there is nothing to hold."""


@dataclass(frozen=True)
class ChunkGuard:
    """Limits on actions that are positions (absolute action spaces), each a number or one for each dimension.

    NaN and infinity are always refused. Velocity, acceleration and jerk are first, second and third differences between
    control steps, over their period; they include the actions that were executed last, so a jump between two chunks
    counts. Third differences of float32 positions at high rates are mostly rounding: at 200 Hz, positions of about 500
    scatter by 250 units/s^3.

    Raises:
        ConfigurationError: a limit that is not positive, or `low` above `high`.
    """

    low: ArrayLike | None = None  # smallest action [Da], in the units of the demonstrations
    high: ArrayLike | None = None  # largest action [Da]
    max_velocity: ArrayLike | None = None  # units/s
    max_acceleration: ArrayLike | None = None  # units/s^2
    max_jerk: ArrayLike | None = None  # units/s^3
    max_jump: ArrayLike | None = None  # units between the last executed action and the first of the chunk
    on_violation: str = "hold"  # "hold": drop the chunk, go on with the old one, then hold; "stop": raise

    def __post_init__(self) -> None:
        require(
            self.on_violation in ON_VIOLATION,
            f"on_violation must be one of {', '.join(ON_VIOLATION)}, but is {self.on_violation!r}.",
        )
        for name in ("max_velocity", "max_acceleration", "max_jerk", "max_jump"):
            limit = getattr(self, name)
            require(limit is None or bool(np.all(np.asarray(limit) > 0)), f"{name} must be positive, but is {limit}.")
        for name in ("low", "high"):
            limit = getattr(self, name)
            require(limit is None or not np.isnan(limit).any(), f"{name} must be numbers, but is {limit}.")
        if self.low is not None and self.high is not None:
            require(
                bool(np.all(np.asarray(self.low) <= np.asarray(self.high))),
                f"low must not be above high, but they are {self.low} and {self.high}.",
            )

    def check_size(self, action_dim: int) -> None:
        """Refuse limits that do not fit actions [Da].

        Raises:
            ConfigurationError: a limit is neither a number nor one for each dimension.
        """
        for name in ("low", "high", "max_velocity", "max_acceleration", "max_jerk", "max_jump"):
            limit = getattr(self, name)
            require(
                limit is None or np.shape(limit) in ((), (1,), (action_dim,)),
                f"{name} must be a number or one for each of the {action_dim} dimensions, but is {limit}.",
            )

    def violation(self, actions: NDArray[np.floating], before: NDArray[np.floating], period: float) -> str | None:
        """Return what is wrong with a chunk, or None.

        Args:
            actions: what would be executed, [n, Da].
            before: what was executed last, oldest first, [m, Da]; m may be 0, and more than 3 have no use.
            period: of a control step [s].
        """
        if not np.isfinite(actions).all():
            step, dimension = np.argwhere(~np.isfinite(actions))[0]
            return f"action {step} of the chunk, dimension {dimension}, is {actions[step, dimension]}"
        for name, values, low, high in self._checks(actions, before[-3:], period):
            wrong = np.argwhere((values < low) | (values > high))
            if len(wrong):
                step, dimension = wrong[0]
                bounds = [float(np.broadcast_to(bound, values.shape)[step, dimension]) for bound in (low, high)]
                return (
                    f"{name} {values[step, dimension]:g} of action {step + len(actions) - len(values)} of the chunk, "
                    f"dimension {dimension}, is outside {bounds[0]:g} to {bounds[1]:g}"
                )
        return None

    def _checks(
        self, actions: NDArray[np.floating], before: NDArray[np.floating], period: float
    ) -> Iterator[tuple[str, NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]]:
        """Give the name, the values [k, Da] of the last k actions, and the bounds of every limit that is set."""
        unlimited = np.asarray(np.inf)
        low = -unlimited if self.low is None else np.asarray(self.low)
        high = unlimited if self.high is None else np.asarray(self.high)
        yield "the position", actions, low, high
        if self.max_jump is not None and len(before) and len(actions):
            jump = np.full_like(actions, 0.0)
            jump[0] = actions[0] - before[-1]
            yield "the jump", jump, -np.asarray(self.max_jump), np.asarray(self.max_jump)
        limits = ((self.max_velocity, "velocity"), (self.max_acceleration, "acceleration"), (self.max_jerk, "jerk"))
        for order, (limit, name) in enumerate(limits, start=1):
            if limit is not None:
                # Only differences that reach into the chunk: those of the past cannot be helped any more.
                path = np.concatenate([before[-order:], actions])
                differences = np.diff(path, n=order, axis=0) / period**order
                yield f"the {name}", differences, -np.asarray(limit), np.asarray(limit)
