"""From gradients to new weights: clipping, AdamW and the average, the same for policies and for images.

Needs torch alone (and accelerate with several processes).
"""

from contextlib import nullcontext
from math import inf
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from drift_policy.errors import ConfigurationError
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes

Network = TypeVar("Network", bound=nn.Module)


class OptimizerSettings(Protocol):
    """The settings of a trainer that its optimiser needs."""

    learning_rate: float
    betas: list[float]
    weight_decay: float
    gradient_clip: float | None
    precision: str
    compile: bool


class WeightUpdate(Generic[Network]):
    """Clips gradients, makes a step of AdamW and averages the weights.

    Args:
        network: after `Processes.wrap`, which may have split its weights.
        ema: its average.
        config: of the trainer.
        processes: who trains together.
    """

    def __init__(self, network: Network, ema: Ema[Network], config: OptimizerSettings, processes: Processes) -> None:
        if processes.is_sharded:
            ema.follow_shards(network)
        self._network, self._ema, self._processes = network, ema, processes
        self._limit = inf if config.gradient_clip is None else config.gradient_clip
        self._parameters: list[Tensor] = list(network.parameters())
        # A tensor, so that another value does not make torch.compile start again.
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=torch.tensor(config.learning_rate),
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._apply = torch.compile(self._apply_gradients) if config.compile else self._apply_gradients

    def __call__(self, learning_rate: float) -> Tensor:
        """Turn the gradients into new weights and return their norm before clipping, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)
        norm = self._apply()
        self.optimizer.zero_grad(set_to_none=True)
        self._ema.update(self._network)
        return norm.detach()

    def _apply_gradients(self) -> Tensor:
        norm = self._processes.clip_gradients(self._parameters, self._limit)
        self.optimizer.step()
        return norm


def use_precision(config: OptimizerSettings, processes: Processes, settings_name: str = "trainer") -> None:
    """Check the precision and what excludes compilation, and set the products of a GPU.

    Args:
        config: see `OptimizerSettings`.
        processes: who trains together.
        settings_name: what the user calls `config`, for messages.

    Raises:
        ConfigurationError: the device has no such precision, or sharded weights are to be compiled.
    """
    device = processes.device
    if config.precision == "tfloat32" and device.type != "cuda":
        raise ConfigurationError(
            f"{settings_name}.precision=tfloat32 is a mode of NVIDIA GPUs, but the device is {device}: use float32 or "
            "bfloat16."
        )
    if config.compile and processes.is_sharded:
        raise ConfigurationError(
            f"{settings_name}.compile=true and trainer.sharding=fsdp2 cannot be combined: drop one."
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.precision == "tfloat32" else "highest")


def autocast(config: OptimizerSettings, device: torch.device) -> torch.autocast | nullcontext[None]:
    """Return what the networks are evaluated under while training."""
    if config.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
