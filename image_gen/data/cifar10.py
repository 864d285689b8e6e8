"""CIFAR-10 (Krizhevsky 2009), binary version: nothing in it can be executed, unlike the pickled one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drift_policy.errors import DataError
from image_gen.data.base import ArrayImages

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOW_TO_GET = (
    "expected data_batch_1.bin to data_batch_5.bin and test_batch.bin. Get them with\n"
    "  curl -L https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz | tar -xz && mv cifar-10-batches-bin cifar10"
)
_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE  # one label, then red, green and blue rows
_MAX_RECORDS = 100_000  # of one file


def read_cifar10(folder: str | Path, split: str) -> ArrayImages:
    """Read one part of CIFAR-10.

    Args:
        folder: with the .bin files, or the folder `cifar-10-batches-bin` that holds them.
        split: "train" (50,000 images) or "val" (the 10,000 test images).

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = Path(folder)
    inside = folder / "cifar-10-batches-bin"
    folder = inside if inside.is_dir() else folder
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = np.concatenate([_read_records(folder / name) for name in names])
    images = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return ArrayImages(np.ascontiguousarray(images), records[:, 0], CLASS_NAMES)


def _read_records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    if not path.is_file():
        raise DataError(f"{path} is missing: {HOW_TO_GET}")
    size = path.stat().st_size
    if size == 0 or size % _RECORD or size > _MAX_RECORDS * _RECORD:
        raise DataError(f"{path} has {size:,} bytes, which is no number of CIFAR-10 records: download it again.")
    return np.fromfile(path, np.uint8).reshape(-1, _RECORD)
