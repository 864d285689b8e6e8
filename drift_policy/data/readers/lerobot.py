"""LeRobot data sets, v2.1 and v3.0, read without the lerobot package: parquet files, and videos or images.

A column is called as the feature, such as `observation.state`, `action` or `observation.images.top`. The layouts are
those of huggingface/lerobot's `LeRobotDataset` (codebase_version in meta/info.json); see lerobot_folder.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from rich.console import Console
from rich.progress import Progress

from drift_policy.data.memory import in_memory
from drift_policy.data.memory_map import memory_mapped
from drift_policy.data.readers.lerobot_columns import (
    check_rows,
    count_rows,
    read_images,
    read_numbers,
    stored_dtype,
)
from drift_policy.data.readers.lerobot_folder import (
    IMAGE,
    VIDEO,
    Feature,
    LerobotFolder,
    import_parquet,
    open_folder,
    video_clips,
)
from drift_policy.data.readers.lerobot_video import check_videos_exist, read_video
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError, require


def read_lerobot(
    path: str | Path,
    columns: Sequence[str] | None = None,
    memory_map: bool = False,
    cache_dir: str | Path | None = None,
    *,
    image_size: Sequence[int] | None = None,
    episodes: Sequence[int] | None = None,
) -> ReplayBuffer:
    """Read features of a LeRobot data set as a replay buffer.

    Numbers keep their stored dtype, [N, *shape]. Cameras, stored as images or as videos, become uint8 [N, H, W, 3].

    Args:
        path: the folder that holds meta/, data/ and, for cameras stored as video, videos/.
        columns: names of features; None is all numbers and all cameras.
        memory_map: decode each camera once into a .npy file in the cache and map that file instead of filling RAM.
        cache_dir: folder of those .npy files; None is `memory_map` in the cache folder.
        image_size: [height, width] to which camera images are scaled when they are read (antialiased bilinear, as
            Pillow's `resize` does); a robot must then scale its images alike. None keeps their size.
        episodes: numbers of the episodes to read, in any order; they keep that of the data set. Files that hold none of
            them need not be there. None is all.

    Raises:
        ConfigurationError: an image size that is none, episodes that do not exist or occur twice, or a package is
            missing: pyarrow, or imageio-ffmpeg for videos.
        DataError: the data set or a feature is missing, damaged, incomplete, not finite or of another shape than it
            says. The message names the file.
    """
    import_parquet()
    size = _checked_size(image_size)
    selection = _selection(open_folder(path), episodes)
    check_rows(selection.files)
    if columns is None:
        columns = [name for name, feature in selection.folder.features.items() if _is_readable(feature)]
    data = {name: _read_column(selection, name, memory_map, cache_dir, size) for name in columns}
    return ReplayBuffer(data, np.cumsum([episode.length for episode in selection.folder.episodes]))


def count_lerobot(path: str | Path) -> tuple[int, int]:
    """Return (episodes, steps) of a data set after checking the size of every parquet file.

    Raises:
        ConfigurationError: pyarrow is not installed.
        DataError: it is missing, damaged or incomplete.
    """
    import_parquet()
    folder = open_folder(path)
    count_rows(folder)
    return len(folder.episodes), folder.n_steps


def lerobot_rate(path: str | Path) -> float:
    """Return the frames a second of a data set; errors as `read_lerobot`."""
    return open_folder(path).fps


def lerobot_names(path: str | Path) -> dict[str, list[str]]:
    """Return feature -> what its numbers are called, of vectors whose names are known; errors as `read_lerobot`."""
    features = open_folder(path).features
    return {name: list(feature.names) for name, feature in features.items() if feature.names}


@dataclass(frozen=True)
class _Selection:
    """The episodes to read: files hold whole episodes, those of v3.0 many."""

    folder: LerobotFolder  # with these episodes alone
    files: LerobotFolder  # with all episodes of the files that hold them
    rows: NDArray[np.bool_]  # which steps of `files` are to be read
    name: str  # tells one selection from another; empty for all episodes


def _selection(folder: LerobotFolder, numbers: Sequence[int] | None) -> _Selection:
    if numbers is None:
        return _Selection(folder, folder, np.ones(folder.n_steps, bool), "")
    is_list = isinstance(numbers, list | tuple) and all(type(number) is int for number in numbers)
    chosen = sorted(numbers) if is_list else []
    last = len(folder.episodes) - 1
    require(
        bool(chosen) and len(set(chosen)) == len(chosen) and chosen[0] >= 0 and chosen[-1] <= last,
        f"episodes must be a list of different numbers from 0 to {last}, the episodes of {folder.root}, but is "
        f"{numbers!r:.200}.",
    )
    kept = [folder.episodes[number] for number in chosen]
    files = {episode.file for episode in kept}
    stored = [episode for episode in folder.episodes if episode.file in files]
    is_chosen = np.isin([episode.index for episode in stored], chosen)
    rows = np.repeat(is_chosen, [episode.length for episode in stored])
    is_whole = len(kept) == len(folder.episodes)
    name = "" if is_whole else f"-episodes-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:16]}"
    return _Selection(replace(folder, episodes=tuple(kept)), replace(folder, episodes=tuple(stored)), rows, name)


def _read_column(
    selection: _Selection,
    name: str,
    memory_map: bool,
    cache_dir: str | Path | None,
    size: tuple[int, int] | None,
) -> NDArray[Any]:
    folder = selection.folder
    if name not in folder.features:
        raise DataError(f"{folder.root} has no feature '{name}': its features are {sorted(folder.features)}.")
    feature = folder.features[name]
    if feature.dtype not in (IMAGE, VIDEO):
        numbers = np.empty((selection.files.n_steps, *feature.shape), stored_dtype(folder, name))
        read_numbers(selection.files, name, numbers)
        return numbers if selection.rows.all() else numbers[selection.rows]
    shape = (folder.n_steps, *(size or feature.image_shape[:2]), 3)
    decode = partial(_decode_camera, selection, name, feature, size, shape)
    if not memory_map:
        return decode(in_memory(shape, folder.root, name))
    label = (name if size is None else f"{name}-{size[0]}x{size[1]}") + selection.name
    files = _stored_files(folder, name, feature)
    return memory_mapped(folder.root, label, decode, shape, cache_dir, files=files)


def _decode_camera(
    selection: _Selection,
    name: str,
    feature: Feature,
    size: tuple[int, int] | None,
    shape: tuple[int, ...],
    allocate: Callable[[DTypeLike], NDArray[Any]],
) -> NDArray[Any]:
    """Decode a camera into memory that `allocate` gives for its dtype, with a progress bar."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"decoding {name}", total=shape[0])
        advance = partial(progress.advance, bar)
        if feature.dtype == VIDEO:
            clips = video_clips(selection.folder, name)
            check_videos_exist(clips, name)
            target = allocate(np.uint8)
            read_video(selection.folder, name, feature, clips, size, target, advance)
        else:
            target = allocate(np.uint8)
            read_images(selection.files, name, feature, size, selection.rows, target, advance)
    return target


def _stored_files(folder: LerobotFolder, name: str, feature: Feature) -> list[Path]:
    """Return the files that the images of a camera depend on."""
    described = sorted(
        file for file in (folder.root / "meta").rglob("*") if file.suffix in (".json", ".jsonl", ".parquet")
    )
    if feature.dtype == VIDEO:
        stored = {clip.file for clip in video_clips(folder, name)}
    else:
        stored = {episode.file for episode in folder.episodes}
    # Those that are missing are an error of the decoding, which has the better message.
    return described + sorted(file for file in stored if file.is_file())


def _is_readable(feature: Feature) -> bool:
    """Whether a feature is a camera or numbers, and not text or sound."""
    if feature.dtype in (IMAGE, VIDEO):
        return True
    try:
        return np.dtype(feature.dtype).kind in "biuf"
    except TypeError:
        return False


def _checked_size(image_size: Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sizes = list(image_size)
    require(
        len(sizes) == 2 and all(isinstance(size, int) and size >= 1 for size in sizes),
        f"image_size must be [height, width], whole numbers of at least 1, but is {sizes}.",
    )
    return sizes[0], sizes[1]
