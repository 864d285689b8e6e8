"""Record demonstrations of robomimic's tasks in robomimic's format.

    python -m envs.robomimic.collect task=lift episodes=100 output=lift.hdf5

A scripted demonstrator plays `lift`, `can` or `square`, each episode in a manner of its own, and the successful
episodes are kept. `policy=random` records random actions of any task, also of `tool_hang` and `transport`: files of the
true schema for tests, whose attribute `policy` of `data` says so.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drift_policy.cli import command_line
from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError, require
from envs.robomimic.demonstrators import DEMONSTRATORS
from envs.robomimic.episode import Episode, play
from envs.robomimic.simulation import make_robosuite, reset_robosuite
from envs.robomimic.tasks import TASKS, environment_arguments
from envs.robomimic.writer import robomimic_writer

POLICIES = ("scripted", "random")
MAX_STEPS = 300  # of a scripted episode; what takes longer has failed
STEPS_AFTER_SUCCESS = (3, 7)  # at least, and less than


@dataclass
class CollectConfig:
    """What to record."""

    task: str  # lift, can, square; with policy=random also tool_hang, transport
    output: str  # the HDF5 file to write
    episodes: int = 100  # episodes to keep
    seed: int = 0  # another seed, other starts and other manners
    images: bool = False  # whether to record the cameras that robomimic's image files have
    camera_size: int | None = None  # height and width of the images, pixels; null is what the task's image form reads
    noise: float = 0.06  # standard deviation of the hand's tremor, in units of the action
    policy: str = "scripted"  # scripted, of which only successes are kept, or random
    steps: int = 40  # length of an episode with policy=random
    workers: int = 1  # processes that play; what is recorded does not depend on it

    def __post_init__(self) -> None:
        require(self.task in TASKS, f"task must be one of {', '.join(TASKS)}, but is {self.task!r}.")
        require(self.policy in POLICIES, f"policy must be one of {', '.join(POLICIES)}, but is {self.policy!r}.")
        require(
            self.policy == "random" or self.task in DEMONSTRATORS,
            f"task={self.task} has no scripted demonstrator, only {', '.join(DEMONSTRATORS)} have: choose one of "
            "these, or policy=random.",
        )
        for name in ("episodes", "camera_size", "steps", "workers"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, but is {value}.")
        require(self.seed >= 0, f"seed must not be negative, but is {self.seed}.")
        require(0 <= self.noise <= 1, f"noise must be between 0 and 1, but is {self.noise}.")
        if Path(self.output).exists():
            raise ConfigurationError(f"output={self.output} exists already: choose another path or delete it first.")

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return TASKS[self.task].image_size if self.camera_size is None else self.camera_size

    @property
    def max_attempts(self) -> int:
        """Episodes to try before giving up."""
        return 3 * self.episodes + 10


class Player:
    """Plays the episodes of a configuration, each a function of the seed and its number."""

    def __init__(self, config: CollectConfig) -> None:
        self._config = config
        task = TASKS[config.task]
        arguments = environment_arguments(task, config.images, config.image_size)
        self._env = make_robosuite(arguments["env_name"], arguments["env_kwargs"], rendering=config.images)
        self._cameras = task.cameras if config.images else ()

    def play(self, number: int) -> Episode:
        """Play the episode of this number."""
        config, env = self._config, self._env
        start, manner = np.random.SeedSequence([config.seed, number]).spawn(2)
        reset_robosuite(env, int(start.generate_state(1)[0]))
        rng = np.random.default_rng(manner)
        if config.policy == "random":
            return play(
                env, lambda: rng.uniform(-1, 1, env.action_dim), config.steps, None, self._cameras, config.image_size
            )
        demonstrator = DEMONSTRATORS[config.task](env, rng, config.noise)
        after = int(rng.integers(*STEPS_AFTER_SUCCESS))
        return play(env, demonstrator.act, MAX_STEPS, after, self._cameras, config.image_size)


def collect(config: CollectConfig, console: Console) -> None:
    """Play episodes until enough are kept, and write them.

    Raises:
        ConfigurationError: a package is missing, nothing can be rendered, or the demonstrator succeeds too rarely.
    """
    environment = environment_arguments(TASKS[config.task], config.images, config.image_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    attempts = 0
    with (
        robomimic_writer(Path(config.output), environment) as writer,
        Progress(*columns, console=console) as progress,
    ):
        bar = progress.add_task(f"{config.policy} episodes of {config.task}", total=config.episodes)
        for episode in episodes(config):
            attempts += 1
            if episode.success or config.policy == "random":
                writer.add(episode)
                progress.advance(bar)
            if len(writer.lengths) == config.episodes:
                break
        else:
            raise ConfigurationError(
                f"Only {len(writer.lengths)} of {attempts} episodes succeeded: reduce noise={config.noise}."
            )
        attributes = {
            "policy": config.policy,
            "collection": OmegaConf.to_yaml(OmegaConf.create({**_settings(config), "attempts": attempts})),
        }
        writer.finish(attributes, np.random.default_rng([config.seed]))
    seconds, lengths = time.perf_counter() - start, writer.lengths
    console.print(
        f"{config.output}: {len(lengths)} episodes of {attempts} played, {sum(lengths):,} steps; {min(lengths)} to "
        f"{max(lengths)} steps an episode, median {np.median(lengths):g}; {seconds:.0f} s, "
        f"{sum(lengths) / seconds:.0f} steps/s",
        highlight=False,
    )


def episodes(config: CollectConfig) -> Iterator[Episode]:
    """Give the episodes 0, 1, ... up to `max_attempts`, in order, whoever plays them."""
    if config.workers == 1:
        player = Player(config)
        for number in range(config.max_attempts):
            yield player.play(number)
        return
    context = multiprocessing.get_context("spawn")  # a forked process could not render
    with context.Pool(config.workers, _start_worker, (config,)) as pool:
        yield from pool.imap(_play_in_worker, range(config.max_attempts))


_player: Player | None = None  # of a worker process


def _start_worker(config: CollectConfig) -> None:
    global _player
    _player = Player(config)


def _play_in_worker(number: int) -> Episode:
    assert _player is not None  # the pool starts every worker with _start_worker
    return _player.play(number)


def _settings(config: CollectConfig) -> dict[str, str | int | float | bool]:
    """Return what makes the recorded episodes what they are."""
    names = ("task", "episodes", "seed", "images", "image_size", "noise", "steps")
    return {name: getattr(config, name) for name in names} | {name: version(name) for name in ("robosuite", "mujoco")}


def main() -> None:
    """Parse the command line, record and write."""
    with command_line() as console:
        collect(parse_config(CollectConfig, OmegaConf.from_cli(sys.argv[1:])), console)


if __name__ == "__main__":
    main()
