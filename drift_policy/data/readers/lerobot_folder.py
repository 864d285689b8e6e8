"""What a LeRobot data set says about itself: versions, features, episodes, and where each of them is stored.

v2.1 has a parquet file and a video an episode, listed in meta/episodes.jsonl. v3.0 packs many episodes into a file and
lists them in meta/episodes/chunk-*/file-*.parquet. meta/info.json gives features, totals and path templates in both.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from drift_policy.errors import ConfigurationError, DataError

GET_AGAIN = "Download or copy the data set again."
VERSIONS = ("v2.0", "v2.1", "v3.0")  # v2.0 differs from v2.1 in its statistics alone, which nothing here reads
CONVERT = "Convert it with the lerobot package's conversion scripts."
VIDEO, IMAGE = "video", "image"
_MAX_META_BYTES = 2**28
_PLACEHOLDER = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")


@dataclass(frozen=True)
class Feature:
    """One column as info.json describes it."""

    dtype: str  # a NumPy type, "image", "video" or "string"
    shape: tuple[int, ...]  # of one step
    names: tuple[str, ...] = ()  # of the numbers of a vector, if they are known

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a camera: both orders of the axes occur, whatever their names say.

        Raises:
            DataError: the shape is none of an RGB image.
        """
        if len(self.shape) == 3 and self.shape[2] == 3:
            return (self.shape[0], self.shape[1], 3)
        if len(self.shape) == 3 and self.shape[0] == 3:
            return (self.shape[1], self.shape[2], 3)
        raise DataError(
            f"A camera of shape {list(self.shape)} cannot be read: RGB images, [H, W, 3] or [3, H, W], are expected."
        )


@dataclass(frozen=True)
class Episode:
    """One episode and the file that holds its rows."""

    index: int
    length: int  # steps
    file: Path  # parquet


@dataclass(frozen=True)
class Clip:
    """The frames of one episode in a video file."""

    file: Path
    start: int  # number of the first frame
    length: int  # frames


@dataclass(frozen=True)
class LerobotFolder:
    """A data set whose description has been checked; its files have not."""

    root: Path
    version: str  # one of VERSIONS
    fps: float  # steps a second
    features: dict[str, Feature]  # column -> what it holds
    episodes: tuple[Episode, ...]  # all, numbered from 0 without gaps, or those that shall be read
    info: dict[str, Any]  # meta/info.json

    @property
    def n_steps(self) -> int:
        """Steps of all episodes together."""
        return sum(episode.length for episode in self.episodes)

    @property
    def is_packed(self) -> bool:
        """Whether files hold many episodes (v3.0)."""
        return self.version == "v3.0"


def import_parquet() -> ModuleType:
    """Return the module pyarrow.parquet; ConfigurationError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            "LeRobot data sets are read with the package pyarrow, which is not installed: "
            "pip install 'drift-policy[lerobot]'."
        ) from error
    return pyarrow.parquet


@contextmanager
def damage_reported(path: Path, what: str) -> Iterator[None]:
    """Turn whatever is raised on damaged bytes into a DataError that names the file."""
    try:
        yield
    except (DataError, ConfigurationError, MemoryError):
        raise
    except Exception as error:  # pyarrow, json and Pillow raise exceptions of their own on damaged bytes
        raise DataError(
            f"{path}: {what} cannot be read ({type(error).__name__}: {str(error)[:200]}). The file is damaged or an "
            f"incomplete copy. {GET_AGAIN}"
        ) from error


def open_folder(path: str | Path) -> LerobotFolder:
    """Read the description of a data set and check it for consistency.

    Raises:
        ConfigurationError: pyarrow is not installed (v3.0 needs it for its description too).
        DataError: it is no LeRobot data set, of another version, damaged, incomplete, or its paths leave the folder.
    """
    root = Path(path)
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        raise DataError(f"{root} is no LeRobot data set: it must be a folder with meta/info.json.")
    with damage_reported(info_file, "it"):
        info = json.loads(_text(info_file))
        version = str(info["codebase_version"])
        if version not in VERSIONS:
            raise DataError(f"{info_file}: version {version} is none of {', '.join(VERSIONS)}. {CONVERT}")
        features = {str(name): _feature(entry) for name, entry in info["features"].items()}
        fps, n_episodes, n_steps = float(info["fps"]), int(info["total_episodes"]), int(info["total_frames"])
    if not 0 < fps < 1e6:
        raise DataError(f"{info_file}: fps must be a positive number, but is {fps}.")
    episodes = (_packed_episodes if version == "v3.0" else _listed_episodes)(root, info)
    for what, stated, found in (
        ("episodes", n_episodes, len(episodes)),
        ("frames", n_steps, sum(episode.length for episode in episodes)),
    ):
        if stated != found:
            raise DataError(
                f"{info_file} states {stated} {what}, but the list of episodes has {found}: the copy is incomplete. "
                f"{GET_AGAIN}"
            )
    return LerobotFolder(root, version, fps, features, tuple(episodes), info)


def _feature(entry: dict[str, Any]) -> Feature:
    shape = tuple(int(size) for size in entry["shape"])
    names = _flat(entry.get("names"))
    return Feature(str(entry["dtype"]), shape, names if shape == (len(names),) else ())


def _flat(names: Any) -> tuple[str, ...]:
    """Return the names of numbers, which occur as a list, as {"motors": list} and as {name: place}."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict) and sorted(map(str, names.values())) == sorted(map(str, range(len(names)))):
        return tuple(sorted(names, key=lambda name: int(names[name])))
    parts = names.values() if isinstance(names, dict) else names if isinstance(names, list) else []
    return tuple(name for part in parts for name in _flat(part))


