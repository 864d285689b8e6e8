"""Finding demonstrations: the order of places, and what happens when one of them is wrong."""

import functools
import shutil
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.sources import DatasetSource, ResolvedData, resolve
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import ConfigurationError, DataError

RELATIVE = "pusht/demos.zarr"
BUNDLED = "data/pusht_bundled.zarr.zip"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder without writing to standard error."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class House:
    """A machine of its own: data folder, cache, repository and web server below one folder."""

    def __init__(self, root: Path, url: str) -> None:
        self.data, self.cache, self.repository, self.web = (root / n for n in ("data", "cache", "repository", "web"))
        self.url = url
        self.messages: list[str] = []

    def source(self, **changes: object) -> DatasetSource:
        values: dict[str, object] = {
            "name": "pusht",
            "relative_path": RELATIVE,
            "url": f"{self.url}/pusht.zip",
            "expected_episodes": 2,
            "expected_steps": 9,
            "bundled": BUNDLED,
        }
        return DatasetSource(**(values | changes))  # type: ignore[arg-type]

    def publish(self, steps: int = 9, relative: str = RELATIVE) -> None:
        folder = self.web.parent / "to_zip"
        write(folder / relative, steps)
        shutil.make_archive(str(self.web / "pusht"), "zip", folder)

    def bundle(self) -> None:
        write(self.repository / BUNDLED, 4)

    def resolve(
        self, source: DatasetSource | None = None, path: Path | None = None, allow_download: bool = True
    ) -> ResolvedData:
        found = resolve(
            source or self.source(),
            path,
            report=self.messages.append,
            repository=self.repository,
            allow_download=allow_download,
        )
        assert found.notice == "\n".join(self.messages)
        return found


def write(path: Path, steps: int = 9) -> None:
    write_zarr(path, ReplayBuffer({"action": np.arange(2.0 * steps).reshape(steps, 2)}, np.array([3, steps])))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    (tmp_path / "web").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "web"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    house = House(tmp_path, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DRIFT_POLICY_CACHE", str(house.cache))
    monkeypatch.delenv("DRIFT_POLICY_DATA", raising=False)
    yield house
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_place_comes_before_the_next(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.bundle()
    assert house.resolve().origin == "bundled"
    house.messages.clear()
    house.publish()
    found = house.resolve()
    assert (found.origin, found.path) == ("download", house.cache / RELATIVE)
    assert read_zarr(found.path).n_steps == 9
    house.messages.clear()
    assert house.resolve() == ResolvedData(found.path, "cache", f"pusht: demonstrations from {found.path}.")
    house.messages.clear()
    write(house.data / RELATIVE)
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(house.data))
    assert house.resolve().path == house.data / RELATIVE
    house.messages.clear()
    write(house.data / "mine.zarr", steps=5)
    assert house.resolve(path=house.data / "mine.zarr").origin == "path"


def test_a_download_leaves_only_the_data_set_and_the_lock(house: House) -> None:
    house.publish()
    house.resolve()
    assert sorted(entry.name for entry in house.cache.iterdir()) == ["downloads", "pusht"]
    assert [entry.name for entry in (house.cache / "downloads").iterdir() if entry.suffix != ".lock"] == []
    assert house.messages[0] == f"pusht: downloading {house.url}/pusht.zip to {house.cache}."


def test_a_file_that_is_no_archive_is_placed_as_it_is(house: House) -> None:
    write(house.web / "demos.zarr.zip")
    found = house.resolve(house.source(url=f"{house.url}/demos.zarr.zip", relative_path="pusht/demos.zarr.zip"))
    assert (found.origin, found.path) == ("download", house.cache / "pusht/demos.zarr.zip")
    assert read_zarr(found.path).n_steps == 9


def test_a_given_path_that_is_missing_is_an_error_without_another_try(house: House) -> None:
    house.bundle()
    house.publish()
    with pytest.raises(DataError, match="given as .*absent, which does not exist"):
        house.resolve(path=house.data / "absent")
    assert not house.cache.exists()


def test_a_data_folder_without_the_data_set_is_reported(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    write(house.cache / RELATIVE)
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(house.data))
    assert house.resolve().origin == "cache"
    assert house.messages[0] == (
        f"pusht: DRIFT_POLICY_DATA is set, but {house.data / RELATIVE} does not exist; looking in the cache next."
    )


@pytest.mark.parametrize("place", ["data", "cache"])
def test_another_data_set_in_the_right_place_is_an_error(
    house: House, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    house.bundle()
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(house.data))
    write(getattr(house, place) / RELATIVE, steps=8)
    with pytest.raises(DataError, match="has 8 steps, but 'pusht' has 9"):
        house.resolve()


def test_downloads_can_be_switched_off(house: House) -> None:
    house.bundle()
    house.publish()
    assert house.resolve(allow_download=False).origin == "bundled"
    assert "downloads are switched off" in house.messages[0]
    assert not house.cache.exists()


def test_bundled_demonstrations_come_with_reason_and_remedy(house: House) -> None:
    house.bundle()
    found = house.resolve()
    assert found.path == house.repository / BUNDLED
    assert "the server answered 404" in found.notice and "BUNDLED" in found.notice
    assert f"curl -L -O {house.url}/pusht.zip\n  unzip pusht.zip\n  export DRIFT_POLICY_DATA=$PWD" in found.notice


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("steps", "has 8 steps, but 'pusht' has 9"),
        ("content", "does not contain pusht/demos.zarr"),
        ("page", "not a complete zip archive"),
        ("hash", "sha256 is"),
        ("chunk", "of its 1 stored chunks"),
    ],
)
def test_a_wrong_download_is_refused_and_not_kept(house: House, problem: str, message: str) -> None:
    house.bundle()
    source = house.source(sha256="0" * 64) if problem == "hash" else house.source()
    if problem == "page":
        (house.web / "pusht.zip").write_text("<html>Please log in to this network</html>")
    elif problem == "chunk":
        write(house.web / "to_zip" / RELATIVE)
        (house.web / "to_zip" / RELATIVE / "data/action/c/0/0").unlink()
        shutil.make_archive(str(house.web / "pusht"), "zip", house.web / "to_zip")
    else:
        house.publish(8 if problem == "steps" else 9, "other/demos.zarr" if problem == "content" else RELATIVE)
    found = house.resolve(source)
    assert found.origin == "bundled" and message in found.notice
    assert not (house.cache / RELATIVE).exists()
    assert [entry.name for entry in (house.cache / "downloads").iterdir() if entry.suffix != ".lock"] == []


