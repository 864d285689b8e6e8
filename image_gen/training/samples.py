"""Real samples in the order of the steps: images or cached latents, with what a generator must know about them.

Which samples a step sees, and their random crops, are functions of the seed and the step alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from drift_policy.errors import ConfigurationError, UserError, require
from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import batch_indices
from image_gen.artifacts.digest import weights_digest
from image_gen.data.batches import Batch, Batches, LabelledSamples, opened
from image_gen.data.latents import CachedLatents, CacheIndex
from image_gen.tokenizers import Tokenizer
from image_gen.training.config import DataConfig
from image_gen.training.schedule import LATENTS, row_generator

MIRRORED = "mirrored"  # among the facts: whether half of the samples are mirrored, as dataset.flip and the cache say
TOKENIZER_DIGEST = "tokenizer_sha256"  # among the facts: of the weights that images become latents with
FILES_DIGEST = "files_sha256"  # among the facts: of the names of the files, where each image has one
# Settings of the data -> what a cache calls them.
_OF_CACHE = {"name": "dataset", "split": "split", "image_size": "image_size", "tokenizer": "tokenizer"}
# Tokenizers come with data sets and models, so that a value alone does not tell who chose it.
_CHOSEN_UNLESS_DEFAULT = ("name", "split", "image_size")

# Images: an autoencoder takes gigabytes for so many of 256x256, and a step of a masked autoencoder has thousands.
_ENCODED_AT_ONCE = 32


@dataclass
class RealSamples:
    """A data set in the space of the generator."""

    dataset: LabelledSamples
    class_names: list[str]
    sample_shape: tuple[int, int, int]  # C, H, W of an image or latent
    tokenizer: str  # the space: "pixels" or the name of an autoencoder
    tokenizer_weights: str | None
    encoder: Tokenizer | None  # applied to each batch; None: items are in the space already
    facts: dict[str, Any]  # for manifests; equal facts are needed to resume

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def open_samples(config: DataConfig, seed: int) -> RealSamples:
    """Open a data set.

    Raises:
        ConfigurationError: settings that do not fit together.
        DataError, CheckpointError: data or the tokenizer's weights are missing or damaged.
    """
    if config.latents is not None:
        return _open_latents(config, seed)
    # Imported here: cached latents need no image decoder.
    from image_gen.data.base import TransformedImages
    from image_gen.data.image_folder import ImageFolder
    from image_gen.data.source import open_source
    from image_gen.data.transforms import ImageTransform

    source = open_source(
        config.name,
        config.split,
        config.path,
        image_size=config.image_size,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        prefix="dataset.",
    )
    images, flip = source.images, bool(config.flip)
    encoder = None if config.tokenizer == "pixels" else source.tokenizer
    transform = ImageTransform(source.image_size, crop=config.crop, flip=flip)
    return RealSamples(
        dataset=TransformedImages(images, transform, seed),
        class_names=images.class_names,
        sample_shape=source.latent_shape,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        encoder=encoder,
        facts={
            "name": config.name,
            "split": config.split,
            "images": len(images),
            "classes": images.num_classes,
            MIRRORED: flip,
            **({FILES_DIGEST: images.names_digest()} if isinstance(images, ImageFolder) else {}),
            **({} if encoder is None else {TOKENIZER_DIGEST: weights_digest(encoder)}),
        },
    )


def check_cache(config: DataConfig, index: CacheIndex, settings: Iterable[str]) -> None:
    """Require that settings say of the data what their cache says.

    Args:
        config: names the cache.
        index: what is in it.
        settings: which of dataset.* the user has chosen; of others the cache's own value is meant.

    Raises:
        ConfigurationError: one of them contradicts the cache.
    """
    for setting in settings:
        if setting not in _OF_CACHE:
            continue
        value, held = getattr(config, setting), getattr(index, _OF_CACHE[setting])
        # The images of a cache of any folder may go by the name of their data set.
        if value in (held, None) or (setting, held) == ("name", "folder"):
            continue
        raise ConfigurationError(
            f"dataset.{setting}={value}, but the latents in dataset.latents={config.latents} were made with "
            f"{_OF_CACHE[setting]}={held}: set dataset.{setting}={held}, or give a cache that was made with {value}."
        )


def _open_latents(config: DataConfig, seed: int) -> RealSamples:
    assert config.latents is not None  # the caller has asked
    cache = CachedLatents(config.latents, seed, config.flip)
    index = cache.index
    default = DataConfig()
    check_cache(config, index, [s for s in _CHOSEN_UNLESS_DEFAULT if getattr(config, s) != getattr(default, s)])
    require(
        config.crop == "centre",
        f"dataset.crop={config.crop} acts on images, but dataset.latents={config.latents} was encoded before: leave it "
        "out.",
    )
    channels, height, width = index.latent_shape
    return RealSamples(
        dataset=cache,
        class_names=index.class_names,
        sample_shape=(channels, height, width),
        tokenizer=index.tokenizer,
        tokenizer_weights=config.tokenizer_weights or index.tokenizer_weights,
        encoder=None,
        facts=asdict(index)
        | {"classes": len(index.class_names), "class_names": len(index.class_names), MIRRORED: cache.flip},
    )


def require_shareable(samples: RealSamples, batch_size: int, processes: Processes, size_setting: str) -> None:
    """Require samples for a whole batch, and a batch that can be shared.

    Args:
        samples: where from.
        batch_size: samples a step, over all processes.
        processes: who shares a batch.
        size_setting: what the user calls `batch_size`, for messages.

    Raises:
        ConfigurationError: fewer samples than a batch has, or a batch that cannot be shared.
    """
    total = len(samples.dataset)
    require(
        batch_size <= total,
        f"A step takes {batch_size} real samples, but there are {total}: lower {size_setting}.",
    )
    require(
        batch_size % processes.size == 0,
        f"A step takes {batch_size} real samples, which {processes.size} processes cannot share evenly: make "
        f"{size_setting} a multiple.",
    )


class SampleStream:
    """Gives the batch of each step to its processes.

    Args:
        samples: where from.
        batch_size: samples a step, over all processes.
        seed: of the order.
        processes: who shares a batch.
        num_workers: processes that read ahead; 0: none.
        size_setting: what the user calls `batch_size`, for messages.

    Raises:
        ConfigurationError: fewer samples than a batch has, or a batch that cannot be shared.
    """

    def __init__(
        self,
        samples: RealSamples,
        batch_size: int,
        seed: int,
        processes: Processes,
        num_workers: int = 0,
        size_setting: str = "batch_size",
    ) -> None:
        require_shareable(samples, batch_size, processes, size_setting)
        self.batch_size, self._total, self._seed = batch_size, len(samples.dataset), seed
        self._samples, self._processes, self._num_workers = samples, processes, num_workers
        self._dataset = Batches(samples.dataset)
        self._encoder = None if samples.encoder is None else samples.encoder.to(processes.device)
        self._iterator: Iterator[Batch | UserError] | None = None
        self._next_step = -1

    def own(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's rows of the batch of a step on its device: samples [n, C, H, W] and classes [n].

        Raises:
            UserError: one of them cannot be read.
        """
        if self._iterator is None or step != self._next_step:
            self._iterator = self._start(step)
        self._next_step = step + 1
        images, class_ids = opened(next(self._iterator))
        device = self._processes.device
        images, class_ids = images.to(device, non_blocking=True), class_ids.to(device, non_blocking=True)
        if self._encoder is not None:
            first = self._processes.rank * len(images)
            generators = [row_generator(step, first + row, self._seed, device, LATENTS) for row in range(len(images))]
            parts = [slice(start, start + _ENCODED_AT_ONCE) for start in range(0, len(images), _ENCODED_AT_ONCE)]
            images = torch.cat([self._encoder.encode(images[part], generators[part]) for part in parts])
        return images, class_ids

    def all(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the whole batch of a step on the device of every process; all of them must call this."""
        images, class_ids = self.own(step)
        if self._processes.size == 1:
            return images, class_ids
        return _gather(images, self._processes.size), _gather(class_ids, self._processes.size)

    def close(self) -> None:
        """End the worker processes."""
        self._iterator = None

    def _start(self, first_step: int) -> Iterator[Batch | UserError]:
        loader = DataLoader(
            self._dataset,
            sampler=_Steps(self._rows, first_step),
            batch_size=None,  # an item is a whole batch
            num_workers=self._num_workers,
            pin_memory=self._processes.device.type == "cuda",
            worker_init_fn=_prepare_worker,
        )
        return iter(loader)

    def _rows(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch and this process's indices of a step."""
        share = self.batch_size // self._processes.size
        first = self._processes.rank * share
        indices = batch_indices(step, self._total, self.batch_size, self._seed)[first : first + share]
        return step // max(1, self._total // self.batch_size), indices.tolist()


class _Steps(Sampler[tuple[int, list[int]]]):
    """The requests of all steps from one on."""

    def __init__(self, rows: Callable[[int], tuple[int, list[int]]], first_step: int) -> None:
        self._rows, self._step = rows, first_step

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        step = self._step
        while True:
            yield self._rows(step)
            step += 1


def _prepare_worker(worker: int) -> None:
    """Keep the signals of a process group away from a worker, and its share of the cores at one."""
    os.setpgrp()
    torch.set_num_threads(1)


def _gather(own: Tensor, size: int) -> Tensor:
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)
