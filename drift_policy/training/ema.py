"""Exponential moving average of a policy's weights."""

from copy import deepcopy

import torch

from drift_policy.policy import Policy


class Ema:
    """Keeps an averaged copy of a policy, in evaluation mode.

    The decay warms up as (1 + n) / (10 + n), so that the first updates forget the random initial weights.
    The number of updates `n` belongs to the training state: an average that restarts its warm-up after a resume
    would throw away what it has gathered.

    Args:
        policy: the policy to average; its normaliser is copied once.
        decay: the largest decay.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy = deepcopy(policy).eval().requires_grad_(False)
        self.num_updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, policy: Policy) -> None:
        """Move the average towards the current weights."""
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        averaged = [parameter.data for parameter in self.policy.parameters()]
        current = [parameter.data for parameter in policy.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self.num_updates += 1
