"""What both training programs do with a composed configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from drift_policy.result_files import require_writable
from drift_policy.training.curves import plot_curves
from drift_policy.training.display import TrainingDisplay
from image_gen.data.latents import INDEX_FILE, read_index
from image_gen.training.bare import write_config
from image_gen.training.config import DataConfig, GeneratorTrainConfig, MaeTrainConfig
from image_gen.training.run import Surroundings, train_generator, train_mae
from image_gen.training.samples import check_cache


def run_program(
    config: GeneratorTrainConfig | MaeTrainConfig, script: str, overrides: Sequence[str], console: Console
) -> None:
    """Train, or write the configuration for another machine.

    Raises:
        UserError: anything the user has to change.
    """
    _check_cache(config.dataset, overrides)
    if config.write_config is not None:
        require_writable(Path(config.write_config), "write_config")
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
    if isinstance(config, MaeTrainConfig):
        train_mae(config, around)
    else:
        train_generator(config, around)


def _check_cache(config: DataConfig, overrides: Sequence[str]) -> None:
    """Refuse what the command line says of the data, and their cache contradicts; a missing cache is reported later."""
    if config.latents is None or not (Path(config.latents) / INDEX_FILE).is_file():
        return
    names = [override.lstrip("+").partition("=")[0] for override in overrides]
    chosen = [name.removeprefix("dataset.") for name in names if name.startswith("dataset.")]
    check_cache(config, read_index(config.latents), [*chosen, *(["name"] if "dataset" in names else [])])