def video_clips(folder: LerobotFolder, key: str) -> list[Clip]:
    """Return where the frames of each episode lie for the camera `key`, in the order of the episodes.

    Raises:
        DataError: the description of the videos is missing or damaged.
    """
    info_file = folder.root / "meta" / "info.json"
    if not folder.is_packed:
        return [
            Clip(inside(folder.root, folder.info, "video_path", video_key=key, **place), start=0, length=episode.length)
            for episode in folder.episodes
            for place in [_of_episode(episode.index, folder.info)]
        ]
    names = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows = _episode_rows(folder.root, names)
    with damage_reported(info_file, f"the videos of '{key}'"):
        clips = []
        for episode in folder.episodes:
            chunk, number, start = (rows[episode.index][name] for name in names)
            place = {"chunk_index": int(chunk), "file_index": int(number)}
            first = round(float(start) * folder.fps)
            if abs(first - float(start) * folder.fps) > 0.25 or first < 0:
                raise DataError(
                    f"{info_file}: the video of episode {episode.index} starts at {start} s, which is between two "
                    f"frames of {folder.fps:g} a second."
                )
            clips.append(
                Clip(inside(folder.root, folder.info, "video_path", video_key=key, **place), first, episode.length)
            )
    return clips


def inside(root: Path, info: dict[str, Any], template: str, **values: int | str) -> Path:
    """Fill in a path template of info.json.

    Raises:
        DataError: the template is missing, has unknown placeholders, or leads out of the folder of the data set.
    """
    text = info.get(template)
    if not isinstance(text, str):
        raise DataError(f"{root / 'meta/info.json'} has no {template}, which says where files are.")

    def fill(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in values:
            raise DataError(f"{root / 'meta/info.json'}: {template} {text!r} has the unknown placeholder {name!r}.")
        return str(values[name]) if width is None else f"{values[name]:0{int(width)}d}"

    with damage_reported(root / "meta/info.json", template):
        relative = PurePosixPath(_PLACEHOLDER.sub(fill, text))
    # The path as written decides, not where links lead: the Hugging Face cache stores data sets as links.
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise DataError(f"{root / 'meta/info.json'}: {template} {text!r} leads out of the folder of the data set.")
    return root / relative


def _listed_episodes(root: Path, info: dict[str, Any]) -> list[Episode]:
    file = root / "meta" / "episodes.jsonl"
    if not file.is_file():
        raise DataError(f"{file} is missing: it lists the episodes of a {info['codebase_version']} data set.")
    with damage_reported(file, "the list of episodes"):
        rows = [json.loads(line) for line in _text(file).splitlines() if line.strip()]
        listed = sorted((int(row["episode_index"]), int(row["length"])) for row in rows)
        _check_numbers(file, listed)
        return [
            Episode(index, length, inside(root, info, "data_path", **_of_episode(index, info)))
            for index, length in listed
        ]


def _packed_episodes(root: Path, info: dict[str, Any]) -> list[Episode]:
    place = root / "meta" / "episodes"
    rows = _episode_rows(root, ["length", "data/chunk_index", "data/file_index"])
    with damage_reported(place, "the list of episodes"):
        _check_numbers(place, [(int(row["episode_index"]), int(row["length"])) for row in rows])
        return [
            Episode(
                int(row["episode_index"]),
                int(row["length"]),
                inside(
                    root,
                    info,
                    "data_path",
                    chunk_index=int(row["data/chunk_index"]),
                    file_index=int(row["data/file_index"]),
                ),
            )
            for row in rows
        ]


def _episode_rows(root: Path, names: list[str]) -> list[dict[str, Any]]:
    """Read columns of meta/episodes, in the order of the episodes."""
    parquet = import_parquet()
    files = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"{root / 'meta/episodes'} has no chunk-*/file-*.parquet, which list the episodes. {GET_AGAIN}")
    rows: list[dict[str, Any]] = []
    for file in files:
        with damage_reported(file, "the list of episodes"), parquet.ParquetFile(file) as opened:
            missing = sorted({"episode_index", *names} - set(opened.schema_arrow.names))
            if missing:
                raise DataError(f"{file} has no column {missing[0]!r}. {GET_AGAIN}")
            # Without the statistics that lie beside them: those are most of the bytes.
            rows += opened.read(columns=["episode_index", *names]).to_pylist()
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def _check_numbers(file: Path, listed: list[tuple[int, int]]) -> None:
    for position, (index, length) in enumerate(listed):
        if index != position:
            raise DataError(
                f"{file}: episodes must be numbered 0, 1, 2, ..., but {position} is missing or {index} occurs twice."
            )
        if length < 1:
            raise DataError(f"{file}: episode {index} has {length} steps: at least one is needed.")


def _of_episode(index: int, info: dict[str, Any]) -> dict[str, int]:
    size = int(info.get("chunks_size", 1000))
    if size < 1:
        raise DataError(f"meta/info.json: chunks_size must be at least 1, but is {size}.")
    return {"episode_chunk": index // size, "episode_index": index}


def _text(file: Path) -> str:
    n_bytes = file.stat().st_size
    if n_bytes > _MAX_META_BYTES:
        raise DataError(f"{file} has {n_bytes:,} bytes; more than {_MAX_META_BYTES:,} are refused.")
    return file.read_text(encoding="utf-8")
