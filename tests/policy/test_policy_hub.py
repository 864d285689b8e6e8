"""Loading from the Hugging Face Hub, with the network replaced by a local folder."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drift_policy import load_policy
from drift_policy.errors import CheckpointError
from tests.helpers.policies import tiny_obs, tiny_policy

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize("revision", [None, "v1.2", "0a1b2c"])
def test_a_hub_name_is_downloaded_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    policy = tiny_policy()
    policy.save_pretrained(tmp_path)
    requests: list[tuple[Any, ...]] = []

    def download(name: str, *, allow_patterns: list[str], revision: str | None) -> str:
        requests.append((name, allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_policy("hf://lab/push-t" + (f"@{revision}" if revision else ""))
    assert requests == [("lab/push-t", ["config.json", "model.safetensors"], revision)]
    obs = tiny_obs(policy)
    expected = policy.predict_action(obs, noise_scale=0.0)["action"]
    assert torch.equal(loaded.predict_action(obs, noise_scale=0.0)["action"], expected)


def test_a_hub_repository_without_policy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_policy("hf://lab/empty")


def http_error() -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    # Releases differ in the HTTP library behind the response; the error only reads these.
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    return HfHubHTTPError("404 Not Found", response=response)


def offline_error() -> Exception:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return LocalEntryNotFoundError("no connection and nothing in the cache")


@pytest.mark.parametrize("make_error", [http_error, offline_error])
def test_a_failed_download_names_the_repository(make_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error = make_error()

    def download(name: str, **_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"hf://lab/push-t could not be read.*(404|connection)"):
        load_policy("hf://lab/push-t")


@pytest.mark.parametrize("name", ["", "a/b/c", "lab/push t"])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="could not be read from the Hugging Face Hub"):
        load_policy(f"hf://{name}")


def test_a_revision_must_follow_its_sign() -> None:
    with pytest.raises(CheckpointError, match="hf://lab/push-t@ has no revision after the @"):
        load_policy("hf://lab/push-t@")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'drift-policy\[hub\]'"):
        load_policy("hf://lab/push-t")
