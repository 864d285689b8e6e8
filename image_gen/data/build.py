"""Data sets by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drift_policy.errors import ConfigurationError
from image_gen.data import cifar10, fashion_mnist
from image_gen.data.base import ImageSet
from image_gen.data.digits import SIDE as DIGITS_SIDE
from image_gen.data.digits import read_digits
from image_gen.data.image_folder import ImageFolder
from image_gen.data.location import find_data

SPLITS = ("train", "val")
_IMAGENET = (
    "expected the folders train/<wnid> and val/<wnid> with JPEG files. ImageNet is given out at "
    "https://image-net.org/download after registration; unpack the archives of its classes into these folders."
)
_IMAGENETTE = (
    "expected the folders train/<wnid> and val/<wnid> with JPEG files of 10 classes. A subset like it is given out at "
    "https://github.com/fastai/imagenette; unpack it and name the folder imagenette224."
)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set before it is read."""

    image_size: int | None  # side of an image as a generator draws it; None: to be given
    channels: int  # of an image
    how_to_get: str  # message if its files are missing; empty if it needs none


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(DIGITS_SIDE, 1, ""),
    "fashion_mnist": DatasetInfo(28, 1, fashion_mnist.HOW_TO_GET),
    "cifar10": DatasetInfo(32, 3, cifar10.HOW_TO_GET),
    "imagenette224": DatasetInfo(224, 3, _IMAGENETTE),
    "imagenet256": DatasetInfo(256, 3, _IMAGENET),
    "folder": DatasetInfo(None, 3, "give the folder with one folder of images a class."),
}


def build_image_set(
    name: str, split: str = "train", path: str | Path | None = None, path_setting: str = "data_path"
) -> ImageSet:
    """Return a data set.

    Args:
        name: one of `DATASETS`; "folder" is any folder with one folder a class, or with such folders in `train`
            and `val`.
        split: "train" or "val".
        path: its folder; without it, `name` in DRIFT_POLICY_DATA or in the cache.
        path_setting: what the user calls `path`, for messages.

    Raises:
        ConfigurationError: an unknown name or split, or a path where there is nothing to read.
        DataError: files are missing (says how to get them) or damaged.
    """
    if name not in DATASETS:
        raise ConfigurationError(f"Unknown dataset {name!r}; expected one of {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise ConfigurationError(f"Unknown split {split!r}; expected train or val.")
    if name == "digits":
        if path is not None:
            raise ConfigurationError(f"The digits come inside scikit-learn, but {path_setting}={path}: leave it out.")
        return read_digits(split)
    if name == "folder" and path is None:
        raise ConfigurationError(
            f"dataset=folder needs the folder with one folder of images a class: {path_setting}=... ."
        )
    folder = find_data(name, path, DATASETS[name].how_to_get)
    if name == "fashion_mnist":
        return fashion_mnist.read_fashion_mnist(folder, split)
    if name == "cifar10":
        return cifar10.read_cifar10(folder, split)
    return ImageFolder(_split_folder(folder, split))


def _split_folder(folder: Path, split: str) -> Path:
    """Return the part of an image folder; a folder of classes without parts is its own "train"."""
    if any((folder / part).is_dir() for part in SPLITS) or split != "train":
        return folder / split
    return folder
