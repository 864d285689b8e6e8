"""Where batches come from: tensors on the device, or worker processes that read ahead from disk."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from drift_policy.data.window_batches import WindowBatches
from drift_policy.training.trainer_config import TrainerConfig
from drift_policy.training.update import Batch

# Data may take this share of the free memory of a device: the rest is for weights and activations.
_SHARE_OF_MEMORY = 0.5

# Gives the windows of a step, one array for each part of it.
StepIndices = Callable[[int], Iterator[np.ndarray]]


class Batches(Protocol):
    """A source of batches, in the order of the steps."""

    def step(self, step: int) -> Iterator[Batch]:
        """Return the batches of a step, one for each part of it, on the device; steps must follow each other."""

    def close(self) -> None:
        """End worker processes."""


class ResidentBatches:
    """Gathers batches from tensors that lie on the device.

    Args:
        windows: on the device.
        indices: the windows of each step.
    """

    def __init__(self, windows: WindowBatches, indices: StepIndices) -> None:
        self._windows, self._indices = windows, indices

    def step(self, step: int) -> Iterator[Batch]:
        """Return the batches of a step."""
        return (self._windows.batch(part) for part in self._indices(step))

    def close(self) -> None:
        """Nothing is open."""


class StreamedBatches:
    """Worker processes gather batches ahead, from memory-mapped files for instance, while the device computes.

    Args:
        windows: on the CPU.
        indices: the windows of each step.
        num_steps: the step at which the run ends.
        device: where batches are needed.
        num_workers: worker processes.
    """

    def __init__(
        self, windows: WindowBatches, indices: StepIndices, *, num_steps: int, device: torch.device, num_workers: int
    ) -> None:
        self._indices, self._num_steps, self._device = indices, num_steps, device
        self._dataset, self._num_workers = _WindowsByIndices(windows), num_workers
        self._iterator: Iterator[Batch] | None = None
        self._next_step = -1

    def step(self, step: int) -> Iterator[Batch]:
        """Return the batches of a step; the workers start with the first one that is asked for."""
        if self._iterator is None or step != self._next_step:
            self._iterator = self._start(step)
        self._next_step = step + 1
        iterator = self._iterator
        count = sum(1 for _ in self._indices(step))
        return (to_device(next(iterator), self._device) for _ in range(count))

    def close(self) -> None:
        """End the worker processes."""
        self._iterator = None

    def _start(self, first_step: int) -> Iterator[Batch]:
        loader = DataLoader(
            self._dataset,
            sampler=_StepSampler(self._indices, range(first_step, self._num_steps)),
            batch_size=None,  # a sample is a whole batch
            num_workers=self._num_workers,
            pin_memory=self._device.type == "cuda",
            multiprocessing_context="fork",  # shares memory maps, which a fresh process would receive as copies
            worker_init_fn=_leave_process_group,
        )
        return iter(loader)


def _leave_process_group(worker: int) -> None:
    """Keep the signals of a process group away from a worker: it goes on until the training process has saved."""
    os.setpgrp()


class _WindowsByIndices(Dataset[Batch]):
    """A data set whose items are batches."""

    def __init__(self, windows: WindowBatches) -> None:
        self._windows = windows

    def __getitem__(self, indices: np.ndarray) -> Batch:
        return self._windows.batch(indices)


class _StepSampler(Sampler[np.ndarray]):
    """The windows of every part of every step, in order."""

    def __init__(self, indices: StepIndices, steps: range) -> None:
        self._indices, self._steps = indices, steps

    def __iter__(self) -> Iterator[np.ndarray]:
        return (part for step in self._steps for part in self._indices(step))


def make_batches(
    windows: WindowBatches, indices: StepIndices, config: TrainerConfig, *, device: torch.device, memory_mapped: bool
) -> Batches:
    """Return the source of batches that `trainer.data_placement` asks for.

    "auto" keeps data on the device if they take less than half of its free memory and are not memory-mapped.
    """
    placement = config.data_placement
    if placement == "auto":
        placement = "device" if _fits(windows.nbytes, device) and not memory_mapped else "stream"
    if placement == "device":
        return ResidentBatches(windows.to(device), indices)
    return StreamedBatches(windows, indices, num_steps=config.num_steps, device=device, num_workers=config.num_workers)


def _fits(nbytes: int, device: torch.device) -> bool:
    if device.type == "cuda":
        return nbytes < _SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]
    return True  # on a CPU they are in memory already


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch (nested dictionaries of tensors) on the device; pinned memory is copied without waiting."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return {key: to_device(value, device) for key, value in batch.items()}
