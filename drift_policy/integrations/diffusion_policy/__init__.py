"""Diffusion Policy (Chi et al. 2023): our policies in its checkouts, and its old checkpoints in our policies."""

from drift_policy.integrations.diffusion_policy.legacy_checkpoint import LegacyCheckpoint, read_legacy_checkpoint
from drift_policy.integrations.diffusion_policy.legacy_policy import load_legacy_policy
from drift_policy.integrations.diffusion_policy.policies import DriftImagePolicy, DriftLowdimPolicy

__all__ = [
    "DriftImagePolicy",
    "DriftLowdimPolicy",
    "LegacyCheckpoint",
    "load_legacy_policy",
    "read_legacy_checkpoint",
]
