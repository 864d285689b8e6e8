"""The encoder of a whole observation: one encoder per key, their outputs concatenated."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from drift_policy.encoders.state import StateEncoder
from drift_policy.errors import ConfigurationError


@dataclass
class ObservationSpec:
    """One observation key of a policy."""

    kind: str = "state"  # which encoder reads it: "state" is a vector of numbers
    shape: list[int] = field(default_factory=list)  # shape of one step, without batch and time

    def __post_init__(self) -> None:
        if self.kind not in ENCODERS:
            raise ConfigurationError(f"Observation kind {self.kind!r} is unknown: expected one of {sorted(ENCODERS)}.")
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise ConfigurationError(f"A state observation has the shape [numbers per step], not {self.shape}.")


ENCODERS: dict[str, type[StateEncoder]] = {"state": StateEncoder}


class ObservationEncoder(nn.Module):
    """Encode every key of an observation and concatenate the features, step by step.

    All features of one observation step lie together, oldest step first, so that a network may split the condition
    into one token a step.

    Args:
        specs: key -> what it holds; the order of the keys is the order of the output.
        n_obs_steps: observation steps, To.
    """

    def __init__(self, specs: Mapping[str, ObservationSpec], n_obs_steps: int) -> None:
        super().__init__()
        taken = [key for key in specs if hasattr(nn.ModuleDict(), key)]
        if taken:
            raise ConfigurationError(f"Observation key {taken[0]!r} is a name PyTorch uses itself: choose another.")
        encoders = {key: ENCODERS[spec.kind](prod(spec.shape)) for key, spec in specs.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.output_size = n_obs_steps * sum(encoder.output_size for encoder in encoders.values())

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Map normalised observations {key: [B, To, ...]} to one condition vector [B, C]."""
        encoded = [encoder(observations[key]) for key, encoder in self.encoders.items()]
        features = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=2)
        return features.flatten(start_dim=1)
