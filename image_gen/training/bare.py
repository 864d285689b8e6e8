"""Train where only torch, numpy, einops and safetensors are installed: python -m image_gen.training.bare CONFIG.json.

CONFIG.json comes from a machine with everything, `python image_gen/train.py ... write_config=CONFIG.json` (or
train_mae.py). Data must be cached latents (dataset.latents=...), or what the installed packages can read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from drift_policy.errors import ConfigurationError, UserError
from drift_policy.training.folder_guard import AUTO
from image_gen.field_types import has_type
from image_gen.training.config import GeneratorTrainConfig, MaeTrainConfig
from image_gen.training.run import Surroundings, train_generator, train_mae

Config = TypeVar("Config")
_KINDS: dict[str, type[GeneratorTrainConfig] | type[MaeTrainConfig]] = {
    "generator": GeneratorTrainConfig,
    "mae": MaeTrainConfig,
}


def write_config(config: GeneratorTrainConfig | MaeTrainConfig, path: Path) -> None:
    """Write a configuration as JSON, for `read_config`."""
    kind = "mae" if isinstance(config, MaeTrainConfig) else "generator"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"kind": kind, "config": asdict(replace(config, write_config=None))}
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_config(path: Path) -> GeneratorTrainConfig | MaeTrainConfig:
    """Read a configuration that `write_config` wrote.

    Raises:
        ConfigurationError: the file is missing, damaged, or has settings that do not exist or do not fit.
    """
    try:
        content = json.loads(path.read_text())
        kind = _KINDS[content["kind"]]
        values = content["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is no configuration ({error}): write it with image_gen/train.py ... write_config={path}."
        ) from error
    return from_values(kind, values, "")


def from_values(kind: type[Config], values: Any, where: str) -> Config:
    """Fill a dataclass, and the dataclasses in it, from JSON values; nothing is converted.

    Raises:
        ConfigurationError: an unknown setting, or a value of another type.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # Config is a dataclass
    if not isinstance(values, Mapping) or set(values) - set(known):
        unknown = sorted(set(values) - set(known)) if isinstance(values, Mapping) else [repr(values)]
        raise ConfigurationError(f"{where or 'The configuration'} has no setting {unknown[0]}.")
    hints = get_type_hints(kind)
    filled: dict[str, Any] = {}
    for name, value in values.items():
        hint, place = hints[name], f"{where}.{name}" if where else name
        if is_dataclass(hint) and isinstance(hint, type):
            filled[name] = from_values(hint, value, place)
        elif has_type(value, hint):
            filled[name] = value
        else:
            raise ConfigurationError(f"{place} is {value!r}, which is no {hint}.")
    try:
        return kind(**filled)
    except TypeError as error:
        raise ConfigurationError(f"{where or 'The configuration'} is not complete: {error}.") from error


class PlainDisplay:
    """A line of text for every logged step.

    Args:
        total: steps of the training.
        is_quiet: print nothing.
    """

    def __init__(self, total: int, is_quiet: bool = False) -> None:
        self._total, self._is_quiet = total, is_quiet

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Print the newest metrics."""
        values = ", ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in metrics.items())
        self.message(f"step {step}/{self._total}: {values}")

    def message(self, text: str) -> None:
        """Print a line."""
        if not self._is_quiet:
            print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m image_gen.training.bare", description=__doc__)
    parser.add_argument("config", type=Path, help="JSON file that train.py or train_mae.py wrote with write_config=...")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run, or start it if there is none"
    )
    parser.add_argument("--output", help="folder of all runs, instead of the configuration's")
    parser.add_argument(
        "--max-seconds",
        type=float,
        help="end so long after the start, whichever network is trained then; --resume has as long again",
    )
    options = parser.parse_args(arguments)
    if options.max_seconds is not None and not options.max_seconds > 0:
        parser.error(f"--max-seconds must be positive, but is {options.max_seconds:g}")
    started = time.monotonic()
    try:
        config = read_config(options.config)
        if options.output is not None:
            config.output = options.output
        config.resume = AUTO if options.resume else config.resume
        given = sys.argv[1:] if arguments is None else list(arguments)
        around = Surroundings(
            script="-m image_gen.training.bare",
            overrides=given,
            say=lambda text: print(text, flush=True),
            make_display=PlainDisplay,
            quiet_display=lambda steps: PlainDisplay(steps, is_quiet=True),
            plot_curves=None,
            ends_at=None if options.max_seconds is None else started + options.max_seconds,
            how_to_go_on="--resume",
        )
        if isinstance(config, MaeTrainConfig):
            train_mae(config, around)
        else:
            train_generator(config, around)
    except UserError as error:
        print(f"{error.title}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
