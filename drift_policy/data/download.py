"""Downloading a data set: resumed after a cut, checked, and unpacked without trusting the archive."""

import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from drift_policy.digests import file_sha256
from drift_policy.errors import DataError

TIMEOUT_SECONDS = 10.0
ATTEMPTS = 4
READ_BYTES = 2**16  # at most this much is lost when a connection is cut
MAX_UNPACKED_BYTES = 200 * 2**30


class DownloadError(DataError):
    """The download did not give the expected file: no network, a wrong answer, or damaged or unsafe content."""


def download(url: str, target: Path, *, sha256: str | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
    """Download `url` to `target`, with a progress bar on standard error.

    The bytes go to `<target>.part`, which is renamed once complete and correct. A cut connection is resumed at once, a
    few times; a partial file left by an earlier run is resumed too if the server still has the same file (by its ETag
    or time of change).

    Args:
        url: http or https address.
        target: file to write; its folder must exist.
        sha256: expected hash of the file (hex); None skips this check.
        timeout: seconds to wait for the connection, and for each piece of data.

    Raises:
        DownloadError: the server cannot be reached, answers with an error, keeps cutting, or sends another file.
        OSError: the file cannot be written.
    """
    part = target.with_name(target.name + ".part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(target.name, total=None)
        for attempt in range(1, ATTEMPTS + 1):
            before = _size(part)
            try:
                _fetch(url, part, timeout, progress, task)
                break
            except requests.RequestException as error:
                # Only a transfer that moved on is worth another try: a host that cannot be reached fails at once.
                if attempt == ATTEMPTS or _size(part) == before:
                    raise DownloadError(f"{url} cannot be downloaded: {_reason(error)}.") from error
    if sha256 is not None:
        found = file_sha256(part)
        if found != sha256.lower():
            _discard(part)
            raise DownloadError(f"{url} gave another file than expected: its sha256 is {found}, expected {sha256}.")
    os.replace(part, target)
    _discard(part)


def unpack_zip(archive: Path, folder: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Unpack a zip archive into an existing folder; every file's checksum is checked.

    Raises:
        DownloadError: the archive is damaged, or holds a link, a path outside the folder or too many bytes.
        OSError: the files cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            for entry in entries:
                _check_entry(archive, entry)
            # zipfile never writes more than the declared size of an entry, so this sum bounds what is unpacked.
            size = sum(entry.file_size for entry in entries)
            limit = min(max_bytes, shutil.disk_usage(folder).free)
            if size > limit:
                raise DownloadError(
                    f"{archive} would unpack to {size:,} bytes, more than the {limit:,} allowed or free."
                )
            opened.extractall(folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive} is not a complete zip archive ({error}).") from error


def _fetch(url: str, part: Path, timeout: float, progress: Progress, task: TaskID) -> None:
    """Append what is missing to `part`; requests.RequestException if the transfer fails or is cut."""
    validator_file = _validator_file(part)
    offset = _size(part) if validator_file.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator_file.read_text("utf-8")}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            _discard(part)  # it holds the whole file or more: the next attempt starts over
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        offset = offset if resumed else 0
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):  # a weak ETag does not promise equal bytes
            validator_file.write_text(validator, "utf-8")
        else:
            validator_file.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        progress.update(task, total=offset + int(length) if length else None, completed=offset)
        with part.open("ab" if resumed else "wb") as file:
            for piece in response.iter_content(READ_BYTES):
                file.write(piece)
                progress.advance(task, len(piece))


def _check_entry(archive: Path, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    outside = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename
    if outside or stat.S_ISLNK(entry.external_attr >> 16):
        raise DownloadError(
            f"{archive} holds the unsafe entry {entry.filename!r} (a link or a path outside its folder)."
        )


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    return f"{type(error).__name__}: {error}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)
