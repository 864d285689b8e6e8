"""Times of calls that take turns, so that the machine treats them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

# In its first calls after another case has run, a fast case mostly waits for its code and weights to come back into the
# caches: the first takes up to five times, the fourth a tenth longer. They are not mixed with the steady ones.
SETTLING_CALLS, SETTLED_AFTER = 8, 0.02  # whichever comes first [calls, s]
LEAST_TURN = 0.02  # seconds of steady calls: a percentile needs many of fast ones


@dataclass
class Times:
    """Milliseconds of a case's calls."""

    steady: list[float] = field(default_factory=list)  # one after the other
    first: list[float] = field(default_factory=list)  # the first of every turn, after another case has run


def measure_in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, repeats: int, turn_s: float = LEAST_TURN
) -> dict[str, Times]:
    """Time every call in turns, `rounds` of them with `repeats` steady calls each, or as many as fit into `turn_s`."""
    times = {label: Times() for label in calls}
    # Drawn between rounds: a thread that draws beside them would be in the times.
    with Progress(auto_refresh=False) as progress:
        for _ in progress.track(range(rounds), description="timing"):
            for label, call in calls.items():
                settling = [timed(call)]
                while len(settling) < SETTLING_CALLS and sum(settling) < 1000 * SETTLED_AFTER:
                    settling.append(timed(call))
                times[label].first.append(settling[0])
                number, ends = 0, time.perf_counter() + turn_s
                while number < repeats or time.perf_counter() < ends:
                    times[label].steady.append(timed(call))
                    number += 1
    return times


def timed(call: Callable[[], Any]) -> float:
    """Return the milliseconds of a call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
