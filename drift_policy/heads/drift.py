"""The drift head: one network evaluation maps noise and condition to an action chunk."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from drift_policy.drift import drift_loss, energy_loss, temperature_score
from drift_policy.drift.loss import Scope
from drift_policy.drift.temperatures import MIN_SAMPLES
from drift_policy.drift.validation import check_affinity_floor, check_temperatures
from drift_policy.errors import ConfigurationError, as_configuration_error, require
from drift_policy.heads.base import ActionHead, Draws, Generators, Metrics
from drift_policy.networks import ActionNetwork

TEMPERATURE_RANGE = (1e-3, 10.0)  # of learned temperatures: outside, the field is nearly that at the end of the range
_REGRESSION_WEIGHT = "regression_weight"  # among the draws and the metrics


@dataclass
class DriftHeadConfig:
    """Settings of the drifting loss for behaviour cloning, where every observation has one positive."""

    samples_per_observation: int = 8  # G: samples drawn for each observation; they repel each other
    kernel: str = "affinity"  # "affinity" is the paper's field; "energy" is unbiased with one demonstration each
    # The affinity kernel only:
    temperatures: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.2])  # kernel widths over the mean distance
    learned_temperatures: bool = False  # from those; judged by how well the drifted samples forecast demonstrations
    affinity_floor: float = 0.0  # 0, the paper's formula: far positives do not pull; 1e-6: released code
    scope: str = "batch"  # statistics over the whole "batch" (released code) or for each observation ("group")
    # Both kernels:
    per_time_step: bool = False  # one kernel problem for each step of the chunk instead of one for the whole chunk
    regression_weight: float = 0.0  # factor on the mean squared error of every sample, added to the drifting loss
    regression_steps: int | None = None  # steps in which that factor falls linearly to zero; null keeps it

    def __post_init__(self) -> None:
        if self.samples_per_observation < 1:
            raise ConfigurationError(
                f"head.samples_per_observation must be at least 1, but is {self.samples_per_observation}."
            )
        with as_configuration_error():
            check_temperatures("head.temperatures", self.temperatures)
            check_affinity_floor("head.affinity_floor", self.affinity_floor)
        if self.scope not in ("batch", "group"):
            raise ConfigurationError(f"head.scope must be 'batch' or 'group', but is {self.scope!r}.")
        require(
            self.kernel in ("affinity", "energy"),
            f"head.kernel must be 'affinity' or 'energy', but is {self.kernel!r}.",
        )
        learns_from_one = self.kernel == "affinity" and (self.affinity_floor > 0 or self.regression_weight > 0)
        require(
            self.samples_per_observation > 1 or learns_from_one,
            "head.samples_per_observation must be at least 2: samples repel each other, and a single one would learn "
            "nothing. To regress on one, take policy=regression (or head.kernel=affinity head.affinity_floor=1e-6).",
        )
        self._check_learned_temperatures()
        require(
            0 <= self.regression_weight < math.inf,
            f"head.regression_weight must be a number from 0 on, but is {self.regression_weight}.",
        )
        require(
            self.regression_steps is None or (self.regression_steps >= 1 and self.regression_weight > 0),
            f"head.regression_steps={self.regression_steps} must be null or at least 1, and needs a "
            f"head.regression_weight above 0, which is {self.regression_weight}.",
        )

    def _check_learned_temperatures(self) -> None:
        if not self.learned_temperatures:
            return
        require(
            self.kernel == "affinity", "head.learned_temperatures=true needs head.kernel=affinity: energy has none."
        )
        require(
            self.samples_per_observation >= MIN_SAMPLES,
            f"head.learned_temperatures=true needs head.samples_per_observation of at least {MIN_SAMPLES}, but it is "
            f"{self.samples_per_observation}.",
        )
        low, high = TEMPERATURE_RANGE
        require(
            all(low < temperature < high for temperature in self.temperatures),
            f"head.temperatures must lie between {low:g} and {high:g} to be learned, but are {self.temperatures}.",
        )


class Positives(NamedTuple):
    """Demonstrated chunks that attract the samples of an observation: its own, and those of similar observations."""

    chunks: Tensor  # normalised, [B, P, Tp, Da]
    weights: Tensor  # [B, P], not negative; 1 for each observation in sum


class DriftHead(ActionHead):
    """Generator trained with the drifting loss (Eq. 6).

    The positive of an observation is its demonstrated chunk, unless the loss is given several.
    """

    time_conditioned = False
    config: DriftHeadConfig
    temperature_offsets: nn.Parameter | None  # [R], of the logits of temperatures within the range, on log scale
    temperature_starts: Tensor  # [R], the logits of the configured temperatures

    def __init__(self, config: DriftHeadConfig, network: ActionNetwork) -> None:
        super().__init__(config, network)
        if not config.learned_temperatures:
            self.temperature_offsets = None
            return
        # Offsets, so that weight decay pulls to the configured temperatures.
        self.temperature_offsets = nn.Parameter(torch.zeros(len(config.temperatures)))
        low, high = (math.log(end) for end in TEMPERATURE_RANGE)
        logs = torch.tensor(config.temperatures, dtype=torch.float64).log()
        self.register_buffer("temperature_starts", ((logs - low) / (high - low)).logit().float(), persistent=False)

    def temperatures(self) -> Tensor | list[float]:
        """Return the temperatures of the affinity kernel: the configured numbers or, if they are learned, [R]."""
        if self.temperature_offsets is None:
            return self.config.temperatures
        low, high = (math.log(end) for end in TEMPERATURE_RANGE)
        return (low + (high - low) * (self.temperature_starts + self.temperature_offsets).sigmoid()).exp()

    @property
    def num_evaluations(self) -> int:
        """One, by construction: the iteration happened during training."""
        return 1

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """Return the noise of G samples an observation."""
        return {"noise": self._draw_noise(batch, self.config.samples_per_observation, generator)}

    def scheduled(self, batch: int, step: int | None) -> Draws:
        """Return the weight of the regression, [batch], if it changes with the step."""
        steps = self.config.regression_steps
        if steps is None:
            return {}
        if step is None:
            raise ValueError(
                f"policy.head.regression_steps={steps} changes the loss with the step: give it, "
                "policy.compute_loss(batch, policy.draw(len(batch['action']), generator, step=...))."
            )
        return {_REGRESSION_WEIGHT: torch.full((batch,), self.config.regression_weight * max(0.0, 1 - step / steps))}

    def compute_loss(
        self, action: Tensor, condition: Tensor, draws: Draws, positives: Positives | None = None
    ) -> tuple[Tensor, Metrics]:
        """Return the drifting loss and metrics; the affinity kernel's loss is nearly constant by construction.

        Args:
            action: normalised demonstrated chunks, [B, Tp, Da]; the regression and `action_mse` are about these alone.
            condition: encoded observations, [B, C].
            draws: from `draw(B)` and `scheduled(B, step)`, on the device of `action`.
            positives: what attracts the samples, in place of `action`.
        """
        samples = self.network(condition=condition, sample=draws["noise"])
        target = action.unsqueeze(1)
        chunks, weights = (target, None) if positives is None else positives
        problems = self._kernel_problems(samples), self._kernel_problems(chunks), self._problem_weights(weights)
        loss, metrics = self._energy(*problems) if self.config.kernel == "energy" else self._affinity(*problems)
        if self.temperature_offsets is not None:
            score, learned = self._temperature_loss(problems[0], self._kernel_problems(target))
            loss, metrics = loss + score, metrics | learned
        error = (samples - target).square().mean()
        if self.config.regression_steps is not None:
            weight = draws[_REGRESSION_WEIGHT][0]
            loss = loss + weight * error
            metrics |= {_REGRESSION_WEIGHT: weight}
        elif self.config.regression_weight > 0:
            loss = loss + self.config.regression_weight * error
        metrics |= {"spread": sample_spread(samples.detach()), "action_mse": error.detach()}
        return loss, metrics

    def _affinity(self, gen: Tensor, pos: Tensor, weight_pos: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return the paper's loss, and its scale and forces."""
        loss, info = drift_loss(
            gen,
            pos,
            weight_pos=weight_pos,
            temperatures=self.temperatures(),
            affinity_floor=self.config.affinity_floor,
            scope=self._scope,
        )
        forces = {
            f"force_{start:g}": value.sqrt()
            for start, value in zip(self.config.temperatures, info["force_sq"].values(), strict=True)
        }
        return loss.mean(), {"scale": info["scale"], **forces}

    def _temperature_loss(self, gen: Tensor, action: Tensor) -> tuple[Tensor, Metrics]:
        """Return what teaches the temperatures and nothing else, and how they stand, by the names they started with.

        The own chunk alone attracts here, also if the samples have several positives.
        """
        temperatures = self.temperatures()
        assert isinstance(temperatures, Tensor)
        score = temperature_score(
            gen, action, temperatures, affinity_floor=self.config.affinity_floor, scope=self._scope
        ).mean()
        now = zip(self.config.temperatures, temperatures.detach(), strict=True)
        return score, {"temperature_score": score.detach()} | {f"temperature_{start:g}": value for start, value in now}

    @property
    def _scope(self) -> Scope:
        return "group" if self.config.scope == "group" else "batch"

    def _energy(self, gen: Tensor, pos: Tensor, weight_pos: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return the energy score, and the mean distance to the demonstrations as its scale."""
        loss, info = energy_loss(gen, pos, weight_pos=weight_pos)
        return loss.mean(), {"scale": info.attraction}

    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Return one chunk for each noise with a single network evaluation; `generator` is not used."""
        chunks: Tensor = self.network(sample=noise, condition=condition)
        return chunks

    def _kernel_problems(self, chunks: Tensor) -> Tensor:
        """Flatten chunks [B, G, Tp, Da] to the [problems, G, S] that the loss compares."""
        if self.config.per_time_step:
            return chunks.transpose(1, 2).flatten(end_dim=1)
        return chunks.flatten(start_dim=2)

    def _problem_weights(self, weights: Tensor | None) -> Tensor | None:
        """Give each kernel problem of an observation its weights: [B, P] to [problems, P]."""
        if weights is None or not self.config.per_time_step:
            return weights
        return weights.repeat_interleave(self.network.horizon, dim=0)


def sample_spread(samples: Tensor) -> Tensor:
    """Return the standard deviation between the samples [B, G, Tp, Da] of an observation, averaged: a scalar."""
    return samples.std(dim=1, unbiased=False).mean()
