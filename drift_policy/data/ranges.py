"""Demonstrations beside the range of a normaliser: numbers that were recorded in other units, or of another robot."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from drift_policy.data.normalizer import Normalizer
from drift_policy.metadata_keys import number_name

_FAR = 1.5  # normalised numbers reach from -1 to 1: a quarter of the range beyond one end


def far_numbers(
    normalizer: Normalizer, arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, Any]
) -> list[tuple[float, str]]:
    """Return the numbers of demonstrations that reach far outside -1..1 once they are normalised.

    Args:
        normalizer: fitted, perhaps on other demonstrations.
        arrays: key -> every step of the demonstrations, [N, D].
        metadata: of the policy, which may name the numbers.

    Returns:
        How far each of them reaches, and both ranges in words.
    """
    far: list[tuple[float, str]] = []
    for key, array in arrays.items():
        ends = torch.as_tensor(np.stack([array.min(axis=0), array.max(axis=0)])).to(normalizer.reference.device)
        reach = normalizer.normalize(key, ends).abs().amax(dim=0)
        unit = torch.tensor([[-1.0], [1.0]], device=ends.device)
        low, high = normalizer.unnormalize(key, unit.expand(2, len(reach)))
        far += [
            (
                float(reach[index]),
                f"{number_name(metadata, key, index)} reaches from {ends[0, index]:.4g} to {ends[1, index]:.4g}, "
                f"the range of the normaliser from {low[index]:.4g} to {high[index]:.4g}",
            )
            for index in torch.nonzero(reach > _FAR).flatten().tolist()
        ]
    return far
