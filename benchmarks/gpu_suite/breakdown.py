"""The parts of an update in milliseconds, marked at the seams of the trainer's own code.

The marks sit in hooks and in overridden public methods, so that what is timed is the update of `PolicyUpdate` and no
copy of it. Only an uncompiled update has seams.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drift_policy.policy import Policy
from drift_policy.training.ema import Ema
from drift_policy.training.parallel import Processes
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import Batch, PolicyUpdate

PARTS = (
    "random_numbers",  # noise, times and crops are drawn on the CPU and moved
    "data_gather",
    "encoder_forward",  # normalisation, crops, image networks
    "generator_forward",
    "loss_forward",  # the drift loss, or the error of the predicted noise, and the metrics
    "backward",
    "clip_and_adamw",
    "ema",
)


class StepClock:
    """Takes the time at the seams of a step: on a GPU by events in its stream, which cost the host nothing."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """Say that `part` ends here; the first mark of a step only begins it."""
        if self._is_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def finish_step(self) -> dict[str, float]:
        """Return the milliseconds of each part since the first mark, and forget the marks."""
        marks, self._marks = self._marks, []
        if self._is_gpu:
            torch.cuda.synchronize(self._device)
        parts: dict[str, float] = {}
        for (_, begin), (part, end) in zip(marks, marks[1:], strict=False):
            elapsed = begin.elapsed_time(end) if self._is_gpu else (end - begin) * 1000
            parts[part] = parts.get(part, 0.0) + elapsed
        return parts


class _MarkingEma(Ema[Policy]):
    """Marks the end of the averaging."""

    def __init__(self, policy: Policy, decay: float, clock: StepClock) -> None:
        super().__init__(policy, decay)
        self._clock = clock

    def update(self, policy: Policy) -> None:
        super().update(policy)
        self._clock.mark("ema")


class _MarkingProcesses(Processes):
    """Marks the end of the loss and the beginning of the clipping, which ends the backward pass."""

    def __init__(self, device: torch.device, clock: StepClock) -> None:
        super().__init__(device)
        self._clock = clock

    def wrap(self, module: nn.Module) -> nn.Module:
        wrapped = super().wrap(module)
        wrapped.register_forward_hook(lambda *_: self._clock.mark("loss_forward"))
        return wrapped

    def clip_gradients(self, parameters: Any, limit: float) -> Tensor:
        self._clock.mark("backward")
        return super().clip_gradients(parameters, limit)


class MarkedUpdate:
    """An update whose parts are timed.

    Args:
        policy: on its device.
        config: of the trainer, without `compile`.
        seed: of the random numbers.
    """

    def __init__(self, policy: Policy, config: TrainerConfig, seed: int) -> None:
        self._clock = StepClock(policy.device)
        processes = _MarkingProcesses(policy.device, self._clock)
        self.update = PolicyUpdate(policy, _MarkingEma(policy, config.ema_decay, self._clock), config, processes, seed)
        self.update.optimizer.register_step_post_hook(lambda *_: self._clock.mark("clip_and_adamw"))
        policy.encoder.register_forward_hook(lambda *_: self._clock.mark("encoder_forward"))
        policy.head.network.register_forward_hook(lambda *_: self._clock.mark("generator_forward"))

    def __call__(self, step: int, batches: Iterator[Batch]) -> dict[str, float]:
        """Do the update that follows `step` updates and return the milliseconds of its parts."""
        self._clock.mark("begin")
        self.update(step, self._marked(batches))
        return self._clock.finish_step()

    def _marked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            self._clock.mark("random_numbers")
            batch = next(batches, None)
            self._clock.mark("data_gather")
            if batch is None:
                return
            yield batch


def median_parts(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of each part, in the order of PARTS."""
    return {part: float(np.median([step[part] for step in steps])) for part in PARTS}
