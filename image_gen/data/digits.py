"""Handwritten digits, 8x8, 1797 images: they come inside scikit-learn, so nothing is downloaded.

The test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

import numpy as np

from drift_policy.errors import DataError
from image_gen.data.base import ArrayImages

SIDE = 8
_TRAIN = 1500  # images in "train"; the other 297, mostly of other writers, are "val"
_LEVELS = 16  # darkest value


def read_digits(split: str) -> ArrayImages:
    """Read one part of the digits: "train" (1,500 images) or "val" (297).

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("The digits come with scikit-learn: pip install 'drift-policy[images]'.") from error
    digits = load_digits()
    part = slice(None, _TRAIN) if split == "train" else slice(_TRAIN, None)
    images = np.round(digits.images[part] * (255 / _LEVELS)).astype(np.uint8)
    return ArrayImages(images[..., None], digits.target[part], [str(digit) for digit in range(10)])
