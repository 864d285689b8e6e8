"""Push-T: push a T-shaped block onto its goal pose with a round agent. This import loads pymunk and pygame."""

from envs.pusht.env import PushTEnv
from envs.pusht.geometry import BLOCK_KEYPOINTS_LOCAL, benchmark_start, block_keypoints, legacy_start

__all__ = ["BLOCK_KEYPOINTS_LOCAL", "PushTEnv", "benchmark_start", "block_keypoints", "legacy_start"]
