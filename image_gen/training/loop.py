"""The training loop of generators and masked autoencoders: step-based, resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isfinite
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from drift_policy.errors import ConfigurationError, UserError
from drift_policy.training.checkpoint import restore_moments, training_tensors
from drift_policy.training.ema import Ema
from drift_policy.training.interrupt import InterruptGuard, TrainingInterruptedError
from drift_policy.training.schedule import step_seed
from image_gen.models import MAE, DiT
from image_gen.training.checkpoint import CheckpointStore, TrainingState
from image_gen.training.config import OptimizerConfig
from image_gen.training.objective import Metrics, Objective
from image_gen.training.schedule import learning_rate

Network = TypeVar("Network", DiT, MAE)
Step = TypeVar("Step")

# Several processes ask each other this often whether one was told to stop.
_STEPS_BETWEEN_STOP_CHECKS = 10


class Display(Protocol):
    """What the user sees of a training."""

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object:
        """End."""

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show the newest metrics."""

    def message(self, text: str) -> None:
        """Print a line."""


class MetricsTracker(Protocol):
    """Receives the metrics of a training."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step."""

    def finish(self) -> None:
        """Write what is still pending."""


@dataclass
class Reporting(Generic[Network]):
    """Where a training reports to."""

    display: Display
    trackers: list[MetricsTracker]
    draw: Callable[[Network, int], None] | None = None  # draws samples of the averaged network; gets the step


