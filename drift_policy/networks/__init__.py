"""Generator networks that an action head can use, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from drift_policy.errors import ConfigurationError
from drift_policy.networks.base import ActionNetwork
from drift_policy.networks.conditional_unet1d import ConditionalUnet1d, ConditionalUnet1dConfig
from drift_policy.networks.mlp import Mlp, MlpConfig
from drift_policy.networks.transformer import Transformer, TransformerConfig

__all__ = [
    "NETWORKS",
    "ActionNetwork",
    "ConditionalUnet1d",
    "ConditionalUnet1dConfig",
    "Mlp",
    "MlpConfig",
    "NetworkKind",
    "Transformer",
    "TransformerConfig",
    "build_network",
    "network_kind",
]


class NetworkKind(NamedTuple):
    """A network's configuration dataclass and its class."""

    config: type[Any]
    network: Callable[..., ActionNetwork]


NETWORKS: dict[str, NetworkKind] = {
    "mlp": NetworkKind(MlpConfig, Mlp),
    "conditional_unet1d": NetworkKind(ConditionalUnet1dConfig, ConditionalUnet1d),
    "transformer": NetworkKind(TransformerConfig, Transformer),
}


def network_kind(name: str) -> NetworkKind:
    """Return the network registered under `name`.

    Raises:
        ConfigurationError: the name is unknown.
    """
    if name not in NETWORKS:
        raise ConfigurationError(f"network is {name!r}; choose one of: {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def build_network(
    name: str, config: Any, *, horizon: int, action_dim: int, condition_dim: int, time_conditioned: bool
) -> ActionNetwork:
    """Build the network registered under `name` from an instance of its configuration dataclass.

    Raises:
        ConfigurationError: the name is unknown, the configuration belongs to another network, or a value does not fit.
    """
    kind = network_kind(name)
    if not isinstance(config, kind.config):
        raise ConfigurationError(
            f"network {name!r} was given a {type(config).__name__}; give it a {kind.config.__name__}."
        )
    return kind.network(
        config, horizon=horizon, action_dim=action_dim, condition_dim=condition_dim, time_conditioned=time_conditioned
    )
