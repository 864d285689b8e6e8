"""Adroit: a dexterous hand opens a door. This import loads MuJoCo and gymnasium-robotics."""

from envs.adroit.env import AdroitDoorEnv

__all__ = ["AdroitDoorEnv"]
