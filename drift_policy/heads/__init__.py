"""The ways to draw an action chunk, behind one protocol."""

from typing import Any, NamedTuple

from drift_policy.errors import ConfigurationError
from drift_policy.heads.base import ActionHead, Draws, Generators, Metrics
from drift_policy.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from drift_policy.heads.drift import DriftHead, DriftHeadConfig
from drift_policy.heads.flow import FlowHead, FlowHeadConfig
from drift_policy.heads.mip import MipHead, MipHeadConfig
from drift_policy.heads.regression import RegressionHead, RegressionHeadConfig


class HeadKind(NamedTuple):
    """A head and the dataclass of its settings."""

    config: type[Any]
    head: type[ActionHead]


HEADS: dict[str, HeadKind] = {
    "drift": HeadKind(DriftHeadConfig, DriftHead),
    "diffusion": HeadKind(DiffusionHeadConfig, DiffusionHead),
    "flow": HeadKind(FlowHeadConfig, FlowHead),
    "mip": HeadKind(MipHeadConfig, MipHead),
    "regression": HeadKind(RegressionHeadConfig, RegressionHead),
}


def head_kind(name: str) -> HeadKind:
    """Return the head called `name`.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in HEADS:
        raise ConfigurationError(f"Head {name!r} is unknown: expected one of {sorted(HEADS)}.")
    return HEADS[name]


__all__ = ["HEADS", "ActionHead", "Draws", "Generators", "HeadKind", "Metrics", "head_kind"]
