"""A task: where its demonstrations are, what a policy observes of them, and the environment that scores it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.formats import FORMATS, check_format
from drift_policy.data.normalizer import CONSTANT_RANGE
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.sources import DatasetSource, ResolvedData, resolve
from drift_policy.encoders import ObservationSpec
from drift_policy.errors import ConfigurationError, require


@dataclass
class DatasetConfig:
    """Where demonstrations come from; see drift_policy.data.sources for the order of the places."""

    name: str  # how messages call the data set
    relative_path: str  # inside the folder DRIFT_POLICY_DATA or the cache
    format: str = "zarr"  # one of drift_policy.data.formats.FORMATS
    options: dict[str, Any] = field(default_factory=dict)  # settings of the format's reader, such as action_mode
    url: str | None = None  # archive to download
    sha256: str | None = None  # content check of the download
    expected_episodes: int | None = None  # content check of the data set
    expected_steps: int | None = None  # content check of the data set
    bundled: str | None = None  # demonstrations in the repository, used when nothing else is found
    hint: str | None = None  # how to get the data where there is no address to download from, in one line
    memory_map: bool = False  # keep large arrays on disk instead of in memory, for formats that can

    def __post_init__(self) -> None:
        require(
            self.format in FORMATS,
            f"task.dataset.format must be one of {', '.join(FORMATS)}, but is {self.format!r}.",
        )
        mapped = [name for name, data_format in FORMATS.items() if data_format.memory_map]
        require(
            not self.memory_map or self.format in mapped,
            f"task.dataset.memory_map works with the formats {', '.join(mapped)} only, but the format is "
            f"{self.format}: leave it out.",
        )
        known = FORMATS[self.format].options
        for name in self.options:
            require(
                name in known,
                f"task.dataset.options.{name} is no setting of the format {self.format}: it has "
                f"{', '.join(known) or 'none'}.",
            )


@dataclass
class ColumnConfig:
    """Numbers of a data column: [:, start:stop] of each step, flattened."""

    name: str  # column under data/ in the replay buffer
    start: int | None = None  # first number
    stop: int | None = None  # one after the last number


@dataclass
class ObservationConfig:
    """One observation key: which columns make it up."""

    columns: list[ColumnConfig]  # their numbers are concatenated; an image is one whole column
    kind: str = "state"  # "state" for numbers, "image" for a camera
    resize: list[int] | None = None  # images: [height, width] they are scaled to before the crop; null keeps theirs
    crop: list[int] | None = None  # images: [height, width], random in training, central otherwise; null is no crop


@dataclass
class EnvConfig:
    """The Gymnasium environment of a task."""

    id: str  # as gymnasium.make takes it, "module:namespace/Name-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of gymnasium.make
    from_data: list[str] = field(default_factory=list)  # further arguments, which the demonstrations say, if they do
    max_steps: int = 300  # environment steps after which an episode of the task's protocol ends
    phases: int = 0  # subtasks that an episode can complete, which info["n_completed"] counts; 0 is no such count
    fps: int = 10  # control rate in environment steps per second, used for films

    def __post_init__(self) -> None:
        require(self.max_steps >= 1, f"task.env.max_steps must be at least 1, but is {self.max_steps}.")
        require(self.phases >= 0, f"task.env.phases must not be negative, but is {self.phases}.")
        require(self.fps >= 1, f"task.env.fps must be at least 1, but is {self.fps}.")

    def made_as(self) -> dict[str, Any]:
        """Return what makes the environment, apart from what the demonstrations say of it."""
        return {"id": self.id, "kwargs": self.kwargs}


# Fields of a task that are defaults of settings of its policies.
POLICY_DEFAULTS = (
    "noise_scale",
    "num_candidates",
    "dropout",
    "mirrored",
    "samples_per_observation",
    "kernel",
    "affinity_floor",
)


@dataclass
class TaskConfig:
    """Everything that is particular to a task."""

    name: str  # also the folder of its runs
    dataset: DatasetConfig  # demonstrations
    observations: dict[str, ObservationConfig]  # what a policy sees
    action: list[ColumnConfig]  # what a policy commands
    env: EnvConfig | None  # where a policy is scored; null is nowhere, for the demonstrations of a real robot
    score_name: str = "score"  # what the highest reward of an episode measures
    action_space: str = "absolute"  # meaning of the action numbers, carried in every checkpoint
    control_hz: float | None = None  # steps a second of the recordings, carried too; null: what they or task.env say
    horizon: int = 16  # default Tp
    n_obs_steps: int = 2  # default To
    n_action_steps: int = 8  # default Ta
    noise_scale: float | None = None  # default of the drift policies for this task; null leaves theirs
    num_candidates: int | None = None  # and of the candidates of their decisions
    dropout: float | None = None  # and of the dropout of the MLP, whatever the head
    mirrored: bool | None = None  # and of whether half of those come from the mirror image; needs a symmetry
    samples_per_observation: int | None = None  # and of the drift head's samples for each observation
    kernel: str | None = None  # and of the kernel of its field
    affinity_floor: float | None = None  # and of the floor of the affinity kernel
    symmetry: str | None = None  # "module:function" that mirrors demonstrations, to train on both; null trains as given
    constant_range: float = CONSTANT_RANGE  # numbers that vary less in the data are centred and not scaled to -1..1

    def __post_init__(self) -> None:
        require(
            self.control_hz is None or self.control_hz > 0,
            f"task.control_hz must be null or positive, but is {self.control_hz}.",
        )
        require(self.constant_range > 0, f"task.constant_range must be above 0, but is {self.constant_range}.")
        require(
            self.symmetry is None or not self.dataset.memory_map,
            "task.symmetry doubles the demonstrations in memory, so task.dataset.memory_map must be false.",
        )
        data_format = FORMATS[self.dataset.format]
        if data_format.action_space is not None:
            read = data_format.action_space(self.dataset.options)
            require(
                read in (None, self.action_space),
                f"task.action_space is {self.action_space!r}, but the demonstrations are read as {read!r} actions: "
                f"task.dataset.options.action_mode must say the same.",
            )


@dataclass(frozen=True)
class Demonstrations:
    """Loaded demonstrations and where they came from."""

    buffer: ReplayBuffer
    source: ResolvedData
    environment: dict[str, Any] = field(default_factory=dict)  # what the data say about it; see EnvConfig.from_data
    control_hz: float | None = None  # steps a second, if the data say it
    names: dict[str, list[str]] = field(default_factory=dict)  # column -> what its numbers are called, where it is said

    @cached_property
    def content_hash(self) -> str:
        """The buffer's `content_hash`, computed once: many images take minutes."""
        return self.buffer.content_hash()

    def describe(self, name: str) -> dict[str, Any]:
        """Return what a manifest records of the data."""
        return {
            "name": name,
            "origin": self.source.origin,
            "episodes": self.buffer.n_episodes,
            "steps": self.buffer.n_steps,
            "sha256": self.content_hash,
        }


