"""Exponential moving average of a policy's weights, or of any other network's."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from drift_policy.training.parallel import full_tensor

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """Keeps an averaged copy of a policy or another network, in evaluation mode.

    It begins as a copy. The decay warms up as (1 + n) / (10 + n), so that the first updates forget the random initial
    weights, or is constant.
    The number of updates `n` belongs to the training state: an average that restarts its warm-up after a resume
    would throw away what it has gathered.

    Args:
        policy: the policy to average; its buffers (the normaliser) are copied once, later changes of buffers with every
            `gather`.
        decay: the largest decay.
        warmup: whether the decay warms up.
    """

    def __init__(self, policy: Network, decay: float, warmup: bool = True) -> None:
        self.policy = deepcopy(policy).eval().requires_grad_(False)
        self.num_updates = 0
        self._largest_decay, self._warmup = decay, warmup
        self._averaged: list[Tensor] = [parameter.data for parameter in self.policy.parameters()]
        self._is_sharded = False

    def follow_shards(self, policy: Network) -> None:
        """Average the shards of a policy whose parameters were split over processes, from its own values on."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        shards: list[Tensor] = []
        for full, parameter in zip(self._averaged, policy.parameters(), strict=True):
            assert isinstance(parameter.data, DTensor)
            shards.append(distribute_tensor(full, parameter.data.device_mesh, parameter.data.placements))
        self._averaged, self._is_sharded = shards, True

    def next_decay(self) -> float:
        """Return the decay of the next update."""
        if not self._warmup:
            return self._largest_decay
        return min(self._largest_decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, policy: Network) -> None:
        """Move the average towards the current weights."""
        current = [parameter.data for parameter in policy.parameters()]
        torch._foreach_lerp_(self._averaged, current, 1 - self.next_decay())
        self.num_updates += 1

    @torch.no_grad()
    def gather(self, policy: Network) -> None:
        """Make `self.policy` whole and current; with shards, all processes must call this."""
        for own, trained in zip(self.policy.buffers(), policy.buffers(), strict=True):
            own.copy_(trained)
        if self._is_sharded:
            for target, shard in zip(self.policy.parameters(), self._averaged, strict=True):
                target.copy_(full_tensor(shard))
