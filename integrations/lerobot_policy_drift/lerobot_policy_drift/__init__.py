"""LeRobot plug-in: importing it registers the policy type "drift"."""

from lerobot_policy_drift.configuration_drift import DriftConfig
from lerobot_policy_drift.modeling_drift import DriftPolicy
from lerobot_policy_drift.processor_drift import make_drift_pre_post_processors

__all__ = ["DriftConfig", "DriftPolicy", "make_drift_pre_post_processors"]