class TrainingLoop(Generic[Network, Step]):
    """Optimises a network, averages it and saves it.

    With several processes every one runs a loop; the first one writes and shows.

    Args:
        objective: what to train, on the device.
        config: see `OptimizerConfig`.
        store: where checkpoints go.
        reporting: where metrics and pictures go.
        metadata: of the saved network, JSON values.
        seed: of dropout.
        resume: continue from the last checkpoint.

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
        reporting: Reporting[Network],
        metadata: dict[str, object],
        seed: int,
        resume: bool = False,
    ) -> None:
        self.objective: Objective[Network, Step] = objective
        self.network: Network = objective.network
        self.processes = objective.processes
        self.state = TrainingState()
        self.reporting: Reporting[Network] = reporting
        self._config, self._store, self._metadata, self._seed = config, store, metadata, seed
        objective.own_rows(config.gradient_accumulation_steps)
        _set_precision(config, self.processes.device)
        self.ema: Ema[Network] = Ema(self.network, config.ema_decay)
        moments: dict[str, Tensor] = {}
        self._has_state = False
        if resume:  # before the weights may be split over processes
            self.state, moments, extra = store.load_last(self.ema.policy, self.network)
            self.ema.num_updates = self.state.ema_updates
            self._has_state = objective.load_state(extra)
        self._module = self.processes.wrap(objective.module().train())
        if self.processes.is_sharded:
            self.ema.follow_shards(self.network)
        self._parameters: list[Tensor] = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=torch.tensor(config.learning_rate),
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
            fused=True,
        )
        if moments:
            restore_moments(self.network, self.optimizer, moments)
        self._forward: nn.Module = torch.compile(self._module) if config.compile else self._module  # type: ignore[assignment]  # callable like a module
        self._pending: list[Metrics] = []
        self._pending_s = 0.0

    def run(self) -> None:
        """Train to the configured step or time; what is due at a step happens before the next update.

        Raises:
            TrainingInterruptedError: a stop was requested; the state has been saved.
            UserError: the training diverged.
        """
        with self.reporting.display as _, InterruptGuard(self._announce_stop) as guard:
            try:
                if not self._is_done():
                    self.objective.begin_training(self.state.step, self._has_state)
                while True:
                    self._do_due_events()
                    self._check(guard)
                    if self._is_done():
                        break
                    self._timed_update()
            except TrainingInterruptedError:
                self._save()
                raise
            finally:
                self.objective.close()

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
                with self._autocast():
                    loss, metrics = self.objective.loss(self._forward, begun, rows)
                (loss / parts).backward()
            gathered.append({**metrics, "loss": loss.detach()})
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate(step, self._config))
        limit = inf if self._config.gradient_clip is None else self._config.gradient_clip
        norm = self.processes.clip_gradients(self._parameters, limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network)
        means = {name: torch.stack([metrics[name] for metrics in gathered]).mean() for name in gathered[0]}
        return means | {"gradient_norm": norm.detach()}

    def _is_done(self) -> bool:
        limit = self._config.max_seconds
        # Clocks of several processes differ: the first one's time counts for all.
        late = limit is not None and self.processes.any(self.processes.is_main and self.state.training_s >= limit)
        return self.state.step >= self._config.num_steps or late

    def _check(self, guard: InterruptGuard) -> None:
        step = self.state.step
        is_common = step % _STEPS_BETWEEN_STOP_CHECKS == 0 or step >= self._config.num_steps
        if (self.processes.size == 1 or is_common) and self.processes.any(guard.is_requested):
            raise TrainingInterruptedError

    def _timed_update(self) -> None:
        started = time.perf_counter()
        try:
            self._pending.append(self.update(self.state.step))
        # The drift loss refuses samples that are not finite, in compiled code by a RuntimeError.
        except (ValueError, RuntimeError) as error:
            if "finite" not in str(error):
                raise
            raise _diverged(self.state.step, self._config) from error
        self.state.step += 1
        self.state.ema_updates = self.ema.num_updates
        self.state.done_events = []
        self._add_time(started)

    def _add_time(self, started: float) -> None:
        elapsed = time.perf_counter() - started
        self._pending_s += elapsed
        self.state.training_s += elapsed

    def _do_due_events(self) -> None:
        """Log, draw and save if this step asks for it and it was not done before an interruption."""
        config, is_last = self._config, self._is_done()
        events: tuple[tuple[str, int, Callable[[], None]], ...] = (
            ("log", config.log_every, self._log),
            ("checkpoint", config.checkpoint_every, self._save),
            ("draw", config.sample_every, self._draw),
        )
        for name, every, action in events:
            due = is_last or (every and self.state.step % every == 0)
            if due and self.state.step and name not in self.state.done_events:
                self.state.done_events.append(name)
                try:
                    action()
                except BaseException:
                    self.state.done_events.remove(name)
                    raise

    def _log(self) -> None:
        if not self._pending:
            return
        started = time.perf_counter()
        names = list(self._pending[0])
        columns = torch.stack([torch.stack([metrics[name] for name in names]) for metrics in self._pending]).mean(dim=0)
        values = self.processes.mean(columns.float()).tolist()
        self._add_time(started)  # a GPU finishes its queued updates here
        means = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        if not isfinite(means["train/loss"]):
            raise _diverged(self.state.step, self._config)
        means["train/samples_per_s"] = len(self._pending) * self.objective.samples_per_step / self._pending_s
        means["train/learning_rate"] = learning_rate(self.state.step - 1, self._config)
        self._pending, self._pending_s = [], 0.0
        if self.processes.is_main:
            for tracker in self.reporting.trackers:
                tracker.log(self.state.step, means)
            self.reporting.display.update(self.state.step, means)

    def _draw(self) -> None:
        self.ema.gather(self.network)
        if self.processes.is_main and self.reporting.draw is not None:
            self.reporting.draw(self.ema.policy, self.state.step)

    def _save(self) -> None:
        self.ema.gather(self.network)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.ema.policy.parameters()):
            raise _diverged(self.state.step, self._config)
        tensors = training_tensors(self.network, self.optimizer)
        if self.processes.is_main:
            metadata = {**self._metadata, "step": self.state.step, "ema_decay": self._config.ema_decay}
            self._store.save_last(self.ema.policy, tensors | self.objective.state(), self.state, metadata)
        self.processes.wait()

    def _announce_stop(self) -> None:
        self.reporting.display.message("stopping after this step; press Ctrl-C again to stop without saving")

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self._config.precision == "bfloat16":
            return torch.autocast(self.processes.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _set_precision(config: OptimizerConfig, device: torch.device) -> None:
    if config.precision == "tfloat32" and device.type != "cuda":
        raise ConfigurationError(
            f"trainer.precision=tfloat32 is a mode of NVIDIA GPUs, but the device is {device}: use float32 or bfloat16."
        )
    if config.compile and config.sharding != "none":
        raise ConfigurationError("trainer.compile=true and trainer.sharding=fsdp2 cannot be combined: drop one.")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.precision == "tfloat32" else "highest")


def _diverged(step: int, config: OptimizerConfig) -> UserError:
    return UserError(
        f"The training diverged before step {step}: lower trainer.learning_rate (now {config.learning_rate:g}), or use "
        "trainer.precision=float32. The last saved checkpoint is from before."
    )
