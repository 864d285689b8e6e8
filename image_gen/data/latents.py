"""Cached latents: what `image_gen.data.cache_latents` writes and a training reads, with torch and safetensors alone.

A cache is a folder with `cache.json` and shards `shard-<number>.safetensors`, each with `latents` [n, V, C, h, w] and
`labels` [n]. V is 2 where the mirrored image is kept beside the image itself, else 1.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from drift_policy.errors import DataError, require

INDEX_FILE = "cache.json"
FORMAT_VERSION = 1
_AGAIN = "Run the same cache_latents command again: it writes what is missing."


@dataclass
class CacheIndex:
    """What a cache holds; cache.json. It must be equal for a run to be continued."""

    dataset: str  # name of the data set
    split: str  # its part
    num_images: int  # images in the cache
    class_names: list[str]  # labels index them
    image_size: int  # side of the images in pixels
    tokenizer: str  # that made the latents
    tokenizer_weights: str | None  # where its weights came from; None: the default ones
    latent_shape: list[int]  # C, h, w
    flip: bool  # whether mirrored images are in the cache
    shard_size: int  # images of a shard; the last one has the rest
    dtype: str  # float16 or float32
    seed: int  # of random latents
    format_version: int = FORMAT_VERSION  # of this file

    @property
    def num_shards(self) -> int:
        """Number of shards of a complete cache."""
        return -(-self.num_images // self.shard_size)

    def shard_rows(self, shard: int) -> range:
        """Return the image numbers of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def write(self, folder: Path) -> None:
        """Write cache.json."""
        (folder / INDEX_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_index(folder: str | Path) -> CacheIndex:
    """Read cache.json.

    Raises:
        DataError: it is missing, damaged or of another version.
    """
    path = Path(folder) / INDEX_FILE
    if not path.is_file():
        raise DataError(
            f"{path} is missing: {folder} is no latent cache. Make one with\n"
            "  python -m image_gen.data.cache_latents dataset=... tokenizer=... output=..."
        )
    try:
        content: Any = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). {_AGAIN}") from error
    names = {field.name for field in fields(CacheIndex)}
    if not isinstance(content, dict) or content.keys() != names or content["format_version"] != FORMAT_VERSION:
        raise DataError(f"{path} is no index of format version {FORMAT_VERSION}: make the cache again.")
    numbers = [content[name] for name in ("num_images", "image_size", "shard_size")] + list(content["latent_shape"])
    if not all(type(number) is int and number >= 1 for number in numbers) or len(content["latent_shape"]) != 3:
        raise DataError(f"{path} holds impossible sizes: make the cache again.")
    return CacheIndex(**content)


def shard_path(folder: Path, shard: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def check_shard(path: Path, index: CacheIndex, shard: int) -> None:
    """Require that a shard holds what the index says.

    Raises:
        DataError: it is missing, damaged, or of other shapes.
    """
    rows = len(index.shard_rows(shard))
    expected = {"latents": [rows, 1 + index.flip, *index.latent_shape], "labels": [rows]}
    if not path.is_file():
        raise DataError(f"{path} is missing: the cache is not complete. {_AGAIN}")
    try:
        with safe_open(path, "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it. {_AGAIN}") from error
    if found != expected:
        raise DataError(f"{path} holds {found} instead of {expected}: delete it. {_AGAIN}")


class CachedLatents(Dataset[tuple[Tensor, int]]):
    """A complete cache, memory-mapped.

    Items are a latent [C, h, w] in float32, of the mirrored image in half of the cases if so asked, and its class.
    Which, is a function of the seed, the epoch and the index.

    Args:
        folder: of the cache.
        seed: of the choice of mirrored latents.
        flip: whether to mirror; None does so if the cache has latents of mirrored images.

    Raises:
        ConfigurationError: `flip` is true, but the cache has no latents of mirrored images.
        DataError: the folder holds no complete cache.
    """

    def __init__(self, folder: str | Path, seed: int = 0, flip: bool | None = None) -> None:
        self.folder = Path(folder)
        self.index = read_index(folder)
        self.seed = seed
        self.flip = self.index.flip if flip is None else flip
        require(
            self.index.flip or not self.flip,
            f"dataset.flip=true, but the cache {folder} has no latents of mirrored images: set dataset.flip=null, "
            "or make a cache with flip=true.",
        )
        self.epoch = 0
        self._latents: list[Tensor] = []
        labels = []
        for shard in range(self.index.num_shards):
            path = shard_path(self.folder, shard)
            check_shard(path, self.index, shard)
            with safe_open(path, "pt") as file:
                # Memory-mapped: pages are read when an item needs them.
                self._latents.append(file.get_tensor("latents"))
                labels.append(file.get_tensor("labels"))
        self.labels = torch.cat(labels).long()
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.num_classes:
            raise DataError(f"{self.folder} has labels outside its {self.num_classes} classes: make the cache again.")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.index.class_names)

    def set_epoch(self, epoch: int) -> None:
        """Draw the mirrored latents of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.index.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shard, row = divmod(index, self.index.shard_size)
        variants = self._latents[shard][row]
        return variants[self._variant(index)].float(), int(self.labels[index])

    def _variant(self, index: int) -> int:
        if not self.flip:
            return 0
        return int(np.random.default_rng([self.seed, self.epoch, index]).integers(2))
