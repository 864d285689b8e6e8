"""The best of several chunks by the policy's own density: one batched network evaluation, N candidates."""

import torch
from torch import Tensor


def most_typical(chunks: Tensor) -> Tensor:
    """Return of every observation the candidate in the densest place, [B, Tp, Da].

    That is the one with the smallest mean distance to the nearest quarter of the others: a sample of the fullest mode,
    neither between modes nor in a tail.

    Args:
        chunks: normalised candidates, [B, N, Tp, Da].
    """
    number = chunks.shape[1]
    if number == 1:
        return chunks[:, 0]
    flat = chunks.flatten(2)
    distances = torch.cdist(flat, flat)
    nearest = distances.topk(max(2, number // 4 + 1), dim=2, largest=False).values  # itself at distance zero
    index = nearest.mean(dim=2).argmin(dim=1)
    return chunks[torch.arange(len(chunks), device=chunks.device), index]
