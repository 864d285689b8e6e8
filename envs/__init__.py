"""Gymnasium environments for the benchmark tasks.

`import envs` registers them. The simulators behind them are loaded by `gym.make`, not by this import.
"""

from gymnasium.envs.registration import register

register(id="drift_policy/PushT-v0", entry_point="envs.pusht:PushTEnv", max_episode_steps=300)
register(id="drift_policy/AdroitDoor-v0", entry_point="envs.adroit:AdroitDoorEnv", max_episode_steps=300)
register(id="drift_policy/BlockPush-v0", entry_point="envs.block_push:BlockPushEnv", max_episode_steps=350)
register(id="drift_policy/Kitchen-v0", entry_point="envs.kitchen:KitchenEnv", max_episode_steps=280)
register(id="drift_policy/Robomimic-v0", entry_point="envs.robomimic.env:RobomimicEnv", max_episode_steps=400)
