"""Observation encoders: one vector per observation, however many samples are drawn from it."""

from drift_policy.encoders.observation import ObservationEncoder, ObservationSpec
from drift_policy.encoders.state import StateEncoder

__all__ = ["ObservationEncoder", "ObservationSpec", "StateEncoder"]
