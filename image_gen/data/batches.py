"""Batches of labelled samples, read by worker processes where there are any."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from drift_policy.errors import UserError

Batch = tuple[Tensor, Tensor]  # samples [n, C, H, W] and classes [n]


class LabelledSamples(Protocol):
    """Samples [C, H, W] with their class; what is random about them depends on the epoch."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a sample and its class."""

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops and flips of another epoch."""


class Batches(Dataset[Batch | UserError]):
    """A data set whose items are batches, asked for by epoch and indices; see `opened`.

    What is wrong with a sample is an item too: raised in a worker process, it would reach the user as a traceback.
    """

    def __init__(self, samples: LabelledSamples) -> None:
        self._samples = samples

    def __getitem__(self, request: tuple[int, list[int]]) -> Batch | UserError:
        epoch, indices = request
        self._samples.set_epoch(epoch)
        try:
            samples, class_ids = zip(*(self._samples[index] for index in indices), strict=True)
        except UserError as error:
            return error
        return torch.stack(samples), torch.tensor(class_ids)


def opened(item: Batch | UserError) -> Batch:
    """Return the batch of an item of `Batches`.

    Raises:
        UserError: one of its samples cannot be read.
    """
    if isinstance(item, UserError):
        raise item
    return item
