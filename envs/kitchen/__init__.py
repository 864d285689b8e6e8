"""Franka Kitchen: a robot arm does household tasks. The environment loads MuJoCo and gymnasium-robotics."""

from envs.kitchen.env import KitchenEnv

__all__ = ["KitchenEnv"]
