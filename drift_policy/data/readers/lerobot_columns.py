"""Columns of LeRobot's parquet files, a few megabytes at a time: numbers of any shape, and encoded images."""

import io
import math
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drift_policy.data.blocks import BLOCK_BYTES
from drift_policy.data.readers.lerobot_folder import (
    GET_AGAIN,
    Episode,
    Feature,
    LerobotFolder,
    damage_reported,
    import_parquet,
)
from drift_policy.errors import DataError

EPISODE_INDEX, FRAME_INDEX, TIMESTAMP = "episode_index", "frame_index", "timestamp"


def check_rows(folder: LerobotFolder) -> None:
    """Require that every file holds exactly the rows of its episodes, in order and evenly spaced in time.

    Raises:
        DataError: a file is missing or damaged, or its rows are not those of its episodes.
    """
    for file, episodes in episodes_of_files(folder):
        lengths = [episode.length for episode in episodes]
        wanted = [EPISODE_INDEX, FRAME_INDEX, *([TIMESTAMP] if TIMESTAMP in folder.features else [])]
        found = _whole_columns(file, wanted, sum(lengths))
        frames = np.concatenate([np.arange(length) for length in lengths])
        for name, expected in (
            (EPISODE_INDEX, np.repeat([episode.index for episode in episodes], lengths)),
            (FRAME_INDEX, frames),
        ):
            if not np.array_equal(found[name], expected):
                row = int(np.argmax(found[name] != expected))
                raise DataError(
                    f"{file}: {name} of row {row} is {found[name][row]}, but {expected[row]} is expected: rows are "
                    f"missing or in another order. {GET_AGAIN}"
                )
        if TIMESTAMP in found:
            # More than half a step late: a frame was dropped, and actions no longer belong to their observations.
            late = np.abs(found[TIMESTAMP] * folder.fps - frames) > 0.5
            if late.any():
                row = int(np.argmax(late))
                raise DataError(
                    f"{file}: row {row} (frame {frames[row]} of its episode) has timestamp {found[TIMESTAMP][row]} s, "
                    f"which is not {folder.fps:g} steps a second: frames were dropped, or fps in meta/info.json is "
                    "wrong."
                )


def count_rows(folder: LerobotFolder) -> None:
    """Require that every file has as many rows as its episodes have steps, reading their footers alone.

    Raises:
        DataError: a file is missing, damaged or too short or long.
    """
    for file, episodes in episodes_of_files(folder):
        _check_length(file, sum(episode.length for episode in episodes))


def stored_dtype(folder: LerobotFolder, name: str) -> np.dtype[Any]:
    """Return the NumPy type of a column of numbers.

    Raises:
        DataError: it holds something else than numbers.
    """
    file = folder.episodes[0].file
    with damage_reported(file, f"'{name}'"), import_parquet().ParquetFile(file) as opened:
        kind = _column_type(opened, file, name)
        while hasattr(kind, "value_type"):  # lists, nested for more than one axis
            kind = kind.value_type
        if hasattr(kind, "storage_type"):
            kind = kind.storage_type
        try:
            dtype = np.dtype(kind.to_pandas_dtype())
        except NotImplementedError:
            dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        raise DataError(f"{file}: '{name}' holds {kind}, not numbers: leave this column out.")
    return dtype


def read_numbers(folder: LerobotFolder, name: str, target: NDArray[Any]) -> None:
    """Fill `target` [N, ...] with a column of numbers.

    Raises:
        DataError: the column is missing, damaged, empty somewhere, not finite, or of another shape or type.
    """
    row_bytes = target.dtype.itemsize * math.prod(target.shape[1:])
    for file, first, column in _blocks(folder, name, row_bytes):
        with damage_reported(file, f"'{name}'"):
            values = _as_numpy(column, target.shape[1:], file, name)
        if values.dtype != target.dtype:
            raise DataError(f"{file}: '{name}' holds {values.dtype}, but {target.dtype} in the first file.")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            raise DataError(
                f"{file}: '{name}' holds NaN or infinity, first at step {first + int(np.argmax(bad))} of the data set. "
                "Every value must be finite: repair or delete this episode."
            )
        target[first : first + len(values)] = values


