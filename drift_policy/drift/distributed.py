"""Means over the batches of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def global_mean(*values: Tensor, keep_last: bool = False) -> list[Tensor]:
    """Return the mean of each tensor over all its entries on all processes, with one all-reduce for all of them.

    Args:
        values: tensors of any shape; each process may hold another number of entries.
        keep_last: average over every axis but the last one.

    Returns:
        For each value a scalar, or a vector of its last axis' size. Without an initialised process group the
        plain local mean. Differentiable: with several processes all of them must then go backward.
    """
    rows = [value.reshape(-1, value.shape[-1] if keep_last else 1) for value in values]
    means = [row.mean(dim=0) for row in rows]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        means = _all_reduce_means(means, [row.shape[0] for row in rows])
    return [mean if keep_last else mean.squeeze(0) for mean in means]


def _all_reduce_means(means: list[Tensor], counts: list[int]) -> list[Tensor]:
    # Multiplying means by counts, instead of sending sums, keeps single-process results free of this rounding.
    totals = [mean * count for mean, count in zip(means, counts, strict=True)]
    packed = torch.cat([*totals, means[0].new_tensor(counts)])
    if packed.requires_grad:
        packed = _SumOverProcesses.apply(packed)
    else:
        dist.all_reduce(packed)
    *reduced, total_counts = packed.split([*(len(mean) for mean in means), len(counts)])
    return [total / count for total, count in zip(reduced, total_counts, strict=True)]


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes; the loss of every process depends on the tensors of all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
