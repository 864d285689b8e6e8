"""Rollouts of policies in Gymnasium environments, their statistics and their films."""

from drift_policy.evaluation.rollout import Episode, EvaluationConfig, RolloutResult, rollout
from drift_policy.evaluation.statistics import Interval, mean_interval, success_interval

__all__ = [
    "Episode",
    "EvaluationConfig",
    "Interval",
    "RolloutResult",
    "mean_interval",
    "rollout",
    "success_interval",
]
