"""Ctrl-C and termination signals, taken at a safe point between two steps."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class TrainingInterruptedError(Exception):
    """The run was asked to stop; its state is consistent and can be saved."""


class InterruptGuard:
    """Turns the first SIGINT or SIGTERM into a flag; a second SIGINT interrupts at once.

    An exception in the middle of an update would leave weights, average and optimiser out of step with each other.

    Args:
        announce: called at the first signal.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        self._requested = False
        self._announce = announce
        self._previous = {signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}

    def __enter__(self) -> "InterruptGuard":
        for number in self._previous:
            self._previous[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested

    def check(self) -> None:
        """Raise `TrainingInterruptedError` if a stop was requested."""
        if self._requested:
            raise TrainingInterruptedError

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        self._announce()
