"""Image trainings from configuration to checkpoint, curves, manifest and sample grid.

Runs with torch, numpy, einops and safetensors alone (from cached latents): everything else is handed in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from drift_policy.device import choose_device
from drift_policy.errors import RunStoppedError
from drift_policy.manifest import describe_run, write_json
from drift_policy.training.folder_guard import AUTO, OTHER_NAME
from drift_policy.training.interrupt import TrainingInterruptedError
from drift_policy.training.parallel import Processes, start_processes
from drift_policy.training.stepped_training import Display
from drift_policy.training.tracking import make_trackers
from image_gen.artifacts import load_mae
from image_gen.baselines.flow import FlowObjective
from image_gen.memory_bank import MemoryBank
from image_gen.models import MAE, DiT
from image_gen.training.checkpoint import CheckpointStore
from image_gen.training.config import GeneratorTrainConfig, MaeTrainConfig, RunConfig
from image_gen.training.drift_checks import PUSH_SETTING, check_drift
from image_gen.training.drift_objective import DriftObjective, LossOfFeatures, compiled_drifting_loss, drifting_loss
from image_gen.training.grids import SampleGrid
from image_gen.training.loop import TrainingLoop, is_past
from image_gen.training.mae_objective import MaeObjective
from image_gen.training.networks import features_for, generator_for, mae_for
from image_gen.training.objective import Objective
from image_gen.training.run_folder import check_settings, claimed, course_of, record_settings, run_folder
from image_gen.training.samples import RealSamples, SampleStream, open_samples

Network = TypeVar("Network", DiT, MAE)
# Of the masked autoencoder that is trained before a generator: its name is not the user's to choose.
_OTHER_MAE = (
    "It holds the masked autoencoder that feature.mae=null uses; its settings mae.* are set by feature.mae_training.*. "
    "Leave them as they were, delete {folder} to train it anew, or train another by image_gen/train_mae.py ... "
    "name=... and give its folder, feature.mae=... ."
)
_BUSY_MAE = (
    "this run needs that masked autoencoder. Start again when it is trained, or give another, feature.mae=<folder>."
)
PlotCurves = Callable[[Path, Path, str], None]  # metrics.csv, picture, title


@dataclass
class Surroundings:
    """What a run needs from the program around it."""

    script: str  # the program as python is given it
    overrides: Sequence[str]  # its command-line arguments
    say: Callable[[str], None]  # prints a line
    make_display: Callable[[int], Display]  # from the number of steps
    plot_curves: PlotCurves | None  # draws metrics.csv; None where nothing can
    quiet_display: Callable[[int], Display]  # of the processes that do not show anything
    ends_at: float | None = None  # when to end, by time.monotonic(), whatever is trained then; None: with the training
    how_to_go_on: str = f"resume={AUTO}"  # what the user adds to the command to go on with a run


def train_generator(
    config: GeneratorTrainConfig,
    around: Surroundings,
    processes: Processes | None = None,
    loss: LossOfFeatures = drifting_loss,
) -> Path:
    """Train a generator and return the folder of the run.

    Without `feature.mae`, a masked autoencoder is trained on the same data first.

    Args:
        config: the whole configuration.
        around: what the program gives.
        processes: who trains together; started here if absent.
        loss: over features; studies of the loss replace it.

    Raises:
        UserError: anything the user has to change; nothing already written is lost.
    """
    processes = processes or _start(config)
    say = around.say if processes.is_main else _silent
    samples = _open(config, processes)
    with processes.agreed(), torch.device("meta"):  # errors before an autoencoder is trained, not after
        described = generator_for(samples, config.model)
    if config.method == "drift":
        with processes.agreed():
            check_drift(config, samples, processes)
    say(f"run      {run_folder(config)}")
    say(f"data     {len(samples.dataset)} samples {list(samples.sample_shape)} of {samples.num_classes} classes")
    say(f"network  {_millions(described)}, {config.method}, on {_describe(processes)}")
    with claimed(config, processes, around.how_to_go_on) as going_on:
        _train_generator(config, samples, going_on, around, processes, say, loss)
    return run_folder(config)


def _train_generator(
    config: GeneratorTrainConfig,
    samples: RealSamples,
    going_on: bool,
    around: Surroundings,
    processes: Processes,
    say: Callable[[str], None],
    loss: LossOfFeatures,
) -> None:
    mae = _find_mae(config, samples, around, processes, say) if config.method == "drift" else None
    torch.manual_seed(config.seed)
    network = generator_for(samples, config.model).to(processes.device)
    network.activation_checkpointing = config.trainer.activation_checkpointing
    objective: Objective[DiT, Any]
    if config.method == "flow":
        batch = config.drift.labels_per_step * config.drift.samples_per_label
        sizes = "drift.labels_per_step or drift.samples_per_label"
        stream = SampleStream(samples, batch, config.seed, processes, config.dataset.num_workers, sizes)
        objective = FlowObjective(network, processes, stream=stream, seed=config.seed)
    else:
        objective = _drift_objective(config, samples, network, mae, processes, loss)
        if not objective.saves_bank:
            say(f"bank     {objective.bank.nbytes / 1e9:.1f} GB, not saved: a resume fills it again")
    metadata: dict[str, object] = {
        "method": config.method,
        "dataset": config.dataset.name,
        "class_names": samples.class_names,
        "tokenizer": samples.tokenizer,
        "tokenizer_weights": samples.tokenizer_weights,
        "data_config": asdict(config.dataset),
        "seed": config.seed,
    }
    grid = SampleGrid(run_folder(config), samples, config.picture, config.method, say)
    _run(config, samples, going_on, objective, metadata, around, grid.draw)


def train_mae(
    config: MaeTrainConfig,
    around: Surroundings,
    processes: Processes | None = None,
    if_busy: str = OTHER_NAME,
    recipe_setting: str = "mae",
) -> Path:
    """Train a masked autoencoder and return the folder of the run.

    Args:
        config: the whole configuration.
        around: what the program gives.
        processes: who trains together; started here if absent.
        if_busy: what to do if another process trains in that folder, for the message; see `claimed_folder`.
        recipe_setting: what the user calls `config.mae`, for messages.

    Raises:
        UserError: anything the user has to change; nothing already written is lost.
    """
    processes = processes or _start(config)
    say = around.say if processes.is_main else _silent
    samples = _open(config, processes)
    torch.manual_seed(config.seed)
    with processes.agreed():
        network = mae_for(samples, config.mae.model, f"{recipe_setting}.model").to(processes.device)
    network.encoder.activation_checkpointing = config.trainer.activation_checkpointing
    say(f"MAE      {_millions(network)}, on {_describe(processes)}, in {run_folder(config)}")
    metadata: dict[str, object] = {
        "dataset": config.dataset.name,
        "class_names": samples.class_names,
        "tokenizer": samples.tokenizer,
        "seed": config.seed,
    }
    with claimed(config, processes, around.how_to_go_on, if_busy) as going_on:
        size, size_setting = config.mae.batch_size, f"{recipe_setting}.batch_size"
        stream = SampleStream(samples, size, config.seed, processes, config.dataset.num_workers, size_setting)
        objective = MaeObjective(network, processes, stream=stream, recipe=config.mae, seed=config.seed)
        settings_name = f"{recipe_setting}.trainer"
        _run(config, samples, going_on, objective, metadata, around, draw=None, settings_name=settings_name)
    return run_folder(config)


def _start(config: GeneratorTrainConfig | MaeTrainConfig) -> Processes:
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    return start_processes(choose_device(config.device), config.trainer.sharding)


def _open(config: RunConfig, processes: Processes) -> RealSamples:
    with processes.agreed():
        return open_samples(config.dataset, config.seed)


def _drift_objective(
    config: GeneratorTrainConfig,
    samples: RealSamples,
    network: DiT,
    mae: MAE | None,
    processes: Processes,
    loss: LossOfFeatures,
) -> DriftObjective:
    bank_config = config.drift.bank
    bank = MemoryBank(
        samples.num_classes,
        samples.sample_shape,
        bank_config.class_capacity,
        bank_config.unconditional_capacity,
        bank_config.storage,
        processes.device if bank_config.device == "auto" else choose_device(bank_config.device, "drift.bank.device"),
    )
    if config.trainer.compile and loss is drifting_loss:
        loss = compiled_drifting_loss()
    stream = SampleStream(
        samples,
        bank_config.push_per_step,
        config.seed,
        processes,
        config.dataset.num_workers,
        PUSH_SETTING,
    )
    return DriftObjective(
        network,
        processes,
        features=features_for(samples, config.feature, mae).to(processes.device),
        bank=bank,
        stream=stream,
        config=config.drift,
        feature_config=config.feature,
        seed=config.seed,
        loss=loss,
    )


def _find_mae(
    config: GeneratorTrainConfig,
    samples: RealSamples,
    around: Surroundings,
    processes: Processes,
    say: Callable[[str], None],
) -> MAE | None:
    """Load the masked autoencoder, or train it first; a finished one of the same settings is used again."""
    if config.feature.encoder == "none":
        return None
    if config.feature.mae is not None:
        with processes.main_first():
            return load_mae(config.feature.mae)
    recipe = config.feature.mae_training
    mae_config = MaeTrainConfig(
        dataset=config.dataset,
        name=f"mae_{recipe.model.get('name', '')}_seed{config.seed}",
        seed=config.seed,
        device=config.device,
        output=config.output,
        mae=recipe,
    )
    folder = run_folder(mae_config)
    store = CheckpointStore(folder)
    begun = store.has_last()
    if begun:
        with processes.agreed():
            check_settings(folder, course_of(mae_config, samples.facts), _OTHER_MAE.format(folder=folder))
    if begun and store.read_state().step >= recipe.trainer.num_steps:
        say(f"MAE      {folder}, trained before")
    else:
        with processes.agreed():  # what is wrong with the other encoders is said before, too
            features_for(samples, config.feature, None)
        say("MAE      none was given (feature.mae=...), so one is trained on the same data first")
        train_mae(replace(mae_config, resume=begun), around, processes, _BUSY_MAE, "feature.mae_training")
        if is_past(around.ends_at, processes):
            what = (
                f"The time is over at step {store.read_state().step} of {recipe.trainer.num_steps} of the masked "
                f"autoencoder in {folder}, which is trained before the generator"
            )
            raise _stopped(what, around, processes)
    processes.wait()
    return load_mae(folder)


def _run(
    config: GeneratorTrainConfig | MaeTrainConfig,
    samples: RealSamples,
    going_on: bool,
    objective: Objective[Network, Any],
    metadata: dict[str, object],
    around: Surroundings,
    draw: Callable[[Network, int], None] | None,
    settings_name: str = "trainer",
) -> None:
    started = describe_run(around.script, around.overrides)  # now: the checkout may move on while the run goes on
    run_dir, processes = run_folder(config), objective.processes
    settings = course_of(config, samples.facts, objective.encoders_digest())
    if going_on:
        with processes.agreed():
            check_settings(run_dir, settings)
    make_display = around.make_display if processes.is_main else around.quiet_display
    loop = TrainingLoop(
        objective,
        config.trainer,
        store=CheckpointStore(run_dir),
        display=make_display(config.trainer.num_steps),
        draw=draw,
        metadata=metadata,
        seed=config.seed,
        resume=going_on,
        settings_name=settings_name,
        ends_at=around.ends_at,
    )
    if processes.is_main:
        if going_on:
            around.say(f"resume   from step {loop.state.step}")
        else:
            record_settings(run_dir, settings)
        loop.trackers = make_trackers(config.logger, run_dir, settings, loop.state.step)
    try:
        loop.run()
    except TrainingInterruptedError:
        raise _stopped(f"Stopped at step {loop.state.step}", around, processes) from None
    if processes.is_main:
        _finish(config, samples, loop, started, settings, around)


def _stopped(what: str, around: Surroundings, processes: Processes) -> RunStoppedError:
    """Return the error that says how to go on; processes that show nothing end here."""
    if not processes.is_main:
        sys.exit(RunStoppedError.exit_code)
    return RunStoppedError(f"{what}; everything is saved. Go on with the same command and {around.how_to_go_on}.")


def _finish(
    config: GeneratorTrainConfig | MaeTrainConfig,
    samples: RealSamples,
    loop: TrainingLoop[Any, Any],
    started: dict[str, Any],
    settings: dict[str, Any],
    around: Surroundings,
) -> None:
    run_dir, state = run_folder(config), loop.state
    manifest = {
        **started,
        "data": samples.facts,
        "training": {
            "steps": state.step,
            "seconds": state.training_s,
            "samples_per_s": state.step * loop.objective.samples_per_step / max(state.training_s, 1e-9),
            "processes": loop.processes.size,
        },
        "parameters": sum(parameter.numel() for parameter in loop.ema.policy.parameters()),
        "config": settings,
        "seed": config.seed,
    }
    write_json(run_dir / "manifest.json", manifest)
    for tracker in loop.trackers:
        tracker.finish()
    if around.plot_curves is None:
        around.say("curves   matplotlib is not installed: draw them elsewhere from metrics.csv")
    else:
        around.plot_curves(run_dir / "metrics.csv", run_dir / "curves.png", f"{config.dataset.name}/{config.name}")
    around.say(f"written  {run_dir}: manifest.json, metrics.csv, checkpoints/ ({state.training_s:.0f} s in updates)")


def _millions(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters"


def _describe(processes: Processes) -> str:
    if processes.size == 1:
        return str(processes.device)
    return f"{processes.size} processes ({processes.device.type}{', weights split' if processes.is_sharded else ''})"


def _silent(text: str) -> None:
    """Print nothing."""
