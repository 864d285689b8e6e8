"""Convert weights between the authors' format and ours: python -m image_gen.artifacts.convert SOURCE OUTPUT."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from drift_policy.cli import command_line
from drift_policy.errors import CheckpointError
from image_gen.artifacts.checks import Kind, kind_of, read_json
from image_gen.artifacts.location import CONFIG_FILE, find_artifact
from image_gen.artifacts.pretrained import load_model, save_model
from image_gen.artifacts.released import METADATA_FILE, is_released, write_released

_PUBLISHED_MAES = "hf://mae_"  # how the authors' names of encoders begin


def convert(source: str, output: Path, to: str, kind: Kind | None = None) -> str:
    """Convert an artifact and return one sentence about it.

    Args:
        source: what `image_gen.load_generator` or `load_mae` takes.
        output: a folder that does not exist yet or is empty.
        to: "safetensors" or "released".
        kind: "generator" or "mae"; read from the files if absent.

    Raises:
        CheckpointError: the source cannot be read, or the output exists.
    """
    if output.exists() and any(output.iterdir()):
        raise CheckpointError(f"{output} is not empty: give a folder that does not exist yet.")
    if kind is None:
        kind = "mae" if source.startswith(_PUBLISHED_MAES) else _stored_kind(find_artifact(source, "generator"))
    model, metadata = load_model(source, kind)
    if to == "released":
        write_released(model, output, metadata)
    else:
        save_model(model, output, metadata | {"source": source})
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"Wrote a {kind_of(model)} with {count:,} parameters to {output}."


def _stored_kind(folder: Path) -> Kind:
    content = read_json(folder / (METADATA_FILE if is_released(folder) else CONFIG_FILE))
    return "mae" if content.get("kind") == "mae" else "generator"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m image_gen.artifacts.convert", description=__doc__)
    parser.add_argument("source", help="folder, hf://<name> or hf://<owner>/<repository>[/<folder>]")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--to", choices=("safetensors", "released"), default="safetensors", help="format to write")
    parser.add_argument("--kind", choices=("generator", "mae"), help="what the source is; default: as its files say")
    options = parser.parse_args(arguments)
    with command_line() as console:
        with Console(stderr=True).status("converting"):
            sentence = convert(options.source, options.output, options.to, options.kind)
        console.print(sentence)


if __name__ == "__main__":
    main()
