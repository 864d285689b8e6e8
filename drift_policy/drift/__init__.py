"""The mathematics of drifting. Imports torch and nothing else of the project."""

from drift_policy.drift.energy import EnergyInfo, energy_loss
from drift_policy.drift.field import drift_field
from drift_policy.drift.loss import DEFAULT_TEMPERATURES, DriftInfo, drift_loss, drifted_samples
from drift_policy.drift.temperatures import temperature_score

__all__ = [
    "DEFAULT_TEMPERATURES",
    "DriftInfo",
    "EnergyInfo",
    "drift_field",
    "drift_loss",
    "drifted_samples",
    "energy_loss",
    "temperature_score",
]
