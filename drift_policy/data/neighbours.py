"""Which windows of other episodes were observed most similarly: further positives for an observation.

The windows of an observation's own episode are left out. Its next window is nearly a copy, shifted by a step: such
neighbours would fill the list, tell nothing of what else was done there, and blur the timing of the chunk.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_policy.data.window_batches import Neighbours
from drift_policy.errors import ConfigurationError

_BLOCK = 256  # windows of an episode that are compared with all others at once: 136,000 others take 140 MB
_SPARE = 16  # windows that single precision may rank wrongly; the exact distances decide

Track = Callable[[Sequence[Tensor]], Iterable[Tensor]]


def find_neighbours(
    observations: Tensor, episodes: NDArray[np.int64], *, count: int, width: float, track: Track = iter
) -> tuple[Neighbours, Tensor]:
    """Return the `count` neighbours of every window, with weights that fall with the distance d of observations.

    d is the root mean square difference of two observations, over their numbers; the weight is exp(-d^2 / (2 width^2)),
    divided by its sum over the neighbours of the window. The first neighbour is the window itself, at distance zero;
    the others, the nearest first, come from other episodes.

    All pairs are compared. A tree of the windows is not faster: those of the own episode surround a window, and in many
    dimensions a search that must pass them comes by most others.

    Args:
        observations: normalised numbers that each window observes, [W, S] on the CPU.
        episodes: number of the episode of each window, [W].
        count: k, the window itself among them.
        width: distance at which the weight has fallen to exp(-1/2), in units of the observations.
        track: shows the progress of an iteration.

    Returns:
        The neighbours, and their distances, [W, k] float64.

    Raises:
        ConfigurationError: a window has fewer than count - 1 windows of other episodes.
    """
    _check_count(count, episodes)
    total, size = observations.shape
    windows = torch.arange(total).unsqueeze(1).repeat(1, count)
    distances = torch.zeros(total, count, dtype=torch.float64)
    if count > 1:
        by_episode = torch.from_numpy(np.argsort(episodes, kind="stable")).split(np.bincount(episodes).tolist())
        single = observations.float()
        squares = single.square().sum(dim=1)
        for own in track(by_episode):
            for block in own.split(_BLOCK):
                # Squared distances, less the squared norm of the window itself, which is the same in a row.
                ranks = torch.addmm(squares, single[block], single.T, alpha=-2.0)
                ranks.index_fill_(1, own, math.inf)
                candidates = ranks.topk(min(count - 1 + _SPARE, total), largest=False, sorted=False).indices
                windows[block, 1:], distances[block, 1:] = _exact(observations, block, own, candidates, count - 1)
    weights = (distances / width).square().div(-2).exp()  # the window's own is 1, so that no sum is zero
    return Neighbours(windows, (weights / weights.sum(dim=1, keepdim=True)).float()), distances


def _check_count(count: int, episodes: NDArray[np.int64]) -> None:
    others = len(episodes) - int(np.bincount(episodes).max())
    if count - 1 > others:
        raise ConfigurationError(
            f"trainer.neighbours={count} asks for {count - 1} windows of other episodes, but of the {len(episodes)} "
            f"training windows some have only {others}: set trainer.neighbours={others + 1} or less."
        )


def _exact(observations: Tensor, block: Tensor, own: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` nearest of the candidates [N, C] that are not `own`, and their distances, [N, count]."""
    candidates = candidates.sort(dim=1).values  # equal distances are in the order of the windows
    differences = observations[candidates].double() - observations[block].double().unsqueeze(1)
    distances = differences.square().mean(dim=2).sqrt()
    distances[torch.isin(candidates, own)] = math.inf
    order = distances.argsort(dim=1, stable=True)[:, :count]
    return candidates.gather(1, order), distances.gather(1, order)
