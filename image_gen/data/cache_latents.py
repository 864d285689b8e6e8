"""Encode a data set once: python -m image_gen.data.cache_latents dataset=imagenette224 tokenizer=taef2 output=FOLDER.

Interrupted runs go on where they stopped: give the same command again. Settings, with their defaults:

  dataset=...              digits, fashion_mnist, cifar10, imagenette224, imagenet256 or folder
  tokenizer=...            taef2, sd_vae or pixels
  output=...               folder of the cache
  split=train              or val
  data_path=null           folder of the data set; null: the folder DRIFT_POLICY_DATA, then the cache
  tokenizer_weights=null   folder of the tokenizer's weights; null: the default ones
  image_size=null          side in pixels, by a central crop; null: the data set's own
  flip=true                also encode mirrored images
  dtype=float16            or float32
  batch_size=32            images that are encoded at once
  shard_size=4096          images of a file
  num_workers=2            processes that decode images; 0: none beside this one
  device=auto              where the tokenizer runs
  seed=0                   of tokenizers that draw their latents
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from drift_policy.cli import command_line
from drift_policy.config import parse_config
from drift_policy.device import choose_device
from drift_policy.errors import ConfigurationError, DataError, require
from drift_policy.tensor_files import save_file
from image_gen.data.base import ImageSet, TransformedImages
from image_gen.data.batches import Batches, opened
from image_gen.data.latents import INDEX_FILE, CacheIndex, check_shard, read_index, shard_path
from image_gen.data.source import open_source
from image_gen.data.transforms import ImageTransform
from image_gen.tokenizers import Tokenizer

_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass
class CacheConfig:
    """Settings of the command."""

    dataset: str = MISSING  # digits, fashion_mnist, cifar10, imagenette224, imagenet256 or folder
    tokenizer: str = MISSING  # taef2, sd_vae or pixels
    output: str = MISSING  # folder of the cache
    split: str = "train"  # or val
    data_path: str | None = None  # folder of the data set; without it, the folder DRIFT_POLICY_DATA and the cache
    tokenizer_weights: str | None = None  # folder of the tokenizer's weights; without it, the default ones
    image_size: int | None = None  # side in pixels, by a central crop; without it, the data set's own
    flip: bool = True  # also encode mirrored images
    dtype: str = "float16"  # or float32
    batch_size: int = 32  # images that are encoded at once
    shard_size: int = 4096  # images of a file
    num_workers: int = 2  # processes that decode images; 0: none beside this one
    device: str = "auto"  # where the tokenizer runs
    seed: int = 0  # of tokenizers that draw their latents

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}.")
        require(self.num_workers >= 0, f"num_workers must not be negative, but is {self.num_workers}.")
        require(self.dtype in _DTYPES, f"dtype must be float16 or float32, but is {self.dtype!r}.")


def cache_latents(config: CacheConfig, console: Console | None = None) -> CacheIndex:
    """Encode a data set and return the index of the cache.

    Raises:
        ConfigurationError: settings that do not fit together, or other ones than the cache was begun with.
        DataError, CheckpointError: images or weights are missing or damaged.
    """
    console = console or Console(stderr=True)
    source = open_source(
        config.dataset,
        config.split,
        config.data_path,
        image_size=config.image_size,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
    )
    images, tokenizer = source.images, source.tokenizer
    index = CacheIndex(
        dataset=config.dataset,
        split=config.split,
        num_images=len(images),
        class_names=images.class_names,
        image_size=source.image_size,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        latent_shape=list(source.latent_shape),
        flip=config.flip,
        shard_size=config.shard_size,
        dtype=config.dtype,
        seed=config.seed,
    )
    output = Path(config.output)
    _begin(output, index)
    device = choose_device(config.device)
    tokenizer.to(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{config.dataset} {config.split}", total=len(images))
        for shard in range(index.num_shards):
            rows = index.shard_rows(shard)
            if not _is_done(output, index, shard):
                _write_shard(output, index, shard, images, tokenizer, config, lambda n: progress.advance(task, n))
            progress.update(task, completed=rows.stop)
    return index


def _begin(output: Path, index: CacheIndex) -> None:
    """Write cache.json, or require that the one that is there asks for the same cache."""
    output.mkdir(parents=True, exist_ok=True)
    if (output / INDEX_FILE).is_file():
        begun, wanted = asdict(read_index(output)), asdict(index)
        differing = [name for name in wanted if begun[name] != wanted[name]]
        if "num_images" in differing:
            raise ConfigurationError(
                f"{output} holds a cache of {begun['num_images']} images, but the data set has {wanted['num_images']} "
                "now: images were added or removed since, and the latents of those behind them would go by other "
                "numbers. Put the images back as they were (a damaged one is replaced, not removed), give another "
                "output, or delete the cache."
            )
        require(
            not differing,
            f"{output} holds a cache with other settings ({', '.join(differing)}): give another output, or delete it.",
        )
    elif any(output.iterdir()):
        raise ConfigurationError(f"{output} is not empty and holds no cache: give a folder that does not exist yet.")
    index.write(output)


def _is_done(output: Path, index: CacheIndex, shard: int) -> bool:
    """Whether a shard is written; a damaged one raises."""
    path = shard_path(output, shard)
    if not path.is_file():
        return False
    check_shard(path, index, shard)
    return True


def _write_shard(
    output: Path,
    index: CacheIndex,
    shard: int,
    images: ImageSet,
    tokenizer: Tokenizer,
    config: CacheConfig,
    advance: Callable[[int], None],
) -> None:
    rows = index.shard_rows(shard)
    device = next(tokenizer.parameters(), torch.empty(0)).device
    transformed = TransformedImages(images, ImageTransform(index.image_size))
    requests = [(0, list(rows[first : first + config.batch_size])) for first in range(0, len(rows), config.batch_size)]
    # An item is a whole batch.
    loader = DataLoader(Batches(transformed), None, sampler=requests, num_workers=config.num_workers)
    # Seeded by the shard: random latents do not depend on where an earlier run was interrupted.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + shard)
    latents, labels = [], []
    for item in loader:
        batch, batch_labels = opened(item)
        batch = batch.to(device)
        variants = [batch, batch.flip(3)] if index.flip else [batch]
        encoded = [tokenizer.encode(variant, generator) for variant in variants]
        latents.append(torch.stack(encoded, dim=1).to("cpu", _DTYPES[index.dtype]))
        labels.append(batch_labels)
        advance(len(batch))
    joined = torch.cat(latents)
    if not bool(torch.isfinite(joined).all()):
        raise DataError(
            f"Latents of shard {shard} exceed {index.dtype} or are not finite: set dtype=float32, or check the "
            "tokenizer's weights."
        )
    _save({"latents": joined, "labels": torch.cat(labels)}, shard_path(output, shard))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write beside the place and rename, so that a shard that is there is complete."""
    part = path.with_name(path.name + ".part")
    save_file(tensors, part)
    os.replace(part, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    with command_line() as console:
        unusable = [argument for argument in arguments if "=" not in argument]
        if unusable:
            raise ConfigurationError(f"{unusable[0]!r} is no setting: write {__doc__.splitlines()[0].split(': ')[1]}")
        try:
            given = OmegaConf.from_dotlist(arguments)
        except OmegaConfBaseException as error:
            raise ConfigurationError(f"The settings cannot be read: {error}.") from error
        index = cache_latents(parse_config(CacheConfig, given))
        console.print(
            f"{index.num_images:,} images of {len(index.class_names)} classes, latents {index.latent_shape}, in "
            f"{index.num_shards} shard(s)."
        )


if __name__ == "__main__":
    main()