@pytest.mark.parametrize(("bundled", "message"), [(None, "no bundled"), (BUNDLED, "bundled file .* does not exist")])
def test_nothing_found_names_file_address_and_commands(house: House, bundled: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        house.resolve(house.source(bundled=bundled))
    for part in (RELATIVE, f"{house.url}/pusht.zip", "curl -L -O", "export DRIFT_POLICY_DATA=$PWD"):
        assert part in str(raised.value)


def test_a_source_without_an_address(house: House) -> None:
    with pytest.raises(DataError, match="no download address is known.*data_path=.*put it on this machine"):
        house.resolve(house.source(url=None, bundled=None))


def test_a_source_without_an_address_says_how_to_make_it(house: House) -> None:
    source = house.source(url=None, bundled=None, hint="Make it with: python -m envs.block_push.collect")
    with pytest.raises(DataError, match=f"holds {RELATIVE}. Make it with: python -m envs.block_push.collect"):
        house.resolve(source)


def test_a_cache_that_cannot_be_written_is_an_error(house: House) -> None:
    house.bundle()
    house.publish()
    house.cache.write_text("a file, not a folder")
    with pytest.raises(DataError, match="cannot be stored in the cache .*DRIFT_POLICY_CACHE"):
        house.resolve()


@pytest.mark.parametrize("relative_path", ["", "/etc/passwd", "../x.zarr", "a/../../x.zarr"])
def test_relative_paths_must_stay_inside(relative_path: str) -> None:
    with pytest.raises(ConfigurationError, match="relative_path"):
        DatasetSource("pusht", relative_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/pusht.zip", "pusht.zip"])
def test_addresses_must_be_http(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http"):
        DatasetSource("pusht", RELATIVE, url)
