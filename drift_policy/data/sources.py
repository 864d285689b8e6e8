"""Where the demonstrations of a task come from: a path, a data folder, the cache, a download, or the repository."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from filelock import FileLock

from drift_policy.data.cache import CACHE_VARIABLE, cache_folder
from drift_policy.data.download import DownloadError, download, unpack_zip
from drift_policy.data.readers.zarr import count_zarr
from drift_policy.errors import ConfigurationError, DataError

DATA_VARIABLE = "DRIFT_POLICY_DATA"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DatasetSource:
    """Describes one data set; comes from a task's configuration.

    Raises:
        ConfigurationError: a relative path that leaves its folder, or an address that is not http or https.
    """

    name: str  # shown in messages, such as "pusht"
    relative_path: str  # inside the data folder or the cache, such as "pusht/pusht_cchi_v7_replay.zarr"
    url: str | None = None  # address of a .zip that holds relative_path, or of that file itself; None: not downloadable
    sha256: str | None = None  # of the downloaded file, if known
    expected_episodes: int | None = None  # episodes of the full data set, if known
    expected_steps: int | None = None  # steps of the full data set, if known
    bundled: str | None = None  # demonstrations that come with the repository, relative to its root
    hint: str | None = None  # how to get the data where there is no url, in one line

    def __post_init__(self) -> None:
        relative = PurePosixPath(self.relative_path)
        if not relative.parts or relative.is_absolute() or ".." in relative.parts:
            raise ConfigurationError(f"relative_path of '{self.name}' must stay in its folder: {self.relative_path!r}.")
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise ConfigurationError(f"url of '{self.name}' must start with http:// or https://, but is {self.url!r}.")


@dataclass(frozen=True)
class ResolvedData:
    """Demonstrations found on this machine."""

    path: Path  # file or folder to read
    origin: Literal["path", "environment", "cache", "download", "bundled"]  # where they come from
    notice: str  # what was said to the user about it, on one or more lines


def resolve(
    source: DatasetSource,
    path: str | Path | None = None,
    *,
    allow_download: bool = True,
    report: Callable[[str], None] = print,
    count: Callable[[Path], tuple[int, int]] = count_zarr,
    repository: Path = REPOSITORY,
) -> ResolvedData:
    """Find the demonstrations of a task, and download them if they are nowhere on this machine.

    Order: `path`; the folder named by DRIFT_POLICY_DATA; the cache; a download into the cache; the bundled file. Only a
    download that fails (or is not allowed or possible) leads to the bundled file, and `report` says why.

    Args:
        source: the data set.
        path: file or folder to use; nothing else is tried then.
        allow_download: False never opens a connection.
        report: called with every message for the user.
        count: reads (episodes, steps) of a file, to check it against the expected ones; DataError if it is damaged.
        repository: folder that `source.bundled` is relative to.

    Raises:
        DataError: the given path does not exist, what was found is damaged or another data set, the cache cannot be
            written, or nothing was found; the message says how to get the data.
    """
    notices: list[str] = []

    def say(message: str) -> None:
        notices.append(message)
        report(message)

    if path is not None:
        found = _given_path(source, Path(path).expanduser())
        say(f"{source.name}: demonstrations from {found}.")
        return ResolvedData(found, "path", "\n".join(notices))
    local = _in_data_folder(source, say) or _in_cache(source)
    if local is not None:
        found, origin = local
        _check_content(source, found, count)
        say(f"{source.name}: demonstrations from {found}.")
        return ResolvedData(found, origin, "\n".join(notices))
    try:
        if source.url is None or not allow_download:
            raise DownloadError("no download address is known" if source.url is None else "downloads are switched off")
        say(f"{source.name}: downloading {source.url} to {cache_folder()}.")
        found = _download_to_cache(source, source.url, count)
    except DownloadError as error:
        found = _bundled(source, str(error), repository)
        say(
            f"{source.name}: the full data set is not available: {str(error).rstrip('.')}. Using the BUNDLED "
            f"demonstrations {found} instead; expect lower scores than with the full data set. {_how_to_get(source)}"
        )
        return ResolvedData(found, "bundled", "\n".join(notices))
    say(f"{source.name}: demonstrations from {found}.")
    return ResolvedData(found, "download", "\n".join(notices))


def _given_path(source: DatasetSource, path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"The demonstrations of '{source.name}' were given as {path}, which does not exist. Correct the path, or "
            "leave it out to look in the data folder and the cache."
        )
    return path


def _in_data_folder(
    source: DatasetSource, say: Callable[[str], None]
) -> tuple[Path, Literal["environment", "cache"]] | None:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    path = Path(folder).expanduser() / source.relative_path
    if path.exists():
        return path, "environment"
    say(f"{source.name}: {DATA_VARIABLE} is set, but {path} does not exist; looking in the cache next.")
    return None


def _in_cache(source: DatasetSource) -> tuple[Path, Literal["environment", "cache"]] | None:
    path = cache_folder() / source.relative_path
    return (path, "cache") if path.exists() else None


def _check_content(source: DatasetSource, path: Path, count: Callable[[Path], tuple[int, int]]) -> None:
    if source.expected_episodes is None and source.expected_steps is None:
        return
    episodes, steps = count(path)
    for what, found, expected in (
        ("episodes", episodes, source.expected_episodes),
        ("steps", steps, source.expected_steps),
    ):
        if expected is not None and found != expected:
            raise DataError(
                f"{path} has {found} {what}, but '{source.name}' has {expected}: it is another data set or an "
                "incomplete copy. Delete it to get it again, or pass its path explicitly to use it as it is."
            )


def _download_to_cache(source: DatasetSource, url: str, count: Callable[[Path], tuple[int, int]]) -> Path:
    cache = cache_folder()
    target = cache / source.relative_path
    try:
        (cache / "downloads").mkdir(parents=True, exist_ok=True)
        # Several processes of one training start at the same time: one downloads, the others wait and find the result.
        with FileLock(cache / "downloads" / f"{source.name}.lock"):
            if not target.exists():
                _fetch_and_place(source, url, count, target)
    except OSError as error:
        raise DataError(
            f"'{source.name}' cannot be stored in the cache {cache} ({error}). Free space there, or name another "
            f"folder with the environment variable {CACHE_VARIABLE}."
        ) from error
    return target


def _fetch_and_place(source: DatasetSource, url: str, count: Callable[[Path], tuple[int, int]], target: Path) -> None:
    downloads = cache_folder() / "downloads"
    # The name tells data sets apart whose addresses end alike.
    archive = downloads / f"{source.name}-{PurePosixPath(urlsplit(url).path).name}"
    download(url, archive, sha256=source.sha256)
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        unpacked = Path(temporary)
        found = unpacked / source.relative_path
        try:
            if _is_packed(source, url):
                unpack_zip(archive, unpacked)
            else:
                found.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(archive, found)
            if not found.exists():
                raise DownloadError(f"{url} does not contain {source.relative_path}")
            _check_content(source, found, count)
        except DownloadError:
            raise
        except DataError as error:
            raise DownloadError(f"{url} gave other data than expected: {error}") from error
        finally:
            archive.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(found, target)


def _is_packed(source: DatasetSource, url: str) -> bool:
    return urlsplit(url).path.endswith(".zip") and not source.relative_path.endswith(".zip")


def _bundled(source: DatasetSource, reason: str, repository: Path) -> Path:
    path = None if source.bundled is None else repository / source.bundled
    if path is None or not path.exists():
        bundled = "no bundled demonstrations exist" if path is None else f"the bundled file {path} does not exist"
        raise DataError(
            f"No demonstrations for '{source.name}': {reason.rstrip('.')}, and {bundled}. {_how_to_get(source)}"
        )
    return path


def _how_to_get(source: DatasetSource) -> str:
    place = f"so that {DATA_VARIABLE} names the folder that holds {source.relative_path}"
    if source.url is None:
        hint = f" {source.hint}" if source.hint else ""
        return f"To use the full data set, give its path with data_path=..., or put it on this machine {place}.{hint}"
    name = PurePosixPath(urlsplit(source.url).path).name
    if _is_packed(source, source.url):
        commands = f"  mkdir -p data && cd data\n  curl -L -O {source.url}\n  unzip {name}"
    else:
        parent = PurePosixPath("data") / PurePosixPath(source.relative_path).parent
        commands = f"  mkdir -p {parent} && cd data\n  curl -L -o {source.relative_path} {source.url}"
    return f"To get the full data set, {place}:\n{commands}\n  export {DATA_VARIABLE}=$PWD"