def load_demonstrations(
    task: TaskConfig, path: str | None, allow_download: bool, report: Callable[[str], None]
) -> Demonstrations:
    """Find and read the demonstrations of a task, saying on the way where they come from.

    Raises:
        DataError: they are nowhere to be found, or damaged.
    """
    resolved = find_demonstrations(task.dataset, path, allow_download, report)
    columns = {column.name for observation in task.observations.values() for column in observation.columns}
    columns |= {column.name for column in task.action}
    data_format = FORMATS[task.dataset.format]
    options = dict(task.dataset.options) | ({"memory_map": True} if task.dataset.memory_map else {})
    buffer = data_format.read(resolved.path, sorted(columns), **options)
    asked = task.env.from_data if task.env else []
    said: dict[str, Any] = {}
    if data_format.environment is not None and asked:
        said = data_format.environment(resolved.path, task.dataset.options)
    said = {name: said[name] for name in asked if name in said}
    control_hz = None if data_format.control_hz is None else data_format.control_hz(resolved.path)
    names = {} if data_format.names is None else data_format.names(resolved.path)
    return Demonstrations(buffer, resolved, said, control_hz, names)


def number_names(task: TaskConfig, demonstrations: Demonstrations) -> dict[str, list[str]]:
    """Return observation key or "action" -> what the data call its numbers, of those whose columns all say it."""
    columns = {key: observation.columns for key, observation in task.observations.items()} | {"action": task.action}
    return {
        key: [name for part in parts for name in demonstrations.names[part.name][part.start : part.stop]]
        for key, parts in columns.items()
        if all(part.name in demonstrations.names for part in parts)
    }


def control_rate(task: TaskConfig, demonstrations: Demonstrations) -> float | None:
    """Return the steps a second of the recordings, None if nobody says: a policy knows steps, a robot seconds.

    Raises:
        ConfigurationError: task and demonstrations say different ones.
    """
    recorded = demonstrations.control_hz
    require(
        None in (task.control_hz, recorded) or task.control_hz == recorded,
        f"task.control_hz is {task.control_hz}, but the demonstrations were recorded at {recorded}: leave it out.",
    )
    stated = task.control_hz or recorded
    return task.env.fps if stated is None and task.env is not None else stated


