"""Downloads and unpacking, against a server on this machine that can cut, refuse and lie."""

import hashlib
import io
import socket
import stat
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from drift_policy.data.download import ATTEMPTS, DownloadError, download, unpack_zip

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(ThreadingHTTPServer):
    """Serves CONTENT with Range support."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str | None, str | None]] = []  # Range and If-Range of every request
        self.cuts = 0  # that many responses stop half-way
        self.status = 200
        self.etag: str | None = '"one"'
        self.url = f"http://127.0.0.1:{self.server_port}/demos.zip"


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the one file of the server."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802
        """Send the file from the asked offset, cut short while `server.cuts` lasts."""
        server = self.server
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        server.requests.append((asked, condition))
        if server.status != 200:
            self.send_error(server.status)
            return
        resumed = asked is not None and condition == server.etag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if resumed else 0
        if resumed and start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if resumed else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        body = CONTENT[start:]
        if server.cuts > 0:
            server.cuts -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_whole_file(server: Server, tmp_path: Path) -> None:
    download(server.url, tmp_path / "demos.zip", sha256=sha256(CONTENT).upper())
    assert (tmp_path / "demos.zip").read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["demos.zip"]
    assert server.requests == [(None, None)]


def test_cut_connection_is_resumed_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    download(server.url, tmp_path / "demos.zip", sha256=sha256(CONTENT))
    assert (tmp_path / "demos.zip").read_bytes() == CONTENT
    assert server.requests == [(None, None), ("bytes=524288-", '"one"'), ("bytes=786432-", '"one"')]


def test_partial_file_of_an_earlier_run_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = ATTEMPTS
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        download(server.url, tmp_path / "demos.zip")
    assert len(server.requests) == ATTEMPTS
    received = (tmp_path / "demos.zip.part").stat().st_size
    assert not (tmp_path / "demos.zip").exists() and received > 0
    download(server.url, tmp_path / "demos.zip")
    assert server.requests[-1] == (f"bytes={received}-", '"one"')
    assert (tmp_path / "demos.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"two"', None, 'W/"weak"'])
def test_partial_file_of_another_version_is_not_continued(server: Server, tmp_path: Path, etag: str | None) -> None:
    (tmp_path / "demos.zip.part").write_bytes(b"bytes of another version")
    (tmp_path / "demos.zip.part.validator").write_text('"one"')
    server.etag = etag
    download(server.url, tmp_path / "demos.zip")
    assert (tmp_path / "demos.zip").read_bytes() == CONTENT


def test_partial_file_without_a_known_version_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "demos.zip.part").write_bytes(b"of unknown origin")
    download(server.url, tmp_path / "demos.zip")
    assert server.requests == [(None, None)]
    assert (tmp_path / "demos.zip").read_bytes() == CONTENT


def test_complete_partial_file_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "demos.zip.part").write_bytes(CONTENT)
    (tmp_path / "demos.zip.part.validator").write_text('"one"')
    download(server.url, tmp_path / "demos.zip")
    assert (tmp_path / "demos.zip").read_bytes() == CONTENT


def test_wrong_hash_leaves_nothing_to_resume(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"sha256 is {sha256(CONTENT)}, expected {'0' * 64}"):
        download(server.url, tmp_path / "demos.zip", sha256="0" * 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [404, 403, 500])
def test_error_status_is_named_and_not_repeated(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        download(server.url, tmp_path / "demos.zip")
    assert len(server.requests) == 1
    assert not list(tmp_path.iterdir())


def test_unreachable_port_fails_fast(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="ConnectionError"):
        download(f"http://127.0.0.1:{port}/demos.zip", tmp_path / "demos.zip")
    assert time.perf_counter() - start < 5


def test_silent_server_runs_into_the_time_limit(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DownloadError, match="did not answer in time"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/demos.zip", tmp_path / "demos.zip", timeout=0.2)


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def unpack(archive: Path, **options: int) -> Path:
    folder = archive.parent / "unpacked"
    folder.mkdir()
    unpack_zip(archive, folder, **options)
    return folder


def test_unpack_zip(tmp_path: Path) -> None:
    folder = unpack(make_zip(tmp_path / "a.zip", {"pusht/data/0.0": b"x", "pusht/.zgroup": b"{}"}))
    assert (folder / "pusht/data/0.0").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../escaped", "pusht/../../escaped", "/escaped", "..\\escaped", "C:/escaped"])
def test_paths_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DownloadError, match="unsafe entry"):
        unpack(make_zip(tmp_path / "a.zip", {"fine": b"x", name: b"evil"}))
    assert not list((tmp_path / "unpacked").iterdir())
    assert not (tmp_path / "escaped").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc")
    with pytest.raises(DownloadError, match="unsafe entry 'link'"):
        unpack(tmp_path / "a.zip")


def test_too_large_contents_are_refused_before_writing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"zeros": bytes(100_000), "more": bytes(100_000)})
    assert archive.stat().st_size < 2_000
    with pytest.raises(DownloadError, match="200,000 bytes, more than the 150,000"):
        unpack(archive, max_bytes=150_000)
    assert not list((tmp_path / "unpacked").iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "html"])
def test_damaged_archives_are_refused(tmp_path: Path, damage: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("demos", CONTENT)
    content = bytearray(buffer.getvalue())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"<html>Please log in</html>")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DownloadError, match="not a complete zip archive"):
        unpack(tmp_path / "a.zip")
