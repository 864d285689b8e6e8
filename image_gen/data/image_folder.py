"""Folders of images, one folder a class: ImageNet's `train/<wnid>/*.JPEG` and any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drift_policy.errors import DataError
from image_gen.data.base import ImageSet

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # of one image: a file that claims more is refused before it is decoded


class ImageFolder(ImageSet):
    """Colour images below one folder, in the order of their names; classes are its folders in the order of theirs.

    Args:
        root: folder with one folder a class; images may lie deeper inside.

    Raises:
        DataError: the folder is missing, or holds no folder with images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} does not exist: expected a folder with one folder of images a class.")
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        self.files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = sorted(p for p in (self.root / name).rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not found:
                raise DataError(
                    f"{self.root / name} holds no images ({', '.join(EXTENSIONS)}): remove it, or give the folder "
                    "whose folders are the classes."
                )
            self.files += found
            labels += [label] * len(found)
        if not names:
            raise DataError(f"{self.root} holds no folders: expected one folder of images a class.")
        super().__init__(names, np.asarray(labels), channels=3)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return one image as bytes [H, W, 3]; other colour spaces are converted."""
        path = self.files[index]
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}.")
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be decoded ({error}): replace or remove it.") from error
