"""The interface between the training loop and what is trained: a step is begun once and computed in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn

from drift_policy.errors import require
from drift_policy.training.parallel import Processes
from drift_policy.training.stepped_training import Metrics

Network = TypeVar("Network", bound=nn.Module)
Step = TypeVar("Step")


class Objective(ABC, Generic[Network, Step]):
    """What a network is trained for.

    Args:
        network: on the device, unsharded.
        processes: who trains together.
    """

    samples_per_step: int  # generated or reconstructed images a step, over all processes

    def __init__(self, network: Network, processes: Processes) -> None:
        self.network = network
        self.processes = processes

    @abstractmethod
    def module(self) -> nn.Module:
        """Return what the processes wrap: its forward pass is all that touches the weights."""

    @abstractmethod
    def begin(self, step: int) -> Step:
        """Load and draw what the update that follows `step` updates needs, without gradient."""

    @abstractmethod
    def loss(self, module: nn.Module, step: Step, rows: slice) -> tuple[Tensor, Metrics]:
        """Return the scalar loss of some rows of a step, and detached metrics.

        Args:
            module: the wrapped `module()`.
            step: from `begin`.
            rows: of this process's rows.
        """

    @property
    @abstractmethod
    def rows_per_step(self) -> int:
        """Rows of a step over all processes."""

    def begin_training(self, step: int, has_state: bool) -> None:
        """Prepare for the update that follows `step` updates; `has_state` says that `state` was restored."""

    def state(self) -> dict[str, Tensor]:
        """Return tensors that an exact resume needs besides weights and moments."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> bool:
        """Take back what `state` returned; whether there was anything."""
        return False

    def encoders_digest(self) -> str | None:
        """Return a digest of the weights of frozen encoders that the loss depends on; None without encoders."""
        return None

    def close(self) -> None:
        """End worker processes."""

    def own_rows(self, parts: int) -> int:
        """Return the rows that this process computes in each of `parts` parts of a step.

        Raises:
            ConfigurationError: the rows cannot be shared evenly.
        """
        return share_of(self.rows_per_step, parts, self.processes)

    def rows_of(self, part: int, parts: int) -> slice:
        """Return this process's rows, among all rows of a step, in a part of it."""
        share = self.own_rows(parts)
        first = (part * self.processes.size + self.processes.rank) * share
        return slice(first, first + share)


def share_of(rows: int, parts: int, processes: Processes) -> int:
    """Return the rows of a step that each process computes in each of `parts` parts.

    Raises:
        ConfigurationError: the rows cannot be shared evenly.
    """
    pieces = parts * processes.size
    require(
        rows % pieces == 0,
        f"A step has {rows} rows (drift.labels_per_step of a generator, batch_size of an MAE), shared by "
        f"{processes.size} process(es) and {parts} gradient accumulation step(s): it must be a multiple of {pieces}.",
    )
    return rows // pieces
