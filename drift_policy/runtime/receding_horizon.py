"""Receding-horizon control: decide, execute the first steps of the chunk, decide again. Needs numpy alone.

Shape letters: To observation steps, Tp predicted steps (horizon), Ta executed steps, Da action size.
"""

import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drift_policy.errors import require
from drift_policy.metadata_keys import CONTROL_RATE
from drift_policy.runtime.action_queue import ActionQueue, Actions
from drift_policy.runtime.chunk_guard import ChunkGuard, ChunkRejectedError
from drift_policy.runtime.observations import ObservationHistory, stacked, to_array
from drift_policy.runtime.spec import describe_policy
from drift_policy.runtime.step_features import Window, decide, encode_newest, encodes_steps

_SAME_RATE = 0.05  # rates this close are the same: 12 and 12.5 a second
_REMEMBERED = 3  # executed actions that the guard's jerk reaches back to


@dataclass(frozen=True)
class Decision:
    """A chunk that arrived, and what became of it."""

    latency: float  # seconds from the observation to the chunk
    num_skipped: int  # actions whose step had passed
    problem: str | None  # why none of it will be executed; None if it took over
    timing: dict[str, float]  # milliseconds of its stages, as far as the policy tells them


@dataclass(frozen=True)
class ControlStep:
    """What the robot does in one control step."""

    action: Actions  # [Da], finite
    step: int  # the control step it is for
    is_held: bool  # the last action again, because no chunk has one for this step
    decision: Decision | None  # the chunk that arrived, if any did


@dataclass(frozen=True)
class _Pending:
    observed_at: int
    started: float
    answer: Future[tuple[dict[str, Any], float]]