def read_images(
    folder: LerobotFolder,
    name: str,
    feature: Feature,
    size: tuple[int, int] | None,
    wanted: NDArray[np.bool_],
    target: NDArray[Any],
    advance: Callable[[], None],
) -> None:
    """Fill `target` [N, H, W, 3] with the PNG or JPEG images of the wanted rows of a column.

    Args:
        folder: the data set.
        name: the column, of dtype "image".
        feature: what info.json says about it.
        size: height and width to scale to, None for none.
        wanted: whether a row of the data set is, N of them.
        target: uint8.
        advance: called after every image.

    Raises:
        DataError: an image is missing, damaged, or of another size than info.json says.
    """
    places = np.cumsum(wanted) - 1
    for file, first, column in _blocks(folder, name, math.prod(feature.image_shape)):
        for row, entry in enumerate(column.to_pylist()):
            if not wanted[first + row]:
                continue
            with damage_reported(file, f"image {first + row} of '{name}'"):
                content = entry["bytes"] if isinstance(entry, dict) else entry
                if not isinstance(content, bytes):
                    raise DataError(
                        f"{file}: image {first + row} of '{name}' is not stored in the file but as the path "
                        f"{str(entry)[:80]!r}: embed the images, as lerobot does when it saves a data set."
                    )
                with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                    check_image_size((image.height, image.width), feature, file, name)
                    target[places[first + row]] = resized(image.convert("RGB"), size)
            advance()


def check_image_size(found: tuple[int, int], feature: Feature, file: Path, name: str) -> None:
    """Require height and width of a camera's images to be those that info.json states; DataError otherwise."""
    if found != feature.image_shape[:2]:
        raise DataError(
            f"{file}: images of '{name}' are {found[0]} x {found[1]} (height x width), but meta/info.json says "
            f"{feature.image_shape[0]} x {feature.image_shape[1]}."
        )


def resized(image: Image.Image, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return an image as [H, W, 3], scaled with an antialiased bilinear filter to `size` (height, width) if given."""
    if size is not None and size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def episodes_of_files(folder: LerobotFolder) -> list[tuple[Path, list[Episode]]]:
    """Return every parquet file with the episodes in it, in their order."""
    return [(file, list(group)) for file, group in groupby(folder.episodes, key=lambda episode: episode.file)]


def _blocks(folder: LerobotFolder, name: str, row_bytes: int) -> Iterator[tuple[Path, int, Any]]:
    """Yield (file, first row in the data set, values) of a column, about BLOCK_BYTES at a time."""
    parquet = import_parquet()
    rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    first = 0
    for file, episodes in episodes_of_files(folder):
        n_rows = sum(episode.length for episode in episodes)
        _check_length(file, n_rows)
        end = first + n_rows
        with damage_reported(file, f"'{name}'"), parquet.ParquetFile(file) as opened:
            _column_type(opened, file, name)
            for batch in opened.iter_batches(batch_size=rows, columns=[name]):
                yield file, first, batch.column(name)
                first += len(batch)
        if first != end:
            raise DataError(f"{file}: '{name}' is {end - first} rows short. {GET_AGAIN}")


def _check_length(file: Path, n_rows: int) -> None:
    if not file.is_file():
        raise DataError(f"{file} is missing, although the list of episodes names it. {GET_AGAIN}")
    with damage_reported(file, "its footer"), import_parquet().ParquetFile(file) as opened:
        found = opened.metadata.num_rows
    if found != n_rows:
        raise DataError(f"{file} has {found} rows, but its episodes have {n_rows} steps. {GET_AGAIN}")


def _whole_columns(file: Path, names: list[str], n_rows: int) -> dict[str, NDArray[Any]]:
    _check_length(file, n_rows)
    with damage_reported(file, "its index columns"), import_parquet().ParquetFile(file) as opened:
        for name in names:
            _column_type(opened, file, name)
        table = opened.read(columns=names)
        return {name: _as_numpy(table.column(name), (), file, name) for name in names}


def _column_type(opened: Any, file: Path, name: str) -> Any:
    schema = opened.schema_arrow
    if name not in schema.names:
        raise DataError(f"{file} has no column '{name}': its columns are {sorted(schema.names)}.")
    return schema.field(name).type


def _as_numpy(column: Any, shape: tuple[int, ...], file: Path, name: str) -> NDArray[Any]:
    """Return arrow values, lists within lists for more than one axis, as an array [rows, *shape]."""
    n_rows, flat = len(column), column
    if hasattr(flat, "combine_chunks"):
        flat = flat.combine_chunks()
    while True:
        if flat.null_count:
            raise DataError(f"{file}: '{name}' has {flat.null_count} empty entries: every step needs a value.")
        flat = getattr(flat, "storage", flat)  # of an extension type
        if not hasattr(flat, "flatten") or not hasattr(flat.type, "value_type"):
            break
        flat = flat.flatten()
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    if values.size != n_rows * math.prod(shape):
        raise DataError(
            f"{file}: '{name}' has {values.size} numbers in {n_rows} rows, but meta/info.json gives each step the "
            f"shape {list(shape)}."
        )
    return values.reshape(n_rows, *shape)
