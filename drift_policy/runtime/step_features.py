"""Every step of an episode is encoded once, and those before the newest one between the decisions.

A policy's condition holds the features of To steps, each encoded for itself, so the features of a step serve all
decisions that observe it. A policy that `encodes_steps` has

- `encode_step(obs)`: the features [B, F] of one step {key: [B, 1, ...]}, and
- `predict_action(obs, features=...)`: `obs` holds the newest steps alone, `features` is a list of [B, F] for those
  before; the answer has "features" [B, To, F] beside the chunk.

With every other policy, decisions are made from whole observations. Nothing in here imports numpy or torch.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Stack = Callable[[Sequence["ObservedStep"]], Any]  # of T steps: {key: [1, T, ...]}


@dataclass(eq=False)
class ObservedStep:
    """One step of an episode."""

    observation: Mapping[str, Any]  # {key: [...]}, checked
    features: Any = None  # [1, F], once a policy has encoded it


Window = tuple[ObservedStep, ...]  # To steps, oldest first


class StepHistory:
    """The last To steps of an episode; the first one stands for the missing earlier ones.

    Args:
        n_obs_steps: To.
    """

    def __init__(self, n_obs_steps: int) -> None:
        self._steps: deque[ObservedStep] = deque(maxlen=n_obs_steps)
        self._n_obs_steps = n_obs_steps

    def append(self, observation: Mapping[str, Any]) -> None:
        """Add one step."""
        step = ObservedStep(observation)
        self._steps.extend([step] * (1 if self._steps else self._n_obs_steps))

    def window(self) -> Window:
        """Return the last To steps, oldest first."""
        return tuple(self._steps)

    def clear(self) -> None:
        """Forget the episode, and with it all features."""
        self._steps.clear()


def decide(policy: Any, window: Window, stack: Stack, **options: Any) -> dict[str, Any]:
    """Return the policy's answer to a window, and keep the features of its steps.

    Args:
        policy: anything with `predict_action`.
        window: the last To steps.
        stack: makes an observation of steps.
        options: of `predict_action`.
    """
    if not encodes_steps(policy):
        return dict(policy.predict_action(stack(window), **options))
    # The newest step is never left out: a decision has something to encode.
    known = next((number for number, step in enumerate(window) if step.features is None), len(window) - 1)
    features = [step.features for step in window[:known]]
    answer = policy.predict_action(stack(window[known:]), features=features, **options)
    for number, step in enumerate(window):
        step.features = answer["features"][:, number]
    return dict(answer)


def encode_newest(policy: Any, window: Window, stack: Stack) -> None:
    """Encode the newest step, unless it is encoded or the policy does not encode steps."""
    step = window[-1]
    if step.features is None and encodes_steps(policy):
        step.features = policy.encode_step(stack([step]))


def encodes_steps(policy: Any) -> bool:
    """Return whether encoding steps for themselves, and only once, saves this policy work."""
    return bool(getattr(policy, "encodes_steps", False))
