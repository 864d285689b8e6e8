"""The evaluation command: roll a checkpoint out, print its score, record every episode, film it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from drift_policy.device import choose_device
from drift_policy.digests import file_sha256
from drift_policy.errors import CheckpointError, ConfigurationError, require
from drift_policy.evaluation.action_fan import FAN, picture_action_fan
from drift_policy.evaluation.chunked_episode import ChunkedEpisode
from drift_policy.evaluation.offline import draw_open_loop, evaluate_offline, open_loop_manifest, windows_to_evaluate
from drift_policy.evaluation.open_loop import OpenLoopResult
from drift_policy.evaluation.rollout import (
    NO_SUCCESS_REPORTED,
    Episode,
    EvaluationConfig,
    RolloutResult,
    rollout,
    space_mismatch,
)
from drift_policy.evaluation.video import film_rollouts
from drift_policy.manifest import describe_run, simulator_versions, write_json
from drift_policy.metadata_keys import ACTION_SPACE, ENVIRONMENT_MADE, SIMULATORS
from drift_policy.plugins import import_plugins
from drift_policy.policy import Policy
from drift_policy.result_files import MANIFEST, keep_earlier, require_writable
from drift_policy.serialization import MODEL_FILE, load_policy, resolve_checkpoint
from drift_policy.task import (
    EnvConfig,
    TaskConfig,
    env_for_data,
    load_demonstrations,
    make_env_factory,
)
from drift_policy.task_files import load_task

SCRIPT = "eval_policy.py"
_SPEED = ("n_envs", "asynchronous")  # settings of an evaluation that change no result


@dataclass
class EvalConfig:
    """What to evaluate, and where to write it."""

    ckpt: str  # run folder, checkpoint folder, or hf://owner/name
    evaluation: EvaluationConfig  # which episodes
    task: TaskConfig | None = None  # task to evaluate in; null is the one the checkpoint was trained for
    device: str = "cpu"  # "cpu", "cuda", ...; "auto" takes a GPU if there is one
    # Folder of the results, written anew. Null is the folder eval/ beside the checkpoint; an earlier result there of
    # other weights or settings is kept as eval_1/, eval_2/, ...
    output: str | None = None
    video_episodes: int = 0  # episodes to film, beside the action fan; 0 is neither, and renders nothing
    data_path: str | None = None  # tasks without environment: demonstrations to measure on, instead of the task's
    allow_download: bool = True  # tasks without environment: whether demonstrations may be fetched from their site
    plugins: list[str] = field(default_factory=list)  # modules to import first, for example image backbones of yours

    def __post_init__(self) -> None:
        if self.video_episodes < 0:
            raise ConfigurationError(f"video_episodes must not be negative, but is {self.video_episodes}.")


class EnvironmentSpaces(NamedTuple):
    """What an environment shows and takes, as `ChunkedEpisode` describes it."""

    observation: gym.Space[Any]
    action: gym.Space[Any]

    def check_fits(self, policy: Policy, task: str) -> None:
        """Require that a policy that is made for the demonstrations of a task can act in the environment of that task.

        Raises:
            ConfigurationError: it observes or commands something else.
        """
        mismatch = space_mismatch(policy, self.observation, self.action)
        require(
            mismatch is None,
            f"{mismatch}. A policy is made as the demonstrations are: let observations, action and env of the task "
            f"{task} agree.",
        )


def evaluate(
    config: EvalConfig, tasks: Path, overrides: Sequence[str], console: Console, further_tasks: Sequence[Path] = ()
) -> RolloutResult | OpenLoopResult:
    """Evaluate a checkpoint and write manifest.json.

    A task without an environment is measured in open loop on its demonstrations (see `offline`). An environment always
    comes from a task file of the installation or of the command line: a checkpoint only names its task, since an
    environment that it could choose itself would be code that it could choose.

    Args:
        config: the whole configuration.
        tasks: folder of the task files.
        overrides: the command-line arguments, recorded in the manifest.
        console: where to report.
        further_tasks: folders of more task files.

    Raises:
        UserError: the checkpoint cannot be read, or does not fit the task.
    """
    import_plugins(config.plugins)
    folder = resolve_checkpoint(config.ckpt)
    policy = load_policy(folder, choose_device(config.device))
    task = _trained_task(policy, folder, tasks, further_tasks) if config.task is None else config.task
    _check_action_space(policy, task)
    output = Path(config.output) if config.output else _default_output(config.ckpt, folder)
    require_writable(output / MANIFEST)
    console.print(f"policy   {folder}, trained on {policy.metadata.get('task', 'an unknown task')}", highlight=False)
    facts = {
        **describe_run(SCRIPT, overrides),
        "checkpoint": checkpoint_facts(policy, folder),
        "settings": _course_of(config, task),
    }
    if task.env is None:
        return _evaluate_open_loop(policy, task, config, facts, output, console)
    if config.data_path is not None:
        raise ConfigurationError(
            f"data_path is for tasks without an environment, but {task.name} has {task.env.id}: leave it out."
        )
    env = env_of_checkpoint(policy, task.env)
    if config.video_episodes:
        check_environment(env, renders=True)
    result = evaluate_checkpoint(policy, env, config.evaluation, console)
    _say_other_simulators(policy, console)
    facts["evaluation"] = evaluation_manifest(policy, env, result, config.evaluation)
    _keep_earlier(config, output, facts, console)
    write_json(output / MANIFEST, facts)
    if config.video_episodes:
        write_artifacts(policy, env, config.evaluation, output, config.video_episodes, console)
    console.print(f"written  {output / MANIFEST}", highlight=False)
    return result


def _course_of(config: EvalConfig, task: TaskConfig) -> dict[str, Any]:
    """Return the settings that decide what is measured."""
    episodes, environment = config.evaluation, None
    if task.env is not None:
        episodes = episodes.for_task(task.env.max_steps)
        environment = {**task.env.made_as(), "phases": task.env.phases}
    evaluation = {name: value for name, value in asdict(episodes).items() if name not in _SPEED}
    return {"task": task.name, "environment": environment, "evaluation": evaluation}


def _keep_earlier(config: EvalConfig, output: Path, facts: dict[str, Any], console: Console) -> None:
    """Rename the default folder if it holds the result of another question; a folder that was named is replaced."""
    kept = None if config.output else keep_earlier(output, output / MANIFEST, facts, ("checkpoint", "settings", "data"))
    if kept is not None:
        console.print(f"kept     the earlier evaluation, of other weights or settings: {kept}", highlight=False)


def checkpoint_facts(policy: Policy, folder: Path) -> dict[str, Any]:
    """Return what a manifest records of the checkpoint in `folder`; its hash tells it from others of that name."""
    digest = file_sha256(folder / MODEL_FILE)
    return {**policy.metadata, "folder": folder.name, "policy": policy.config.to_mapping(), "sha256": digest}


def env_of_checkpoint(policy: Policy, env: EnvConfig) -> EnvConfig:
    """Return the environment of a task with the arguments that the checkpoint's demonstrations said."""
    return env_for_data(env, _said(policy))


