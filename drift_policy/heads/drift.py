"""The drift head: one network evaluation maps noise and condition to an action chunk."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from drift_policy.drift import drift_loss
from drift_policy.drift.loss import Scope
from drift_policy.drift.validation import check_temperatures
from drift_policy.errors import ConfigurationError
from drift_policy.heads.base import ActionHead, Draws, Generators, Metrics


@dataclass
class DriftHeadConfig:
    """Settings of the drifting loss for behaviour cloning, where every observation has one positive."""

    samples_per_observation: int = 8  # G: samples drawn for each observation; they repel each other
    temperatures: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.2])  # kernel widths over the mean distance
    affinity_floor: float = 0.0  # 0 keeps far modes apart (the paper's formula); 1e-6 is the released code
    scope: str = "batch"  # statistics over the whole "batch" (released code) or for each observation ("group")
    per_time_step: bool = False  # one kernel problem for each step of the chunk instead of one for the whole chunk

    def __post_init__(self) -> None:
        if self.samples_per_observation < 1:
            raise ConfigurationError(
                f"head.samples_per_observation must be at least 1, but is {self.samples_per_observation}."
            )
        try:
            check_temperatures("head.temperatures", self.temperatures)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        if not 0 <= self.affinity_floor < 1:
            raise ConfigurationError(f"head.affinity_floor must be in [0, 1), but is {self.affinity_floor}.")
        if self.scope not in ("batch", "group"):
            raise ConfigurationError(f"head.scope must be 'batch' or 'group', but is {self.scope!r}.")


class DriftHead(ActionHead):
    """Generator trained with the drifting loss (Eq. 6); the demonstrated chunk is the positive of its observation."""

    time_conditioned = False
    config: DriftHeadConfig

    @property
    def num_evaluations(self) -> int:
        """One, by construction: the iteration happened during training."""
        return 1

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """Return the noise of G samples an observation."""
        return {"noise": self._draw_noise(batch, self.config.samples_per_observation, generator)}

    def compute_loss(self, action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the drifting loss; watch the metrics instead, the loss is nearly constant by construction."""
        samples = self.network(condition=condition, sample=draws["noise"])
        scope: Scope = "group" if self.config.scope == "group" else "batch"
        loss, info = drift_loss(
            self._kernel_problems(samples),
            self._kernel_problems(action.unsqueeze(1)),
            temperatures=self.config.temperatures,
            affinity_floor=self.config.affinity_floor,
            scope=scope,
        )
        with torch.no_grad():
            metrics: Metrics = {
                "scale": info["scale"],
                "spread": sample_spread(samples),
                "action_mse": (samples - action.unsqueeze(1)).square().mean(),
            }
            metrics |= {f"force_{temperature:g}": value.sqrt() for temperature, value in info["force_sq"].items()}
        return loss.mean(), metrics

    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Return one chunk for each noise with a single network evaluation; `generator` is not used."""
        chunks: Tensor = self.network(sample=noise, condition=condition)
        return chunks

    def _kernel_problems(self, chunks: Tensor) -> Tensor:
        """Flatten chunks [B, G, Tp, Da] to the [problems, G, S] that the loss compares."""
        if self.config.per_time_step:
            return chunks.transpose(1, 2).flatten(end_dim=1)
        return chunks.flatten(start_dim=2)


def sample_spread(samples: Tensor) -> Tensor:
    """Return the standard deviation between the samples [B, G, Tp, Da] of an observation, averaged: a scalar."""
    return samples.std(dim=1, unbiased=False).mean()
