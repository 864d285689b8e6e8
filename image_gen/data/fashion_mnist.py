"""Fashion-MNIST (Xiao et al. 2017): 28x28 grey images in the four idx .gz files of MNIST's format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.errors import DataError
from image_gen.data.base import ArrayImages

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
HOW_TO_GET = (
    "expected the files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz. Get them with\n"
    "  mkdir -p fashion_mnist && cd fashion_mnist && for f in train-images-idx3 train-labels-idx1 t10k-images-idx3 "
    "t10k-labels-idx1; do curl -L -O http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/$f-ubyte.gz; done"
)
MAX_BYTES = 2**30  # of one unpacked file
_UNSIGNED_BYTES = 8  # the idx code of the only type in use


def read_fashion_mnist(folder: str | Path, split: str) -> ArrayImages:
    """Read one part of Fashion-MNIST, or of any data set in the same files (MNIST itself with its digits as classes).

    Args:
        folder: with the idx files, packed by gzip.
        split: "train" (60,000 images) or "val" (the 10,000 test images).

    Raises:
        DataError: a file is missing, damaged, or does not fit the other one.
    """
    prefix = Path(folder) / ("train" if split == "train" else "t10k")
    images = read_idx(prefix.with_name(f"{prefix.name}-images-idx3-ubyte.gz"), dimensions=3)
    labels = read_idx(prefix.with_name(f"{prefix.name}-labels-idx1-ubyte.gz"), dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder} has {len(images)} images but {len(labels)} labels in '{split}': get it again.")
    return ArrayImages(images[..., None], labels, CLASS_NAMES)


def read_idx(path: Path, dimensions: int) -> NDArray[Any]:
    """Read a gzip-packed idx file of bytes.

    Raises:
        DataError: the file is missing or damaged, or has other dimensions or another type.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: {HOW_TO_GET}")
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): download it again.") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)):
        raise DataError(f"{path} is no idx file of bytes with {dimensions} dimensions: download it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if math.prod(shape) != len(content) - header:
        raise DataError(f"{path} claims shape {list(shape)} but holds {len(content) - header:,} bytes: get it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
