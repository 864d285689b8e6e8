"""The best of several chunks by the policy's own density: one batched network evaluation, N candidates.

Shape letters: B observations, N candidates for each, Tp predicted steps (horizon), Da action size.
"""

import numpy as np
import torch
from torch import Tensor

from drift_policy.heads import Generators
from drift_policy.inputs import check_finite


def takes_both_sides(number: int, mirrored: bool) -> bool:
    """Return whether half of the candidates of a decision answer to the mirror image: one alone never does."""
    return mirrored and number > 1


def can_be_halved(number: int) -> bool:
    """Return whether an observation and its mirror image can have equally many of the candidates."""
    return number % 2 == 0


def check_number(number: int | None, noise: Tensor | np.ndarray | None) -> None:
    """Refuse a number of candidates that a call asks for beside noise, whose shape says how many, or that is below 1.

    Raises:
        ValueError: either of these.
    """
    if number is not None and (number < 1 or noise is not None):
        raise ValueError(
            f"num_candidates is {number}: give at least 1, and none with noise, whose shape says how many."
        )


def most_typical(chunks: Tensor) -> Tensor:
    """Return of every observation the candidate in the densest place, [B, Tp, Da].

    That is the one with the smallest mean distance to the nearest quarter of the others: a sample of the fullest mode,
    neither between modes nor in a tail. Of equals the first is taken. All of it can be exported and captured.

    Args:
        chunks: normalised candidates, [B, N, Tp, Da].
    """
    number = chunks.shape[1]
    if number == 1:
        return chunks[:, 0]
    flat = chunks.flatten(2)
    # From the differences: exact also where candidates are near to one another, other than by inner products.
    distances = (flat.unsqueeze(2) - flat.unsqueeze(1)).square().sum(dim=3).sqrt()
    # Symmetric in every bit, whoever computes it: of few candidates, two that are each other's nearest are equals.
    distances = distances + distances.transpose(1, 2)
    nearest = distances.topk(max(2, number // 4 + 1), dim=2, largest=False).values  # itself at distance zero
    index = nearest.mean(dim=2).argmin(dim=1)
    # Gathered: indexing with two tensors would build the batch size into an exported graph.
    return chunks.gather(1, index[:, None, None, None].expand(-1, 1, *chunks.shape[2:])).squeeze(1)


def draw_noise(
    shape: tuple[int, int, int, int], generator: Generators, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return standard normal noise of the shape [B, N, Tp, Da] on a device.

    Args:
        shape: of the noise.
        generator: its source, on any device; a list holds one for each observation; PyTorch's default if absent.
        device: where the noise shall be.
        dtype: of the noise.

    Raises:
        ValueError: there is not one generator for each observation.
    """
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"generator has {len(generator)} entries, but there are {shape[0]} observations.")
        return torch.cat([draw_noise((1, *shape[1:]), source, device, dtype) for source in generator])
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)


def checked_noise(noise: Tensor | np.ndarray, batch: int, horizon: int, action_dim: int) -> Tensor:
    """Return given noise as [B, N, Tp, Da], where and of what type it is.

    Args:
        noise: [B, N, Tp, Da], or [B, Tp, Da] for one candidate.
        batch: B.
        horizon: Tp.
        action_dim: Da.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    given = torch.as_tensor(noise)
    candidates = given.unsqueeze(1) if given.ndim == 3 else given
    fits = candidates.ndim == 4 and candidates.shape[1] >= 1
    if not fits or (candidates.shape[0], *candidates.shape[2:]) != (batch, horizon, action_dim):
        raise ValueError(
            f"noise must have shape {[batch, horizon, action_dim]}, but has {list(given.shape)}; that of N candidates "
            f"has [{batch}, N, {horizon}, {action_dim}]."
        )
    check_finite("noise", given)
    return candidates
