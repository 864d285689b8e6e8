"""Which action belongs to which control step, where chunks overlap and arrive late. Needs numpy alone.

Control steps are counted from 0. A prediction that was made from the observation of step t says what to do from t on:
its actions for steps that have passed when it arrives are skipped, and it is executed for `n_action_steps` steps
counted from t, unless a newer one replaces it. Shape letters: Tp predicted steps, Da action size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drift_policy.errors import require
from drift_policy.runtime.spec import PolicySpec

Actions = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """The actions of one prediction from the step on in which it takes over."""

    start: int  # control step of the first action
    actions: Actions  # [n, Da], to the end of the prediction
    num_executable: int  # so many of them are executed; the others only fade into the next plan
    num_skipped: int  # actions whose step had passed

    @property
    def executable(self) -> Actions:
        """The actions [num_executable, Da] that will be executed if no newer plan comes."""
        return self.actions[: self.num_executable]


class ActionQueue:
    """The plan that is being executed, and how a new one takes over.

    Args:
        spec: of the policy.
        n_action_steps: Ta, steps of a prediction that are executed, counted from its newest observation; the policy's
            if absent. At most Tp - To + 1.
        cross_fade_steps: over so many steps a new plan's actions are blended linearly with those that the old plan
            has for the same steps; 0 switches at once.

    Raises:
        ConfigurationError: a number that cannot work.
    """

    def __init__(self, spec: PolicySpec, *, n_action_steps: int | None = None, cross_fade_steps: int = 0) -> None:
        longest = spec.horizon - spec.last_observed
        chosen = spec.n_action_steps if n_action_steps is None else n_action_steps
        require(
            1 <= chosen <= longest,
            f"n_action_steps is {chosen}; a prediction of this policy has 1 to {longest} steps from its newest "
            "observation on.",
        )
        require(
            0 <= cross_fade_steps <= longest,
            f"cross_fade_steps is {cross_fade_steps}; give 0 (no fading) to {longest}.",
        )
        self.n_action_steps = chosen
        self._first, self._shape = spec.last_observed, (spec.horizon, spec.action_dim)
        self._cross_fade_steps = cross_fade_steps
        self._plan: Plan | None = None

    def splice(self, prediction: NDArray[np.floating], observed_at: int, now: int) -> Plan:
        """Return what would be executed if `prediction` took over; nothing changes before `accept`.

        Args:
            prediction: [Tp, Da], the first To - 1 steps of which lie before the newest observation.
            observed_at: control step of the newest observation.
            now: the next control step to be executed, at least `observed_at`.

        Raises:
            ValueError: a wrong shape, or `now` before `observed_at`.
        """
        if prediction.shape != self._shape:
            raise ValueError(f"A prediction has shape {list(self._shape)}, but this one has {list(prediction.shape)}.")
        if now < observed_at:
            raise ValueError(f"The observation of step {observed_at} lies in the future of step {now}.")
        skipped = now - observed_at
        actions = np.array(prediction[self._first + skipped :], dtype=np.float64)
        self._fade(actions, now)
        return Plan(now, actions, max(self.n_action_steps - skipped, 0), min(skipped, self.n_action_steps))

    def accept(self, plan: Plan) -> None:
        """Let a plan take over."""
        self._plan = plan

    def action_at(self, step: int) -> Actions | None:
        """Return the action [Da] of a control step, or None if the plan has none for it."""
        plan = self._plan
        if plan is None or not plan.start <= step < plan.start + plan.num_executable:
            return None
        return plan.actions[step - plan.start]

    def clear(self) -> None:
        """Forget the plan."""
        self._plan = None

    def _fade(self, actions: Actions, now: int) -> None:
        """Blend the first actions in place with the old plan's for the same steps, also beyond its executed ones."""
        if self._plan is None or self._cross_fade_steps == 0:
            return
        old = self._plan.actions[max(now - self._plan.start, 0) :]
        steps = min(self._cross_fade_steps, len(old), len(actions))
        weight = (np.arange(1, steps + 1) / (self._cross_fade_steps + 1))[:, None]
        actions[:steps] = (1 - weight) * old[:steps] + weight * actions[:steps]
