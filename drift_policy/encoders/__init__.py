"""Observation encoders: one vector per observation, however many samples are drawn from it."""

from drift_policy.encoders.backbones import IMAGE_BACKBONES, register_image_backbone
from drift_policy.encoders.observation import ObservationEncoder
from drift_policy.encoders.spec import ObservationSpec

__all__ = ["IMAGE_BACKBONES", "ObservationEncoder", "ObservationSpec", "register_image_backbone"]
