"""A training run from configuration to scored checkpoint, film and pictures."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from drift_policy.data.normalizer import Normalizer
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.symmetry import find_symmetry, with_mirror_images
from drift_policy.data.windows import limit_episodes, split_validation
from drift_policy.device import choose_device
from drift_policy.errors import ConfigurationError, RunStoppedError, require
from drift_policy.evaluation.evaluate import (
    EnvironmentSpaces,
    check_environment,
    evaluate_checkpoint,
    evaluation_manifest,
    write_artifacts,
)
from drift_policy.evaluation.offline import draw_open_loop, evaluate_offline, open_loop_manifest
from drift_policy.evaluation.rollout import EvaluationConfig, rollout
from drift_policy.manifest import describe_run, simulator_versions, write_json
from drift_policy.metadata_keys import (
    ACTION_SPACE,
    CONTROL_RATE,
    ENVIRONMENT_MADE,
    INITIAL_CHECKPOINT,
    NUMBER_NAMES,
    SIMULATORS,
    TRAINED_EPISODES,
)
from drift_policy.mirror import fit_mirror
from drift_policy.plugins import import_plugins
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.result_files import MANIFEST
from drift_policy.serialization import load_policy, resolve_checkpoint
from drift_policy.task import (
    Demonstrations,
    EnvConfig,
    control_rate,
    env_for_data,
    load_demonstrations,
    make_env_factory,
    make_windows,
    number_names,
    observation_specs,
)
from drift_policy.training.checkpoint import CheckpointStore
from drift_policy.training.config import TrainConfig
from drift_policy.training.curves import plot_curves
from drift_policy.training.display import TrainingDisplay
from drift_policy.training.folder_guard import claimed_folder, goes_on
from drift_policy.training.initial_checkpoint import read_initial_checkpoint, start_from
from drift_policy.training.interrupt import TrainingInterruptedError
from drift_policy.training.parallel import Processes, start_processes
from drift_policy.training.positives import add_positives
from drift_policy.training.run_folder import (
    SCRIPT,
    check_settings,
    course_of_a_run,
    record_part,
    record_settings,
    resume_command,
)
from drift_policy.training.tracking import finished, logged_rollouts, make_trackers, summary_of
from drift_policy.training.trainer import Evaluate, Trainer, TrainingData


def train(config: TrainConfig, overrides: Sequence[str], console: Console) -> Path:
    """Train, evaluate and film a policy; return the folder of the run.

    Args:
        config: the whole configuration.
        overrides: the command-line arguments, recorded in the manifest and in the resume command.
        console: where to report.

    Raises:
        UserError: anything the user has to change; nothing already written is lost.
    """
    import_plugins(config.plugins)
    run_dir = Path(config.output) / config.task.name / config.name
    processes = start_processes(choose_device(config.device), config.trainer.sharding)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    store = CheckpointStore(run_dir, config.trainer.keep_best, lowest_is_best=config.task.env is None)
    with ExitStack() as claim:
        with processes.agreed():
            if processes.is_main:
                command = resume_command(overrides)
                claim.enter_context(claimed_folder(run_dir, store.has_last, config.resume, command))
        going_on = goes_on(config.resume, store.has_last)  # no process has saved anything yet
        shown_by = console if processes.is_main else Console(quiet=True)
        _train(config, run_dir, store, going_on, processes, overrides, shown_by)
    return run_dir


def _train(
    config: TrainConfig,
    run_dir: Path,
    store: CheckpointStore,
    going_on: bool,
    processes: Processes,
    overrides: Sequence[str],
    console: Console,
) -> None:
    started = describe_run(SCRIPT, overrides)  # now: the checkout may move on while the run goes on
    say = partial(console.print, highlight=False)
    say(f"run      {run_dir}")
    with processes.main_first():
        initial = read_initial_checkpoint(config.initial_ckpt, store if going_on else None)
        demonstrations = load_demonstrations(config.task, config.data_path, config.allow_download, say)
    with processes.agreed():
        env, spaces = _environment(config, demonstrations, renders=processes.is_main and config.video_episodes > 0)
    say(f"data     {demonstrations.buffer.summary()}")
    torch.manual_seed(config.seed)
    data_facts = demonstrations.describe(config.task.dataset.name)
    settings = {**course_of_a_run(config), "data_sha256": data_facts["sha256"]}
    with processes.agreed():
        if going_on:
            check_settings(run_dir, settings)
        policy, data = build_policy_and_data(config, demonstrations, processes.device)
        say(f"policy   {_describe_policy(policy)} on {_describe_processes(processes)}")
        say(f"choice   checkpoints by {_choice(config, data)}")
        _note_short_episodes(demonstrations.buffer, policy.horizon, say)
        _check_measurements(config, policy, spaces)
        if initial is not None:
            start_from(initial, policy, data, config.task, demonstrations, say)
        add_positives(data.train, policy, config.trainer, console)

    trainer = Trainer(
        policy,
        data,
        config.trainer,
        store=store,
        display=TrainingDisplay(config.trainer.num_steps, console),
        evaluate=_make_evaluate(env, config.rollout) if env and config.trainer.rollout_every else None,
        choose_by_error=env is None,
        seed=config.seed,
        processes=processes,
        resume=going_on,
    )
    if going_on:
        say(f"resume   from step {trainer.state.step}")
    elif processes.is_main:
        record_settings(run_dir, settings)
    if processes.is_main:
        parts = record_part(run_dir, started, trainer.state.step)
        trainer.trackers = make_trackers(config.logger, run_dir, settings, trainer.state.step)
    with finished(trainer.trackers):
        _run_to_the_end(trainer, processes, overrides)
        if processes.is_main:
            facts = {**started, "parts": parts, "task": config.task.name, "data": data_facts}
            facts |= _facts(config, trainer, processes, data)
            _conclude(config, env, run_dir, facts, trainer, data, demonstrations, console)


def _note_short_episodes(buffer: ReplayBuffer, horizon: int, say: Callable[[str], None]) -> None:
    short = int((buffer.episode_lengths < horizon).sum())
    if short:
        say(
            f"note     {short} of {buffer.n_episodes} episodes are shorter than the horizon of {horizon} steps: their "
            "windows repeat the last step"
        )


def _conclude(
    config: TrainConfig,
    env: EnvConfig | None,
    run_dir: Path,
    facts: dict[str, Any],
    trainer: Trainer,
    data: TrainingData,
    demonstrations: Demonstrations,
    console: Console,
) -> None:
    """Measure the best checkpoint of a training that ended, and write the manifest, curves and pictures."""
    say = partial(console.print, highlight=False)
    facts["training"]["rollouts"] = rollouts = logged_rollouts(run_dir / "metrics.csv")
    if rollouts:  # the best one alone would flatter a training that scatters
        facts["training"]["rollout_summary"] = summary = summary_of(rollouts)
        found = f"{summary['max_score']:.3f} at best, {summary['mean_score_of_last']:.3f} on average"
        say(f"rollouts score {found} over the last {summary['last']} of {len(rollouts)}")
    best = resolve_checkpoint(run_dir)
    say(f"chosen   {best}")
    policy = load_policy(best, trainer.policy.device)
    plot_curves(run_dir / "metrics.csv", run_dir / "curves.png", f"{config.task.name}/{config.name}")
    if env is not None:
        _finish(config, env, policy, run_dir, facts, trainer, console)
    else:
        _finish_without_env(config, policy, data, demonstrations, run_dir, facts, console)
    say(f"written  {run_dir}: manifest.json, metrics.csv, curves.png, checkpoints/")


def _environment(
    config: TrainConfig, demonstrations: Demonstrations, renders: bool
) -> tuple[EnvConfig | None, EnvironmentSpaces | None]:
    """Return the environment of the run and its spaces, if there is one: it was made once, for errors before training.

    Args:
        config: the whole configuration.
        demonstrations: which say what the environment is made with.
        renders: whether it will be rendered at the end, and therefore is now.
    """
    if config.task.env is None:
        return None, None
    env = env_for_data(config.task.env, demonstrations.environment)
    return env, check_environment(env, renders)


def _check_measurements(config: TrainConfig, policy: Policy, spaces: EnvironmentSpaces | None) -> None:
    """Refuse measurements that this policy cannot give, before hours of training and not after."""
    if spaces is not None:
        spaces.check_fits(policy, config.task.name)
    config.evaluation.check_fits(policy)
    if config.task.env is not None and config.trainer.rollout_every:
        config.rollout.check_fits(policy)


def _run_to_the_end(trainer: Trainer, processes: Processes, overrides: Sequence[str]) -> None:
    try:
        trainer.run()
    except TrainingInterruptedError:
        if not processes.is_main:
            sys.exit(RunStoppedError.exit_code)  # the first process tells the user
        raise RunStoppedError(
            f"Stopped at step {trainer.state.step}; everything is saved. Go on with: {resume_command(overrides)}"
        ) from None


def _facts(config: TrainConfig, trainer: Trainer, processes: Processes, data: TrainingData) -> dict[str, Any]:
    """Return what a manifest records of a training that ended, beside its start and its data."""
    state, policy = trainer.state, trainer.policy
    return {
        "train_windows": len(data.train),
        "initial_checkpoint": policy.metadata.get(INITIAL_CHECKPOINT),
        "training": {
            "steps": state.step,
            "seconds": state.training_s,
            "samples_per_s": state.step * config.trainer.batch_size / max(state.training_s, 1e-9),
            "processes": processes.size,
            "checkpoints": [asdict(entry) for entry in state.best],
            "chosen_by": _choice(config, data),
        },
        "policy": {**policy.config.to_mapping(), "parameters": _num_parameters(policy)},
        "config": course_of_a_run(config),
        "seed": config.seed,
    }


def build_policy_and_data(
    config: TrainConfig, demonstrations: Demonstrations, device: torch.device
) -> tuple[Policy, TrainingData]:
    """Build the policy that fits the demonstrations, its normaliser set, and the windows it trains on."""
    buffer, trainer = demonstrations.buffer, config.trainer
    held_out = split_validation(buffer.n_episodes, trainer.val_ratio)
    training = limit_episodes(~held_out, trainer.max_train_episodes)
    sizes = {name: _step_count(config, name) for name in ("horizon", "n_obs_steps", "n_action_steps")}
    trained_on, shown = training, buffer
    if config.task.symmetry is not None:  # held-out episodes have no mirror image among those that are trained on
        shown = with_mirror_images(buffer, find_symmetry(config.task.symmetry))
        training = np.concatenate([training, training])
    train_set = make_windows(config.task, shown, training, **sizes)
    stats = train_set.stats_arrays()
    policy_config = policy_config_from_mapping(
        {
            **config.policy,
            **sizes,
            "action_dim": stats["action"].shape[1],
            "observations": {key: asdict(spec) for key, spec in observation_specs(config.task, train_set).items()},
        }
    )
    metadata: dict[str, Any] = {
        "task": config.task.name,
        "score_name": config.task.score_name,
        ACTION_SPACE: config.task.action_space,
        CONTROL_RATE: control_rate(config.task, demonstrations),
        NUMBER_NAMES: number_names(config.task, demonstrations),
        ENVIRONMENT_MADE: config.task.env.made_as() if config.task.env else None,
        SIMULATORS: simulator_versions() if config.task.env else {},
        "data": demonstrations.describe(config.task.dataset.name),
        "environment": demonstrations.environment,
    }
    if config.task.env is None:  # what a later evaluation leaves out
        hashes = buffer.episode_hashes()
        metadata[TRAINED_EPISODES] = [hashes[number] for number in np.flatnonzero(trained_on)]
    policy = build_policy(policy_config, metadata)
    policy.set_normalizer(Normalizer.fit(stats, constant_range=config.task.constant_range))
    if policy.mirror is not None:
        require(
            config.task.symmetry is not None,
            "policy.mirrored=true needs mirrored demonstrations: set task.symmetry, or policy.mirrored=false.",
        )
        fit_mirror(policy, train_set)
    validation_set = make_windows(config.task, buffer, held_out, **sizes) if held_out.any() else None
    return policy.to(device), TrainingData(train_set, validation_set, config.task.dataset.memory_map)


def _step_count(config: TrainConfig, name: str) -> int:
    """Return a number of steps of the policy; the task says what it is by default."""
    value = config.policy.get(name, getattr(config.task, name))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"policy.{name} must be a whole number of at least 1, but is {value!r}.")
    return value


def _make_evaluate(env: EnvConfig, config: EvaluationConfig) -> Evaluate:
    config = config.for_task(env.max_steps)
    make_env = make_env_factory(env, config.step_limit)
    return lambda policy, check: rollout(policy, make_env, config, on_decision=check)


def _describe_policy(policy: Policy) -> str:
    config = policy.config
    return (
        f"{config.head_name} head, {config.network_name}, {_num_parameters(policy) / 1e6:.2f} M parameters, "
        f"{policy.num_evaluations} network evaluation(s) a decision"
    )


def _describe_processes(processes: Processes) -> str:
    if processes.size == 1:
        return str(processes.device)
    return f"{processes.size} processes ({processes.device.type}{', weights split' if processes.is_sharded else ''})"


def _num_parameters(policy: Policy) -> int:
    return sum(parameter.numel() for parameter in policy.parameters())


def _finish(
    config: TrainConfig,
    env: EnvConfig,
    policy: Policy,
    run_dir: Path,
    facts: dict[str, Any],
    trainer: Trainer,
    console: Console,
) -> None:
    """Evaluate the best checkpoint, write the manifest, then draw and film it if that is asked for."""
    result = evaluate_checkpoint(policy, env, config.evaluation, console)
    evaluation = evaluation_manifest(policy, env, result, config.evaluation)
    write_json(run_dir / MANIFEST, {**facts, "evaluation": evaluation})
    if config.video_episodes:
        write_artifacts(policy, env, config.evaluation, run_dir, config.video_episodes, console)
        for tracker in trainer.trackers:
            tracker.log_video(trainer.state.step, run_dir / "rollouts.mp4")


def _finish_without_env(
    config: TrainConfig,
    policy: Policy,
    data: TrainingData,
    demonstrations: Demonstrations,
    run_dir: Path,
    facts: dict[str, Any],
    console: Console,
) -> None:
    """Measure the best checkpoint on the held-out episodes, if there are any, and write the manifest."""
    open_loop = None
    if data.validation is not None:
        ends = demonstrations.buffer.episode_ends
        result = evaluate_offline(policy, data.validation, ends, config.evaluation, console)
        draw_open_loop(policy, data.validation, result, run_dir, console)
        open_loop = open_loop_manifest(policy, result, config.evaluation)
    write_json(run_dir / MANIFEST, {**facts, "evaluation": None, "open_loop": open_loop})


def _choice(config: TrainConfig, data: TrainingData) -> str:
    """Say what the best checkpoint is chosen by."""
    if config.task.env is not None:
        return "score of rollouts" if config.trainer.rollout_every else "step: the last one, as there are no rollouts"
    if data.validation is not None:
        return "held-out action error of its own decisions, as the task has no environment"
    return "step: the last one, as the task has no environment and no episode is held out"
