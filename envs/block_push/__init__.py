"""BlockPush: an xArm pushes two blocks into two targets, in any order. This import loads pybullet."""

from envs.block_push.env import BlockPushEnv
from envs.block_push.starts import benchmark_start

__all__ = ["BlockPushEnv", "benchmark_start"]
