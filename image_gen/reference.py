"""The real side of an evaluation: a data set, a folder of images, or a file of statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from drift_policy.errors import ConfigurationError, DataError, require
from image_gen.data.batches import LabelledSamples
from image_gen.levels import from_levels
from image_gen.metrics.judges import INCEPTION_FEATURES, Judge, Judgement
from image_gen.metrics.statistics import Moments, moments_of, read_statistics
from image_gen.sampling import Sampler
from image_gen.tokenizers import Tokenizer
from image_gen.training.samples import RealSamples

if TYPE_CHECKING:
    from image_gen.data.base import ImageSet

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey (ITU-R BT.601), as PIL converts


@dataclass
class Reference:
    """The real side of a comparison."""

    moments: Moments
    features: Tensor | None  # [M, D]; None where only statistics are known
    name: str
    facts: dict[str, Any] = field(default_factory=dict)


def require_reference(given: str | None) -> None:
    """Require that a file or folder to compare with is there; None is the data set.

    Raises:
        DataError: it is not.
    """
    if given is not None and not Path(given).expanduser().exists():
        raise DataError(f"reference={given} does not exist: give an .npz file, or a folder with images.")


def make_reference(
    given: str | None, real: RealSamples | None, judge: Judge, sampler: Sampler, batch_size: int, console: Console
) -> Reference:
    """Judge the real side, or read its statistics.

    Args:
        given: an .npz file, or a folder of images, all of which count wherever they lie in it; None is `real`. The
            statistics of a file are of Inception's features: only Inception is compared with them, another network
            judges the file's images.
        real: the data set, in the space of the generator; None if it is unknown.
        judge: of the images.
        sampler: whose images will be compared; a folder's images are brought to their size, channels and space, and
            so are a file's, which Inception alone judges as they are.
        batch_size: images at once.
        console: where to report.

    Raises:
        ConfigurationError: no reference is known, or it is in another space than the network's.
        DataError: a file or folder is missing or damaged, or holds too few images.
    """
    if given is not None:
        path = Path(given).expanduser()
        make = _from_file if path.suffix == ".npz" else _from_folder
        return make(path, judge, sampler, batch_size, console)
    if real is None:
        raise ConfigurationError(
            "The checkpoint does not say what it was trained on: set dataset=..., or reference=<folder or .npz>."
        )
    if real.tokenizer != "pixels" and judge.space == "pixels":
        raise ConfigurationError(
            f"The data are latents of {real.tokenizer}, but {judge.name} judges images: give reference=<folder>."
        )
    require(
        judge.channels in (None, real.sample_shape[0]),
        f"{judge.name} takes {judge.space} of {judge.channels} channels, but those of the data have "
        f"{real.sample_shape[0]}: set dataset=... to the generator's data.",
    )
    batches = _batches(real.dataset, real.encoder, batch_size, sampler.device)
    features = judge_all(judge, batches, len(real.dataset), "real", console).features
    # A cache of latents says the name of its data set under another key.
    name = real.facts["name"] if "name" in real.facts else real.facts["dataset"]
    name = f"{name}, {real.facts['split']}"
    return Reference(_moments(features, name), features, name, real.facts)


def judge_all(judge: Judge, batches: Iterable[Tensor], total: int, what: str, console: Console) -> Judgement:
    """Judge all images; features and logits come to the CPU."""
    features: list[Tensor] = []
    logits: list[Tensor] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # In a file, a bar that vanishes leaves empty lines.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{what} images", total=total)
        for images in batches:
            judged = judge(images)
            features.append(judged.features.float().cpu())
            if judged.logits is not None:
                logits.append(judged.logits.float().cpu())
            progress.advance(task, len(images))
    return Judgement(torch.cat(features), torch.cat(logits) if logits else None)


def to_images(pixels: np.ndarray) -> Tensor:
    """Return bytes [N, H, W, C] as images [N, C, H, W] in [-1, 1]."""
    return from_levels(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Return images [N, 1 or 3, H, W] as grey or colour ones, [N, channels, H, W]."""
    if images.shape[1] == channels:
        return images
    if channels == 1:
        return (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    return images.expand(-1, channels, -1, -1)


def _from_file(path: Path, judge: Judge, sampler: Sampler, batch_size: int, console: Console) -> Reference:
    moments, pixels = read_statistics(path)
    if moments is not None and not judge.is_inception:
        if pixels is None:
            raise ConfigurationError(
                f"{path} holds statistics of Inception's features alone, but the network is {judge.name}: give "
                "reference=<folder of images>, an .npz with images in arr_0, or network=inception."
            )
        moments = None
    if moments is not None and len(moments.mean) != INCEPTION_FEATURES:
        raise DataError(
            f"{path}: mu has {len(moments.mean)} entries, but Inception has {INCEPTION_FEATURES} features: give "
            "statistics of those."
        )
    features = None
    if pixels is not None and judge.is_inception:
        starts = range(0, len(pixels), batch_size)
        batches = (to_images(pixels[start : start + batch_size]).to(sampler.device) for start in starts)
        features = judge_all(judge, batches, len(pixels), "reference", console).features
    elif pixels is not None:
        # Imported here: an evaluation on cached latents needs no image decoder.
        from image_gen.data.base import ArrayImages

        images = ArrayImages(pixels, np.zeros(len(pixels), dtype=np.int64), ["all"])
        features = _judge_collection(images, judge, sampler, batch_size, console)
    moments = moments or _moments(features, str(path))  # type: ignore[arg-type]  # one of both is there
    return Reference(moments, features, path.name)


def _from_folder(path: Path, judge: Judge, sampler: Sampler, batch_size: int, console: Console) -> Reference:
    from image_gen.data.image_folder import AllImages

    images = AllImages(path)
    features = _judge_collection(images, judge, sampler, batch_size, console)
    facts = {"images": len(images), "image_size": sampler.image_size}
    return Reference(_moments(features, str(path)), features, str(path), facts)


def _moments(features: Tensor, name: str) -> Moments:
    try:
        return moments_of(features)
    except ValueError as error:
        raise DataError(f"{name} cannot be compared with: {error}") from error


def _judge_collection(images: ImageSet, judge: Judge, sampler: Sampler, batch_size: int, console: Console) -> Tensor:
    """Return features of images that are brought to the size, channels and space of the generator's."""
    from image_gen.data.base import TransformedImages
    from image_gen.data.transforms import ImageTransform

    transformed = TransformedImages(images, ImageTransform(sampler.image_size))
    encoder = sampler.tokenizer if judge.space == "latents" else None
    batches = _batches(transformed, encoder, batch_size, sampler.device, sampler.image_channels)
    return judge_all(judge, batches, len(images), "reference", console).features


def _batches(
    samples: LabelledSamples,
    encoder: Tokenizer | None,
    batch_size: int,
    device: torch.device,
    channels: int | None = None,  # of an image; None leaves them
) -> Iterator[Tensor]:
    encoder = None if encoder is None else encoder.to(device)
    for start in range(0, len(samples), batch_size):
        rows = range(start, min(start + batch_size, len(samples)))
        images = torch.stack([samples[row][0] for row in rows]).to(device)
        images = images if channels is None else with_channels(images, channels)
        yield images if encoder is None else encoder.encode(images, torch.Generator(device).manual_seed(start))
