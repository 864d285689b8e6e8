"""One optimiser step: forward, loss, backward, clipping, AdamW and the average of the weights.

Needs torch alone (and accelerate with several processes), so that benchmarks time exactly what training runs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drift_policy.demonstrated import PositiveNoise
from drift_policy.errors import ConfigurationError
from drift_policy.heads import Draws, Metrics
from drift_policy.policy import Policy
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import learning_rate, step_generator, step_seed
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.weight_update import WeightUpdate, autocast, use_precision

Batch = dict[str, Any]


class TrainingModule(nn.Module):
    """A policy whose forward pass is its training loss, as DistributedDataParallel and torch.compile want it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the scalar loss and detached metrics."""
        return self.policy.compute_loss(batch, draws)


class PolicyUpdate:
    """The update of a policy.

    A step's batch of `batch_size` windows is split into `gradient_accumulation_steps` parts, each over all processes;
    the gradients of the parts are averaged. Statistics that the drift loss takes over its batch (scope="batch") are
    those of a part, over all processes: several processes change nothing, several parts change the objective.

    Args:
        policy: on the device to train on, its weights final: they may be split over the processes here.
        ema: average of the policy, made before this.
        config: see `TrainerConfig`.
        processes: who trains together.
        seed: of the random numbers of every step.

    Raises:
        ConfigurationError: the batch cannot be split, or the precision is not one of the device.
    """

    def __init__(
        self, policy: Policy, ema: Ema[Policy], config: TrainerConfig, processes: Processes, seed: int
    ) -> None:
        parts = config.gradient_accumulation_steps * processes.size
        if config.batch_size % parts:
            raise ConfigurationError(
                f"trainer.batch_size={config.batch_size} is shared by {processes.size} process(es) and "
                f"{config.gradient_accumulation_steps} gradient accumulation step(s): it must be a multiple of {parts}."
            )
        use_precision(config, processes)
        self.policy, self.ema = policy, ema
        self._config, self._processes, self._seed = config, processes, seed
        self._module = processes.wrap(TrainingModule(policy.train()))
        self._update_weights = WeightUpdate(policy, ema, config, processes)
        self._compute_loss: Callable[[Batch, Draws], tuple[Tensor, Metrics]] = self._module
        if config.compile:
            # CUDA graphs replay the many small kernels of a policy without waiting for the CPU to launch them. They
            # own the memory of gradients, which therefore cannot be added up over parts or exchanged by hooks.
            has_graphs = policy.device.type == "cuda" and parts == 1
            mode = "reduce-overhead" if has_graphs else None
            self._compute_loss = torch.compile(self._module, mode=mode)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, for its moments."""
        return self._update_weights.optimizer

    def rows(self, part: int) -> slice:
        """Return which rows of a step's batch this process computes in a part of the step."""
        share = self._config.batch_size // (self._config.gradient_accumulation_steps * self._processes.size)
        first = (part * self._processes.size + self._processes.rank) * share
        return slice(first, first + share)

    def parts(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Split the windows of a step, [B], into those of this process for each part."""
        for part in range(self._config.gradient_accumulation_steps):
            yield indices[self.rows(part)]

    def __call__(self, step: int, batches: Iterator[Batch]) -> Metrics:
        """Do the update that follows `step` updates and return its metrics, still on the device.

        Args:
            step: updates done before.
            batches: the windows of this process for each part of the step, on the device.

        Raises:
            ValueError: a sample, the loss or a weight is not finite.
        """
        parts = self._config.gradient_accumulation_steps
        config = self._config
        generator = step_generator(step, self._seed)
        draws = self.policy.draw(
            config.batch_size,
            generator,
            observation_noise=config.observation_noise,
            action_noise=config.action_noise,
            positive_noise=_positive_noise(config),
            step=step,
        )
        # Dropout is the only part that draws from the default generators; it must not repeat the numbers of `draws`.
        torch.manual_seed((step_seed(step, self._seed) + 1 + self._processes.rank) % 2**63)
        gathered: list[Metrics] = []
        for part in range(parts):
            own = {name: value[self.rows(part)] for name, value in draws.items()}
            own = {name: value.to(self.policy.device, non_blocking=True) for name, value in own.items()}
            batch = next(batches)
            with self._processes.without_sync(self._module, active=part < parts - 1):
                if self._config.compile:
                    torch.compiler.cudagraph_mark_step_begin()
                with autocast(config, self.policy.device):
                    loss, metrics = self._compute_loss(batch, own)
                (loss / parts).backward()
            # A captured graph writes its next results to the same memory.
            gathered.append({name: value.detach().clone() for name, value in {**metrics, "loss": loss}.items()})
        norm = self._update_weights(learning_rate(step, config))
        return _mean(gathered) | {"gradient_norm": norm}


def _positive_noise(config: TrainerConfig) -> PositiveNoise | None:
    if config.positive_copies == 0:
        return None
    return PositiveNoise(config.positive_copies, config.positive_noise, config.positive_noise_steps)


def _mean(parts: list[Metrics]) -> Metrics:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
