"""Folders of images: one folder a class, as ImageNet's `train/<wnid>/*.JPEG`, or all images without classes.

What is hidden (.ipynb_checkpoints, ._name.jpg) is left out: file systems and programs put it there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drift_policy.errors import DataError
from image_gen.data.base import ImageSet

_HIDDEN = "."  # how names of hidden files and folders begin
EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
_STEP_OF_16_BITS = 65535 / 255  # of a number of 8 bits, in those of 16
MAX_PIXELS = 64_000_000  # of one image: a file that claims more is refused before it is decoded


class ImageFiles(ImageSet):
    """Colour images in files.

    Args:
        files: one an image.
        labels: class of each image.
        class_names: one name per class.

    Raises:
        DataError: no images.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], class_names: Sequence[str]) -> None:
        self.files = list(files)
        super().__init__(class_names, np.asarray(labels), channels=3)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return one image as bytes [H, W, 3]; other colour spaces are converted, transparency is left out.

        Raises:
            DataError: its file cannot be decoded, is too large, or has numbers of no known range.
        """
        path = self.files[index]
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}.")
                return _to_bytes(image, path)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} cannot be decoded ({error}): replace it by a whole image. Without it the data set is another "
                "one: a cache of latents or a run that was begun with it cannot go on then."
            ) from error


def _to_bytes(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """Return an open image as bytes [H, W, 3]."""
    # Older releases of Pillow open a PNG file of 16 bits as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion would clip at 255.
        grey = np.rint(np.asarray(image) / _STEP_OF_16_BITS).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} has the mode {image.mode!r}, numbers of 32 bits without a known range: save it with 8 or 16 bits "
            "a channel."
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns that transparency is lost
    return np.asarray(image.convert("RGB"))


class ImageFolder(ImageFiles):
    """Images below one folder, in the order of their names; classes are its folders in the order of theirs.

    Args:
        root: folder with one folder a class; images may lie deeper inside.

    Raises:
        DataError: the folder is missing, or holds no folder with images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} does not exist: expected a folder with one folder of images a class.")
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(_HIDDEN))
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = _images_below(self.root / name)
            if not found:
                raise DataError(
                    f"{self.root / name} holds no images ({', '.join(EXTENSIONS)}): remove it, or give the folder "
                    "whose folders are the classes."
                )
            files += found
            labels += [label] * len(found)
        if not names:
            raise DataError(f"{self.root} holds no folders: expected one folder of images a class.")
        super().__init__(files, labels, names)

    def names_digest(self) -> str:
        """Return the sha256, in hexadecimal digits, of the paths of the images in the folder, in order."""
        names = (path.relative_to(self.root).as_posix() for path in self.files)
        return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


class AllImages(ImageFiles):
    """All images below a folder, in the order of their paths, as one class: what scores compare with.

    Args:
        root: folder with images in it or in folders inside.

    Raises:
        DataError: the folder is missing, or holds no images.
    """

    def __init__(self, root: str | Path) -> None:
        files = _images_below(Path(root))
        if not files:
            raise DataError(f"{root} is no folder with images ({', '.join(EXTENSIONS)}): give one.")
        super().__init__(files, [0] * len(files), ["all"])


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(name.startswith(_HIDDEN) for name in path.relative_to(folder).parts)
    )