def find_demonstrations(
    dataset: DatasetConfig, path: str | None, allow_download: bool, report: Callable[[str], None]
) -> ResolvedData:
    """Find the demonstrations of a task without reading them, saying on the way where they come from.

    Raises:
        DataError: they are nowhere to be found, or not the expected ones.
    """
    source = DatasetSource(
        name=dataset.name,
        relative_path=dataset.relative_path,
        url=dataset.url,
        sha256=dataset.sha256,
        expected_episodes=dataset.expected_episodes,
        expected_steps=dataset.expected_steps,
        bundled=dataset.bundled,
        hint=dataset.hint,
    )
    data_format = FORMATS[dataset.format]
    options = {name: value for name, value in dataset.options.items() if name in data_format.count_options}

    def count(found: Path) -> tuple[int, int]:
        check_format(found, dataset.format)  # its reader would call another format damaged
        return data_format.count(found, **options)

    resolved = resolve(source, path, allow_download=allow_download, report=report, count=count)
    check_format(resolved.path, dataset.format)
    return resolved


def make_windows(
    task: TaskConfig,
    buffer: ReplayBuffer,
    episode_mask: NDArray[np.bool_],
    *,
    horizon: int,
    n_obs_steps: int,
    n_action_steps: int,
) -> WindowDataset:
    """Cut the episodes of `episode_mask` into the windows that a policy of these sizes trains on."""
    return WindowDataset(
        buffer,
        {key: _columns(observation.columns) for key, observation in task.observations.items()},
        _columns(task.action),
        horizon=horizon,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        episode_mask=episode_mask,
    )


def observation_specs(task: TaskConfig, windows: WindowDataset) -> dict[str, ObservationSpec]:
    """Return what a policy is told about its observations: the kinds of the task, the shapes of the data.

    Raises:
        ConfigurationError: an observation whose kind, scaling or crop does not go with its columns.
    """
    sample = windows.batch(np.zeros(1, dtype=np.int64))["obs"]
    specs = {}
    for key, observation in task.observations.items():
        shape = list(sample[key].shape[2:])
        require(
            observation.kind != "image" or len(shape) == 3,
            f"task.observations.{key} is of kind image, but its column {observation.columns[0].name!r} holds no images "
            "[N, H, W, C] or [N, C, H, W]: grey ones need an axis of one channel too, images[..., None].",
        )
        try:
            specs[key] = ObservationSpec(observation.kind, shape, observation.resize, observation.crop)
        except ConfigurationError as error:
            raise ConfigurationError(f"task.observations.{key}: {error}") from error
    return specs


def env_for_data(env: EnvConfig, environment: Mapping[str, Any]) -> EnvConfig:
    """Return the environment with the arguments that the demonstrations say, as far as its task asks for them.

    Args:
        env: the environment of the task.
        environment: `Demonstrations.environment`, or what a checkpoint's metadata kept of it.

    Raises:
        ConfigurationError: the task itself gives one of these arguments another value.
    """
    said = {name: environment[name] for name in env.from_data if name in environment}
    for name in sorted(set(said) & set(env.kwargs)):
        require(
            env.kwargs[name] == said[name],
            f"task.env.kwargs.{name} is {env.kwargs[name]!r:.100}, but the demonstrations say {said[name]!r:.100}: "
            f"leave it out, or take {name} out of task.env.from_data.",
        )
    return replace(env, kwargs={**env.kwargs, **said})


def make_env_factory(env: EnvConfig, max_steps: int, render: bool = False) -> Callable[[], gym.Env[Any, Any]]:
    """Return a function, which processes can exchange, that makes the environment of a task.

    Args:
        env: the environment, with the arguments that its data say.
        max_steps: length limit of an episode, in place of the limit the environment is registered with.
        render: whether `env.render()` shall give frames.

    Raises:
        ConfigurationError: Gymnasium does not know the environment, or a package it needs is missing.
    """
    kwargs = dict(env.kwargs) | ({"render_mode": "rgb_array"} if render else {})
    module, _, name = env.id.rpartition(":")
    try:
        if module:
            import_module(module)  # registers the environment
        entry_point = gym.spec(name).entry_point
        if isinstance(entry_point, str):
            load_env_creator(entry_point)  # imports the simulator
    except (gym.error.Error, ImportError) as error:
        raise ConfigurationError(
            f"The environment {env.id!r} cannot be made: {error}. Run from the repository root and install the "
            "simulators: pip install -c constraints.txt -e '.[all]'."
        ) from error
    return partial(gym.make, env.id, max_episode_steps=max_steps, disable_env_checker=True, **kwargs)


def _columns(configs: list[ColumnConfig]) -> list[Column]:
    return [Column(config.name, config.start, config.stop) for config in configs]