class RecedingHorizon:
    """Gives a robot one action a control step, from the chunks of any policy with `predict_action`.

    Every `replan_every` steps, and whenever there is nothing to execute, the policy decides from the last To
    observations. Blocking, `step` returns after the decision; asynchronous, it returns at once and the old chunk goes
    on until the new one is there. Only the first decision of an episode is always waited for. NaN never gets through,
    with or without limits in the guard.

    A policy that `encodes_steps` (a `Policy` or `OnnxPolicy` with cameras and To above 1) encodes those steps that the
    next decision observes when they come, so that a decision encodes its newest observation alone. Blocking, the steps
    before a decision take that time; asynchronous, the thread does it.

    Args:
        policy: a `Policy`, `GraphedPolicy`, `TimedPolicy`, `OnnxPolicy` or `PolicyClient`. It must not be used
            elsewhere while it decides asynchronously.
        control_hz: control steps a second; a warning says if the policy was trained on another rate.
        n_action_steps: Ta, executed steps of a chunk, counted from its newest observation; the policy's if absent.
        replan_every: steps from decision to decision, at most `n_action_steps`, which is the default. Asynchronous,
            leave the steps that a decision takes between the two.
        cross_fade_steps: over so many steps a new chunk is blended with the old one.
        compensate_latency: skip the actions whose steps passed while the decision was made; otherwise a chunk starts
            with its first action when it arrives. The first chunk of an episode is never cut: nothing moved meanwhile.
        asynchronous: decide in a thread.
        guard: limits of what may be executed; finite numbers alone if absent.
        generator: source of the noise, of the kind that the policy takes.
        noise_scale: factor on the noise; the policy's if absent.
        clock: seconds, for tests.

    Raises:
        ConfigurationError: a number that cannot work.
    """

    def __init__(
        self,
        policy: Any,
        control_hz: float,
        *,
        n_action_steps: int | None = None,
        replan_every: int | None = None,
        cross_fade_steps: int = 0,
        compensate_latency: bool = True,
        asynchronous: bool = False,
        guard: ChunkGuard | None = None,
        generator: Any = None,
        noise_scale: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.spec = describe_policy(policy)
        self._queue = ActionQueue(self.spec, n_action_steps=n_action_steps, cross_fade_steps=cross_fade_steps)
        executed = self._queue.n_action_steps
        self._replan_every = executed if replan_every is None else replan_every
        require(0 < control_hz < np.inf, f"control_hz must be positive, but is {control_hz}.")
        _warn_of_another_rate(self.spec.metadata.get(CONTROL_RATE), control_hz)
        require(
            1 <= self._replan_every <= executed,
            f"replan_every is {replan_every}; give 1 to {executed}, the executed steps of a chunk.",
        )
        self._policy, self._period, self._clock = policy, 1 / control_hz, clock
        self._options = {"generator": generator, "noise_scale": noise_scale}
        self._compensate_latency = compensate_latency
        self._guard = ChunkGuard() if guard is None else guard
        self._guard.check_size(self.spec.action_dim)
        self._worker = ThreadPoolExecutor(1, "decision") if asynchronous else None
        self._last_work: Future[Any] | None = None  # of the worker, which does one thing after the other
        self._history = ObservationHistory(self.spec)
        self.reset()

    def reset(self, position: ArrayLike | None = None) -> None:
        """Start an episode: forget observations and chunks, also that of a decision under way, which is waited for.

        The policy is then free, for example for a `reset(seed=...)` of its own.

        Args:
            position: where the robot is, as an action [Da]: it is held until there is a chunk, and the first chunk's
                jump and velocity are counted from it.

        Raises:
            ValueError: a position of another shape, or not finite.
        """
        if self._last_work is not None:
            self._last_work.exception()  # waits; what went wrong in the episode before is of no interest
        self._history.clear()
        self._queue.clear()
        self._pending: _Pending | None = None
        self._executed: deque[Actions] = deque(maxlen=_REMEMBERED)
        self._now, self._observed_at = -1, 0
        self._is_first, self._must_decide = True, True
        if position is not None:
            held = np.array(position, dtype=np.float64)
            if held.shape != (self.spec.action_dim,) or not np.isfinite(held).all():
                raise ValueError(f"position must be {self.spec.action_dim} finite numbers, but is {position}.")
            self._executed.append(held)

    def step(self, obs_now: Any, step: int | None = None) -> ControlStep:
        """Take the observation of a control step and return the action to execute.

        Args:
            obs_now: one unbatched observation {key: [...]}.
            step: number of the control step, for loops that leave out steps that they missed; one more than the last
                one if absent.

        Raises:
            ValueError: an observation that does not fit, or a step that is not after the last one.
            ChunkRejectedError: the guard says stop, or rejected the first chunk of an episode without a position.
            Exception: what the policy raised, asynchronous in the step in which it is known. The loop can go on: the
                next step decides again.
        """
        now = self._now + 1 if step is None else step
        if now <= self._now:
            raise ValueError(f"Control step {now} does not come after step {self._now}: call reset() for an episode.")
        self._history.append(obs_now)
        self._now = now
        decision = self._collect()
        if self._is_due():
            self._observed_at, self._must_decide = now, True  # until there is a chunk, also after an error
            decision = self._decide() or decision
        action = self._queue.action_at(self._now)
        if action is None and not self._executed:
            raise ChunkRejectedError(
                f"The first chunk of the episode cannot be executed and there is no position to hold: "
                f"{decision.problem if decision else 'none arrived'}."
            )
        held = action is None
        chosen = self._executed[-1] if action is None else action
        self._executed.append(chosen)
        self._encode_ahead()
        return ControlStep(chosen.copy(), self._now, held, decision)

    def close(self) -> None:
        """End the thread of asynchronous decisions, after the one that is under way."""
        if self._worker is not None:
            self._worker.shutdown()

    def __enter__(self) -> "RecedingHorizon":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_due(self) -> bool:
        if self._pending is not None:
            return False
        is_time = self._now - self._observed_at >= self._replan_every
        return self._must_decide or is_time or self._queue.action_at(self._now) is None

    def _decide(self) -> Decision | None:
        """Make a decision, or begin one; return it if it is there."""
        window, started = self._history.window(), self._clock()
        if self._worker is None:
            answer, ended = self._call(window)
            return self._take(answer, self._now, ended - started, self._steps_passed(ended - started))
        self._last_work = decided = self._worker.submit(self._call, window)
        self._pending = _Pending(self._now, started, decided)
        return self._collect(wait=self._is_first)

    def _call(self, window: Window) -> tuple[dict[str, Any], float]:
        answer = decide(self._policy, window, stacked, **self._options)
        return answer, self._clock()

    def _encode_ahead(self) -> None:
        """Encode the newest step, in the thread if there is one, if the next decision observes it and is not begun.

        Steps and their features belong to the worker while it has them: it does one thing after the other.
        """
        is_observed = self._observed_at + self._replan_every - self._now < self.spec.n_obs_steps
        if not is_observed or self._pending is not None or not encodes_steps(self._policy):
            return
        if self._worker is None:
            encode_newest(self._policy, self._history.window(), stacked)
        else:  # an error comes again in the decision, which then encodes the step itself
            self._last_work = self._worker.submit(encode_newest, self._policy, self._history.window(), stacked)

    def _collect(self, wait: bool = False) -> Decision | None:
        """Take over the asynchronous decision if it has arrived."""
        pending = self._pending
        if pending is None or not (wait or pending.answer.done()):
            return None
        self._pending = None
        answer, ended = pending.answer.result()
        return self._take(answer, pending.observed_at, ended - pending.started, self._now - pending.observed_at)

    def _steps_passed(self, latency: float) -> int:
        return int(latency / self._period) if self._compensate_latency and not self._is_first else 0

    def _take(self, answer: dict[str, Any], observed_at: int, latency: float, passed: int) -> Decision:
        """Check a chunk and let it take over.

        Args:
            answer: of the policy.
            observed_at: control step of its newest observation.
            latency: of the decision [s].
            passed: control steps since the observation.
        """
        self._now = max(self._now, observed_at + passed)
        anchor = observed_at if self._compensate_latency and not self._is_first else self._now
        plan = self._queue.splice(to_array(answer["action_pred"])[0], anchor, self._now)
        before = np.array(self._executed).reshape(-1, self.spec.action_dim)
        problem = self._guard.violation(plan.executable, before, self._period)
        if problem is not None and self._guard.on_violation == "stop":
            raise ChunkRejectedError(f"A chunk was rejected: {problem}.")
        if plan.num_executable == 0:
            problem = f"the decision took {1000 * latency:.0f} ms, longer than the steps that are executed"
        if problem is None:
            self._queue.accept(plan)
            self._is_first = False
        self._must_decide = problem is not None
        return Decision(latency, plan.num_skipped, problem, dict(answer.get("timing", {})))


def _warn_of_another_rate(trained: object, control_hz: float) -> None:
    if isinstance(trained, (int, float)) and trained > 0 and abs(control_hz / trained - 1) > _SAME_RATE:
        warnings.warn(
            f"The policy was trained on {trained:g} steps a second, but control_hz is {control_hz:g}: it will move "
            f"{control_hz / trained:.2g} times as fast as it was shown.",
            stacklevel=3,
        )
