"""drift-policy: robot action chunks from one network evaluation, by generative modelling via drifting."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drift_policy.policy import DriftPolicy, Policy, build_policy
    from drift_policy.policy_config import PolicyConfig
    from drift_policy.serialization import load_policy

__version__ = "0.1.0"
__all__ = ["DriftPolicy", "Policy", "PolicyConfig", "__version__", "build_policy", "load_policy"]

_HOMES = {
    "DriftPolicy": "drift_policy.policy",
    "Policy": "drift_policy.policy",
    "PolicyConfig": "drift_policy.policy_config",
    "build_policy": "drift_policy.policy",
    "load_policy": "drift_policy.serialization",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `drift_policy.drift` alone then needs nothing but torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
