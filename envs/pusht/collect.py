"""Record successful Push-T episodes of a trained policy as demonstrations.

    python -m envs.pusht.collect ckpt=pretrained/pusht episodes=200 output=demonstrations.zarr.zip

The demonstrations that come with the repository were made by this command.
"""

import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from omegaconf import OmegaConf
from rich.progress import Progress

from drift_policy.cli import command_line
from drift_policy.config import parse_config
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import ConfigurationError
from drift_policy.policy import Policy
from drift_policy.serialization import load_policy
from envs.pusht import PushTEnv, block_keypoints

_MAX_STEPS = 300


@dataclass
class CollectConfig:
    """What to record."""

    ckpt: str  # the policy that demonstrates
    output: str  # a .zarr folder or a .zip file
    episodes: int = 200  # successful episodes to keep
    start_seed: int = 300000  # first start state; far from those of training rollouts and of the benchmark
    max_attempts: int = 2000  # episodes to try before giving up

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigurationError(f"episodes must be at least 1, but is {self.episodes}.")
        if Path(self.output).exists():
            raise ConfigurationError(f"output={self.output} exists already: choose another path or delete it first.")


class _Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what the demonstrations of a Push-T episode consist of."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.states: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.states, self.actions = [_state(info)], []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.actions.append(np.asarray(action, dtype=np.float32))
        self.states.append(_state(result[4]))
        return result


def collect(config: CollectConfig, policy: Policy) -> tuple[ReplayBuffer, int]:
    """Play episodes until enough have succeeded; return them and the number of attempts.

    Raises:
        ConfigurationError: the policy succeeds too rarely.
    """
    env = _Recorder(PushTEnv(obs_type="keypoints"))
    kept: list[dict[str, np.ndarray]] = []
    with Progress() as progress:
        bar = progress.add_task("successful episodes", total=config.episodes)
        for attempt in count():
            if len(kept) == config.episodes:
                return _as_buffer(kept), attempt
            if attempt == config.max_attempts:
                raise ConfigurationError(
                    f"Only {len(kept)} of {attempt} episodes succeeded: use a better checkpoint, or raise max_attempts."
                )
            if _play(policy, env, config.start_seed + attempt):
                kept.append(_columns(env))
                progress.advance(bar)
    raise AssertionError("unreachable: the loop returns or raises")


def _play(policy: Policy, env: _Recorder, seed: int) -> bool:
    """Play one episode; return whether the block came to lie on its goal."""
    torch.manual_seed(seed)
    policy.reset()
    observation, _ = env.reset(seed=seed)
    for _ in range(_MAX_STEPS):
        observation, _, terminated, _, info = env.step(policy.select_action(observation).numpy())
        if terminated:
            return bool(info["is_success"])
    return False


def _state(info: dict[str, Any]) -> np.ndarray:
    return np.concatenate([info["pos_agent"], info["block_pose"]]).astype(np.float32)


def _columns(env: _Recorder) -> dict[str, np.ndarray]:
    """Return the episode with one row a decision: the state before an action, and the action."""
    states = np.stack(env.states[:-1])
    keypoints = np.stack([block_keypoints(state[2:4], float(state[4])) for state in states])
    return {"state": states, "keypoint": keypoints.astype(np.float32), "action": np.stack(env.actions)}


def _as_buffer(episodes: list[dict[str, np.ndarray]]) -> ReplayBuffer:
    data = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    return ReplayBuffer(data, np.cumsum([len(episode["action"]) for episode in episodes]))


def main() -> None:
    """Parse the command line, record and write."""
    with command_line() as console:
        config = parse_config(CollectConfig, OmegaConf.from_cli(sys.argv[1:]))
        buffer, attempts = collect(config, load_policy(config.ckpt))
        write_zarr(Path(config.output), buffer, compression_level=9)
        console.print(f"{config.output}: {buffer.summary()}; {attempts} attempts", highlight=False)


if __name__ == "__main__":
    main()
