"""What both training programs do with a composed configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from drift_policy.errors import UserError
from drift_policy.training.curves import plot_curves
from drift_policy.training.display import TrainingDisplay
from image_gen.training.bare import write_config
from image_gen.training.config import GeneratorTrainConfig, MaeTrainConfig
from image_gen.training.run import Surroundings, train_generator, train_mae
from image_gen.training.run_folder import run_folder


def run_program(
    config: GeneratorTrainConfig | MaeTrainConfig, script: str, overrides: Sequence[str], console: Console
) -> None:
    """Train, or write the configuration for another machine.

    Raises:
        UserError: anything the user has to change.
    """
    if config.write_config is not None:
        write_config(config, Path(config.write_config))
        console.print(f"written  {config.write_config}: python -m image_gen.training.bare {config.write_config}")
        return
    around = Surroundings(
        script=script,
        overrides=overrides,
        say=lambda text: console.print(text, highlight=False, soft_wrap=True),
        make_display=lambda steps: TrainingDisplay(steps, console),
        quiet_display=lambda steps: TrainingDisplay(steps, Console(quiet=True)),
        plot_curves=plot_curves,
    )
    with _lock(run_folder(config)):
        if isinstance(config, MaeTrainConfig):
            train_mae(config, around)
        else:
            train_generator(config, around)


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Hold the folder of a run; the processes that torchrun starts hold it together."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = FileLock(run_dir / ".lock", timeout=0)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"Another process is training in {run_dir}: give this run another name, name=... .") from error
    except OSError as error:
        raise UserError(f"The folder {run_dir} cannot be written ({error}): choose another, output=... .") from error
    try:
        yield
    finally:
        lock.release()
