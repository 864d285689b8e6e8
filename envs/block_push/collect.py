"""Record successful BlockPush episodes of the scripted demonstrator.

    python -m envs.block_push.collect output=block_push.zarr.zip [episodes=1000] [workers=2]

The same command with the same settings gives the same demonstrations, with any number of workers.
"""

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress

from drift_policy.cli import command_line
from drift_policy.config import parse_config
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import ConfigurationError, require
from envs.block_push.demonstrator import Demonstrator
from envs.block_push.env import ACTION_MODES, BlockPushEnv
from envs.block_push.starts import EFFECTOR_TARGET

_MAX_STEPS = 350


@dataclass
class CollectConfig:
    """What to record."""

    output: str  # a .zarr folder or a .zip file
    episodes: int = 1000  # successful episodes to keep
    action_mode: str = "relative"  # what actions are: "relative" displacements, or "absolute" targets of the effector
    # Standard deviation, in metres, of what disturbs every command when it is executed and is not recorded: recordings
    # then show how to recover.
    disturbance: float = 0.006
    start_seed: int = 300000  # first start state; far from those of training rollouts and of the benchmark
    max_attempts: int = 10000  # episodes to try before giving up
    workers: int = 1  # processes; changes speed, never results

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "max_attempts"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}.")
        require(self.start_seed >= 0, f"start_seed must not be negative, but is {self.start_seed}.")
        require(self.disturbance >= 0, f"disturbance must not be negative, but is {self.disturbance}.")
        require(
            self.action_mode in ACTION_MODES,
            f"action_mode must be one of {', '.join(ACTION_MODES)}, but is {self.action_mode!r}.",
        )
        require(
            not Path(self.output).exists(),
            f"output={self.output} exists already: choose another path or delete it first.",
        )


@dataclass(frozen=True)
class Recording:
    """One successful episode of L steps; an observation is that before the action of its row."""

    obs: NDArray[np.float32]  # [L, 16]
    action: NDArray[np.float32]  # [L, 2]
    mode: tuple[int, int]  # the block that was first in a target, and that target


def play(seed: int, action_mode: str, disturbance: float) -> Recording | None:
    """Play the episode of a seed; return it if both blocks came into targets in time."""
    env = _environment(action_mode)
    demonstrator = Demonstrator(seed)
    rng = np.random.default_rng([seed, 1])
    observations, actions = [], []
    observation, _ = env.reset(seed=seed)
    for _ in range(_MAX_STEPS):
        target = demonstrator.act(observation)
        if action_mode == "relative":
            target = target - observation[EFFECTOR_TARGET]
        action = target.astype(np.float32)  # without disturbance, what is stored is what is executed, to the last bit
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, _, info = env.step(action + disturbance * rng.standard_normal(2))
        if terminated:
            mode = (info["first_block"], info["first_target"])
            return Recording(np.stack(observations).astype(np.float32), np.stack(actions), mode)
    return None


@cache
def _environment(action_mode: str) -> BlockPushEnv:
    """Return the environment of this process, which its episodes share."""
    return BlockPushEnv(action_mode)


def collect(config: CollectConfig, console: Console) -> tuple[list[Recording], int]:
    """Play episodes until enough have succeeded; return them in the order of their seeds, and the number of attempts.

    Raises:
        ConfigurationError: too few episodes succeed.
    """
    kept: list[Recording] = []
    with Progress(console=console) as progress, _attempts(config) as attempts:
        bar = progress.add_task("successful episodes", total=config.episodes)
        for number, recording in enumerate(attempts, start=1):
            if recording is not None:
                kept.append(recording)
                progress.advance(bar)
            if len(kept) == config.episodes:
                return kept, number
    raise ConfigurationError(
        f"Only {len(kept)} of {config.max_attempts} episodes succeeded: lower disturbance, or raise max_attempts."
    )


@contextmanager
def _attempts(config: CollectConfig) -> Iterator[Iterable[Recording | None]]:
    """Give the outcomes of all attempts, one after the other; what was not asked for is not played."""
    attempt = partial(play, action_mode=config.action_mode, disturbance=config.disturbance)
    seeds = range(config.start_seed, config.start_seed + config.max_attempts)
    if config.workers == 1:
        yield map(attempt, seeds)
        return
    # Processes are spawned, because a forked process inherits locked threads.
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as executor:
        try:
            yield executor.map(attempt, seeds)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def as_buffer(recordings: list[Recording]) -> ReplayBuffer:
    """Return the episodes as columns `obs` [N, 16] and `action` [N, 2]."""
    data = {
        "obs": np.concatenate([recording.obs for recording in recordings]),
        "action": np.concatenate([recording.action for recording in recordings]),
    }
    return ReplayBuffer(data, np.cumsum([len(recording.action) for recording in recordings]))


def describe_modes(recordings: list[Recording]) -> str:
    """Return how many episodes began with which block and target."""
    modes = [recording.mode for recording in recordings]
    return ", ".join(
        f"block {block + 1} to target {target + 1}: {modes.count((block, target))}"
        for block in range(2)
        for target in range(2)
    )


def main() -> None:
    """Parse the command line, record and write."""
    with command_line() as console:
        config = parse_config(CollectConfig, OmegaConf.from_cli(sys.argv[1:]))
        recordings, attempts = collect(config, console)
        buffer = as_buffer(recordings)
        write_zarr(Path(config.output), buffer, compression_level=9)
        console.print(f"{config.output}: {buffer.summary()}; {attempts} attempts", highlight=False)
        console.print(f"first into a target: {describe_modes(recordings)}", highlight=False)


if __name__ == "__main__":
    main()
