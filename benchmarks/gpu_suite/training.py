"""A training run on data that lie on the device: the trainer's own update, timed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite.command import peak_memory_mb, synchronize
from benchmarks.gpu_suite.pieces import as_stored
from benchmarks.gpu_suite.policies import make_policy
from benchmarks.gpu_suite.prepared import Prepared
from drift_policy.data.window_batches import WindowBatches
from drift_policy.errors import UserError
from drift_policy.heads import Metrics
from drift_policy.policy_config import PolicyConfig
from drift_policy.training.batches import ResidentBatches
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import batch_indices
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import Batch, PolicyUpdate

WARM_STEPS = 20  # the first updates compile and choose kernels


class DivergedError(UserError):
    """A training whose loss or weights are not finite any more."""


@dataclass
class Clock:
    """Where the time of a training goes, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    paused_s: float = 0.0  # writing checkpoints
    waited_s: float = 0.0  # for batches
    warm_s: float | None = None  # the first updates

    def training_s(self) -> float:
        """Return the time since the start, without that of writing."""
        return time.perf_counter() - self.started - self.paused_s

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and add up the time that was spent waiting for them."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch


class Training:
    """One training run.

    Args:
        prepared: the demonstrations.
        windows: of them, on the device.
        policy: what to train.
        config: how; `plan` lowers its `num_steps`.
        seed: of the weights, the order of the data and all random numbers.
    """

    def __init__(
        self, prepared: Prepared, windows: WindowBatches, policy: PolicyConfig, config: TrainerConfig, seed: int
    ) -> None:
        self.device, self.config, self.seed = windows.device, config, seed
        self.clock = Clock()
        self.policy = make_policy(prepared, policy, seed, self.device)
        self.ema = Ema(self.policy, config.ema_decay)
        self.step = 0
        self.log: list[dict[str, float]] = []
        self._update = PolicyUpdate(self.policy, self.ema, config, Processes(self.device), seed)
        self._batches = ResidentBatches(
            windows, lambda step: self._update.parts(batch_indices(step, len(windows), config.batch_size, seed))
        )
        self._pending: list[Metrics] = []

    def advance(self) -> None:
        """Do one update, and log the mean metrics of the last ones now and then.

        Raises:
            DivergedError: the loss is not finite any more.
        """
        try:
            self._pending.append(self._update(self.step, self.clock.timed(self._batches.step(self.step))))
        except ValueError as error:  # the drift loss refuses samples that are not finite
            raise DivergedError(f"The training diverged before step {self.step}: {error}") from error
        self.step += 1
        if self.step == WARM_STEPS:
            synchronize(self.device)
            self.clock.warm_s = self.clock.training_s()
        if self.step % self.config.log_every == 0 or self.step == self.config.num_steps:
            self._write_log()

    def step_s(self) -> float:
        """Return the seconds of an update, over all since the first few.

        Raises:
            ValueError: too few updates are done.
        """
        if self.clock.warm_s is None or self.step <= WARM_STEPS:
            raise ValueError(f"the speed is known after {WARM_STEPS + 1} updates, not after {self.step}")
        synchronize(self.device)
        return (self.clock.training_s() - self.clock.warm_s) / (self.step - WARM_STEPS)

    def plan(self, seconds: float) -> None:
        """Lower `num_steps` to the updates that fit into the next seconds.

        The schedule of the learning rate reads `num_steps` anew at every step; in the warm-up it hardly depends on it.
        """
        fitting = self.step + int(seconds / self.step_s())
        self.config.num_steps = max(self.step, min(self.config.num_steps, fitting))

    def stored(self) -> dict[str, Tensor]:
        """Return the averaged policy as it travels.

        Raises:
            DivergedError: a weight is not finite.
        """
        self.ema.gather(self.policy)
        policy = self.ema.policy
        stored = as_stored(policy.state_dict(), {name for name, _ in policy.named_parameters()})
        for name, tensor in stored.items():
            if not bool(torch.isfinite(tensor).all()):
                raise DivergedError(f"After step {self.step}, {name} holds numbers that are not finite in float16.")
        return stored

    def describe(self) -> dict[str, Any]:
        """Return speed, memory and log of the run so far."""
        synchronize(self.device)
        seconds = self.clock.training_s()
        is_warm = self.clock.warm_s is not None and self.step > WARM_STEPS
        return {
            "seed": self.seed,
            "steps": self.step,
            "planned_steps": self.config.num_steps,
            "seconds": seconds,
            "first_steps_s": self.clock.warm_s,
            "samples_per_s": self.config.batch_size / (self.step_s() if is_warm else seconds / max(1, self.step)),
            "data_wait": self.clock.waited_s / seconds,
            "peak_memory_mb": peak_memory_mb(self.device),
            "log": self.log,
        }

    def _write_log(self) -> None:
        names = list(self._pending[0])
        columns = torch.stack([torch.stack([metrics[name] for name in names]) for metrics in self._pending])
        means = dict(zip(names, columns.mean(dim=0).tolist(), strict=True))
        self._pending = []
        if not all(isfinite(value) for value in means.values()):
            raise DivergedError(f"The training diverged before step {self.step}: {means}")
        self.log.append({"step": self.step, "seconds": self.clock.training_s(), **means})
