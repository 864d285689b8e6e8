"""The interface of generator networks: noise (or a noisy chunk) and an encoded observation in, an action chunk out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from drift_policy.errors import require


class ActionNetwork(nn.Module, ABC):
    """Maps G samples per observation to G action chunks.

    Subclasses are constructed as `Network(config, horizon=Tp, action_dim=Da, condition_dim=C, time_conditioned=...)`
    and implement `generate`. What depends on the condition alone must be computed once per observation, not once per
    sample.

    Args:
        horizon: Tp, predicted steps.
        action_dim: Da, numbers per action.
        condition_dim: C, length of the encoded observation.
        time_conditioned: whether forward takes a diffusion or flow time (iterative heads) or not (one-step heads).

    Raises:
        ConfigurationError: a size is below 1.
    """

    def __init__(self, *, horizon: int, action_dim: int, condition_dim: int, time_conditioned: bool) -> None:
        super().__init__()
        sizes = {"horizon": horizon, "action_dim": action_dim, "condition_dim": condition_dim}
        for name, size in sizes.items():
            require(size >= 1, f"{name} is {size}; a network needs at least 1.")
        self.horizon = horizon
        self.action_dim = action_dim
        self.condition_dim = condition_dim
        self.time_conditioned = time_conditioned

    def forward(self, sample: Tensor, condition: Tensor, time: Tensor | None = None) -> Tensor:
        """Generate action chunks.

        Args:
            sample: [B, G, Tp, Da] noise, or noisy chunks.
            condition: [B, C] encoded observations, each shared by its G samples.
            time: [B, G] step number of each sample (about 0 to 1000, float or integer); only with time conditioning.

        Returns:
            [B, G, Tp, Da].

        Raises:
            ValueError: time is given to a network without time conditioning or missing from one with it, or a shape is
                not the one the network was built for.
        """
        if self.time_conditioned != (time is not None):
            raise ValueError(
                f"time is {'missing' if time is None else 'given'}, but the network was built with "
                f"time_conditioned={self.time_conditioned}; "
                f"{'pass time [B, G]' if self.time_conditioned else 'leave time out'}."
            )
        if sample.ndim != 4 or sample.shape[2:] != (self.horizon, self.action_dim):
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}; expected [B, G, {self.horizon}, {self.action_dim}] "
                "(batch, samples per observation, horizon, action size)."
            )
        if time is not None and time.shape != sample.shape[:2]:
            raise ValueError(
                f"time has shape {tuple(time.shape)}; expected {list(sample.shape[:2])}: one step number per sample."
            )
        if condition.shape != (sample.shape[0], self.condition_dim):
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; expected [{sample.shape[0]}, {self.condition_dim}]: "
                "one encoded observation per batch entry of sample."
            )
        return self.generate(sample, condition, time)

    @abstractmethod
    def generate(self, sample: Tensor, condition: Tensor, time: Tensor | None) -> Tensor:
        """Compute forward's result from checked inputs; every network implements this."""
