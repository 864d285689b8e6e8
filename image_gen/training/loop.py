"""The training loop of generators and masked autoencoders: step-based, resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard
from drift_policy.training.parallel import Processes
from drift_policy.training.saved_state import TrainingState, restore_moments, training_tensors
from drift_policy.training.schedule import step_seed
from drift_policy.training.stepped_training import Display, Event, Metrics, SteppedTraining
from drift_policy.training.weight_update import WeightUpdate, autocast, use_precision
from image_gen.models import MAE, DiT
from image_gen.training.checkpoint import CheckpointStore
from image_gen.training.config import OptimizerConfig
from image_gen.training.objective import Objective
from image_gen.training.schedule import learning_rate

Network = TypeVar("Network", DiT, MAE)
Step = TypeVar("Step")


def is_past(moment: float | None, processes: Processes) -> bool:
    """Whether a moment by time.monotonic() has passed on the clock of the first process; all of them must call this."""
    return moment is not None and processes.any(processes.is_main and time.monotonic() >= moment)


class TrainingLoop(SteppedTraining, Generic[Network, Step]):
    """Optimises a network, averages it and saves it.

    With several processes every one runs a loop; the first one writes and shows.

    Args:
        objective: what to train, on the device.
        config: see `OptimizerConfig`.
        store: where checkpoints go.
        display: what the user sees.
        draw: draws samples of the averaged network, given the step, or None.
        metadata: of the saved network, JSON values.
        seed: of dropout.
        resume: continue from the last checkpoint.
        settings_name: what the user calls `config`, for messages.
        ends_at: when to end, by time.monotonic(), but not before a first update; None leaves it to `config`.

    Raises:
        ConfigurationError: rows that cannot be shared, or a precision that the device lacks.
        CheckpointError: the checkpoint to resume from is damaged.
    """

    def __init__(
        self,
        objective: Objective[Network, Step],
        config: OptimizerConfig,
        *,
        store: CheckpointStore,
        display: Display,
        draw: Callable[[Network, int], None] | None = None,
        metadata: dict[str, object],
        seed: int,
        resume: bool = False,
        settings_name: str = "trainer",
        ends_at: float | None = None,
    ) -> None:
        self.settings_name = settings_name
        self.objective: Objective[Network, Step] = objective
        self.network: Network = objective.network
        self.ema: Ema[Network] = Ema(self.network, config.ema_decay, config.ema_warmup)
        self.state = TrainingState()
        processes = objective.processes
        super().__init__(config, self.network, self.ema, processes, display, objective.samples_per_step)
        self._config, self._store, self._metadata, self._seed = config, store, metadata, seed
        self._ends_at, self._is_late = ends_at, False
        self._draw_samples: Callable[[Network, int], None] | None = draw
        objective.own_rows(config.gradient_accumulation_steps)
        use_precision(config, processes, settings_name)
        moments: dict[str, Tensor] = {}
        self._has_state = False
        if resume:  # before the weights may be split over processes
            self.state, moments, extra = store.load_last(self.ema.policy, self.network)
            self.ema.num_updates = self.state.ema_updates
            self._has_state = objective.load_state(extra)
        self._module = processes.wrap(objective.module().train())
        self._update_weights: WeightUpdate[Network] = WeightUpdate(self.network, self.ema, config, processes)
        if moments:
            restore_moments(self.network, self._update_weights.optimizer, moments)
        self._forward: nn.Module = torch.compile(self._module) if config.compile else self._module  # type: ignore[assignment]  # callable like a module

    def update(self, step: int) -> Metrics:
        """Do the update that follows `step` updates and return its metrics, still on the device."""
        parts = self._config.gradient_accumulation_steps
        begun = self.objective.begin(step)
        # Dropout draws from the default generators.
        torch.manual_seed((step_seed(step, self._seed) + 1 + self.processes.rank) % 2**63)
        gathered: list[Metrics] = []
        for part in range(parts):
            rows = self.objective.rows_of(part, parts)
            with self.processes.without_sync(self._module, active=part < parts - 1):
                with autocast(self._config, self.processes.device):
                    loss, metrics = self.objective.loss(self._forward, begun, rows)
                (loss / parts).backward()
            gathered.append({**metrics, "loss": loss.detach()})
        norm = self._update_weights(learning_rate(step, self._config))
        # Asked once a step, so that what is due at the end and the end itself agree on it.
        self._is_late = is_past(self._ends_at, self.processes)
        means = {name: torch.stack([metrics[name] for metrics in gathered]).mean() for name in gathered[0]}
        return means | {"gradient_norm": norm}

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update that follows `step` updates."""
        return learning_rate(step, self._config)

    def is_done(self) -> bool:
        """Whether the steps or the time are used up."""
        limit = self._config.max_seconds
        # Clocks of several processes differ: the first one's time counts for all.
        late = limit is not None and self.processes.any(self.processes.is_main and self.state.training_s >= limit)
        return super().is_done() or late or self._is_late

    def begin(self) -> None:
        """Fill what the objective draws from."""
        self.objective.begin_training(self.state.step, self._has_state)

    def close(self) -> None:
        """End the objective's worker processes."""
        self.objective.close()

    def events(self, guard: InterruptGuard) -> Sequence[Event]:
        """Return what is done at some steps: saving, and a picture of samples."""
        return (
            Event("checkpoint", self._config.checkpoint_every, self.save),
            Event("draw", self._config.sample_every, self._draw),
        )

    def save(self) -> None:
        """Save the last checkpoint."""
        self.gather_finite()
        tensors = training_tensors(self.network, self._update_weights.optimizer)
        if self.processes.is_main:
            metadata = {**self._metadata, "step": self.state.step, "ema_decay": self._config.ema_decay}
            self._store.save_last(self.ema.policy, tensors | self.objective.state(), self.state, metadata)
        self.processes.wait()

    def _draw(self) -> None:
        self.ema.gather(self.network)
        if self.processes.is_main and self._draw_samples is not None:
            self._draw_samples(self.ema.policy, self.state.step)
