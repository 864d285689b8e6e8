"""Sample grids as PNG files, written with the standard library: trainings run where no image package is installed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from image_gen.levels import to_levels

_LEAST_SIDE = 48  # pixels; smaller images are enlarged by repetition
_GAP = 2


def draw_grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Return images as one picture, in rows of `columns`.

    Args:
        images: [B, 1 or 3, H, W] in [-1, 1], clipped.
        columns: images of a row.

    Returns:
        bytes [height, width, 1 or 3].
    """
    levels = to_levels(images).cpu()
    times = max(1, -(-_LEAST_SIDE // images.shape[2]))
    levels = levels.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    count, channels, height, width = levels.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 128, dtype=np.uint8)
    for index, image in enumerate(levels.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def write_png(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write bytes [height, width, 1 or 3] as a PNG file (ISO/IEC 15948), grey or RGB, unfiltered.

    Raises:
        ValueError: another type or number of channels.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"a picture must be bytes [height, width, 1 or 3], but is {pixels.dtype} {pixels.shape}.")
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    # A leading zero on each line says that it is not filtered.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in chunks:
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
