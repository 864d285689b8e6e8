"""What tests of image trainings share: tiny trainings in this process, and comparing what they left."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from image_gen.data.latents import CacheIndex, shard_path
from image_gen.training.bare import PlainDisplay
from image_gen.training.config import GeneratorTrainConfig
from image_gen.training.run import Surroundings, train_generator
from tests.helpers.image_configs import TINY, generator_config

STATE = "checkpoints/last/training.safetensors"


def quiet_surroundings(said: list[str] | None = None) -> Surroundings:
    """A program that prints nothing."""
    return Surroundings(
        script="test",
        overrides=[],
        say=(said if said is not None else []).append,
        make_display=lambda steps: PlainDisplay(steps, is_quiet=True),
        plot_curves=None,
        quiet_display=lambda steps: PlainDisplay(steps, is_quiet=True),
    )


def tiny_generator(folder: Path, *overrides: str) -> GeneratorTrainConfig:
    """The configuration of a training of a second."""
    torch.set_num_threads(1)
    return generator_config(f"output={folder}", "name=run", *TINY, *overrides)


def train_tiny(folder: Path, *overrides: str, said: list[str] | None = None) -> Path:
    """Train for a second."""
    return train_generator(tiny_generator(folder, *overrides), quiet_surroundings(said))


def tensors_of(run: Path) -> dict[str, Tensor]:
    """Weights, moments, queues and averaged weights that a run saved last."""
    averaged = load_file(run / "checkpoints/last/model.safetensors")
    return load_file(run / STATE) | {f"ema.{name}": tensor for name, tensor in averaged.items()}


def largest_difference(run: Path, other: Path, leaving_out: str = "no name") -> float:
    """Largest difference of any number of two runs, after checking that they saved the same names."""
    one, two = tensors_of(run), tensors_of(other)
    assert one.keys() == two.keys()
    names = [name for name in one if not name.startswith(leaving_out)]
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in names)


def mae_of(run: Path) -> Path:
    """The autoencoder that was trained before a run."""
    return run.parent / "mae_digits_tiny_seed0"


def latent_cache(folder: Path, **changes: Any) -> None:
    """Write random numbers as a cache of taef2's latents."""
    settings: dict[str, Any] = {
        "dataset": "imagenette224",
        "split": "train",
        "num_images": 24,
        "class_names": ["a", "b", "c"],
        "image_size": 64,
        "tokenizer": "taef2",
        "tokenizer_weights": None,
        "latent_shape": [32, 8, 8],
        "flip": False,
        "shard_size": 24,
        "dtype": "float32",
        "seed": 0,
    }
    index = CacheIndex(**(settings | changes))
    folder.mkdir()
    index.write(folder)
    latents = torch.randn(24, 1, *index.latent_shape, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents, "labels": torch.arange(24) % 3}, shard_path(folder, 0))