def _said(policy: Policy) -> dict[str, Any]:
    """Return what the demonstrations of a checkpoint said of their environment."""
    said = policy.metadata.get("environment", {})
    if not isinstance(said, dict):
        raise CheckpointError(f"metadata.environment of the checkpoint must be an object, but is {said!r:.50}.")
    return said


def _say_other_simulators(policy: Policy, console: Console) -> None:
    """Say that scores may differ from those of the training, if its environment ran on other releases."""
    trained = policy.metadata.get(SIMULATORS)  # older checkpoints do not say
    known = trained if isinstance(trained, dict) else {}
    for package, version in simulator_versions().items():
        if known.get(package, version) != version:
            console.print(
                f"note     {package} is {version} here and was {known[package]!s:.20} when the policy was trained: its "
                "scores may differ",
                highlight=False,
            )


def evaluate_checkpoint(policy: Policy, env: EnvConfig, config: EvaluationConfig, console: Console) -> RolloutResult:
    """Roll a policy out with a progress bar and print its scores; `env` as `env_of_checkpoint` gives it."""
    config = config.for_task(env.max_steps)
    with Progress(
        TextColumn("episodes"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("episodes", total=config.n_episodes)

        def on_episode(_: Episode) -> None:
            progress.advance(bar)

        result = rollout(policy, make_env_factory(env, config.step_limit), config, on_episode)
    name = str(policy.metadata.get("score_name", "score"))
    table = Table(title=f"{config.n_episodes} episodes, seeds from {config.start_seed}, {config.max_steps} steps")
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    phases = [(f"p{number}", result.phase(number)) for number in range(1, env.phases + 1)]
    for label, interval in ((f"highest {name}", result.score), ("success", result.success), *phases):
        table.add_row(label, f"{interval.mean:.3f}", interval.span(".3f"))
    table.add_row("decision p50 / p99, ms", f"{result.latency(50):.2f}", f"{result.latency(99):.2f}")
    console.print(table)
    if not result.success_reported:
        console.print(NO_SUCCESS_REPORTED, highlight=False)
    return result


def evaluation_manifest(
    policy: Policy, env: EnvConfig, result: RolloutResult, config: EvaluationConfig
) -> dict[str, Any]:
    """Return what a manifest records of an evaluation, every episode included."""
    return {
        "score_name": policy.metadata.get("score_name", "score"),
        "score": result.score.to_mapping(),
        "success": result.success.to_mapping(),
        "success_reported": result.success_reported,
        "phases": {f"p{number}": result.phase(number).to_mapping() for number in range(1, env.phases + 1)},
        "network_evaluations": policy.num_evaluations,
        "latency_ms": {"p50": result.latency(50), "p99": result.latency(99), "decisions": len(result.latency_ms)},
        "wall_s": result.wall_s,
        **config.decisions_of(policy),
        "protocol": asdict(config.for_task(env.max_steps)),
        "episodes": [asdict(episode) for episode in result.episodes],
    }


def check_environment(env: EnvConfig, renders: bool) -> EnvironmentSpaces:
    """Make an environment once, for errors before hours of work and not after.

    Args:
        env: how it is made.
        renders: whether it will be rendered, and therefore is now, one frame.

    Returns:
        What it shows and takes, for `EnvironmentSpaces.check_fits`.

    Raises:
        ConfigurationError: it cannot be made or rendered; the message then names the setting that does without.
    """
    make = make_env_factory(env, env.max_steps)  # apart: what it lacks itself is no fault of rendering
    try:
        made = make()
    except (TypeError, ValueError, gym.error.Error) as error:
        raise ConfigurationError(
            f"{env.id} cannot be made with task.env.kwargs={env.kwargs!r:.200} ({type(error).__name__}: {error}). "
            "Correct them in the task file."
        ) from error
    try:
        chunked = ChunkedEpisode(made, 1, 1, env.max_steps)
    finally:
        made.close()
    if renders:
        _check_rendering(env)
    return EnvironmentSpaces(chunked.observation_space, chunked.action_space)


def _check_rendering(env: EnvConfig) -> None:
    advice = "Film and action fan need it: make it work, or do without them by video_episodes=0."
    made: gym.Env[Any, Any] | None = None
    try:
        made = make_env_factory(env, env.max_steps, render=True)()
        made.reset(seed=0)
        frame = np.asarray(made.render())
    except Exception as error:  # every simulator and graphics driver raises exceptions of its own
        raise ConfigurationError(f"{env.id} cannot be rendered ({type(error).__name__}: {error}). {advice}") from error
    finally:
        if made is not None:
            made.close()
    require(
        frame.dtype == np.uint8 and frame.ndim == 3,
        f"{env.id} renders {frame.dtype} of shape {list(frame.shape)}, but bytes [H, W, 3] are expected. {advice}",
    )


def write_artifacts(
    policy: Policy, env: EnvConfig, config: EvaluationConfig, folder: Path, video_episodes: int, console: Console
) -> None:
    """Film some test episodes and draw the action fan; both render."""
    config = config.for_task(env.max_steps)
    make_env = make_env_factory(env, config.step_limit, render=True)
    picture_action_fan(policy, make_env, config.start_seed, folder / FAN, config.step_limit)
    with console.status(f"filming {video_episodes} episodes"):
        film_rollouts(policy, make_env, config, video_episodes, folder / "rollouts.mp4", env.fps)
    console.print(f"pictures {folder}: {FAN}, rollouts.mp4", highlight=False)


def _evaluate_open_loop(
    policy: Policy, task: TaskConfig, config: EvalConfig, facts: dict[str, Any], output: Path, console: Console
) -> OpenLoopResult:
    """Measure the action error of a task without an environment and write it with `facts` to manifest.json."""
    if config.video_episodes:
        raise ConfigurationError(f"The task {task.name} has no environment to film: leave video_episodes out.")
    demonstrations = load_demonstrations(
        task, config.data_path, config.allow_download, partial(console.print, highlight=False)
    )
    windows = windows_to_evaluate(policy, task, demonstrations, console)
    ends = demonstrations.buffer.episode_ends
    facts["data"] = demonstrations.describe(task.dataset.name)
    result = evaluate_offline(policy, windows, ends, config.evaluation, console)
    _keep_earlier(config, output, facts, console)
    draw_open_loop(policy, windows, result, output, console)
    facts |= {
        "evaluation": None,  # there is no environment
        "open_loop": open_loop_manifest(policy, result, config.evaluation),
    }
    write_json(output / MANIFEST, facts)
    console.print(f"written  {output / MANIFEST}", highlight=False)
    return result


def _trained_task(policy: Policy, folder: Path, tasks: Path, further: Sequence[Path]) -> TaskConfig:
    """Return the task that the checkpoint names, from its task file."""
    task = policy.metadata.get("task")
    try:
        found = load_task(tasks, task, further)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} cannot be evaluated by itself. {error} If its task file lies elsewhere, add "
            "hydra.searchpath=[file:///path/to/configs], the folder that holds task/<name>.yaml; or name one of these "
            "tasks with task=<name>."
        ) from error
    trained = policy.metadata.get(ENVIRONMENT_MADE)  # older checkpoints do not say
    if trained and found.env is not None and trained != found.env.made_as():
        raise CheckpointError(
            f"{folder} was trained for the environment {trained}, but the task file {task}.yaml makes "
            f"{found.env.made_as()}. Give task={task} with the task.env settings of the training, or, to score it in "
            f"the other environment, task={task} alone."
        )
    return found


def _check_action_space(policy: Policy, task: TaskConfig) -> None:
    """Refuse an environment that would take the policy's numbers for something else."""
    if task.env is not None and "action_mode" in task.env.from_data and "action_mode" in _said(policy):
        return  # the environment is made for the checkpoint's actions
    trained = policy.metadata.get(ACTION_SPACE, task.action_space)
    require(
        trained == task.action_space,
        f"The policy's actions are {trained!r:.40}, but those of the task are {task.action_space!r} "
        f"(task.action_space): give task={task.name} with the task settings of the training.",
    )


def _default_output(ckpt: str, folder: Path) -> Path:
    """Return eval/ in the run's folder, or in the checkpoint's folder if that was given, or here for the Hub."""
    if ckpt.startswith("hf://"):
        return Path("eval") / ckpt.removeprefix("hf://").replace("/", "_")
    given = Path(ckpt)
    return given / "eval" if given.is_dir() else folder / "eval"
