"""Uploading to the Hugging Face Hub with a fake API, and the model card that goes along."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from drift_policy import Policy, build_policy, load_policy
from drift_policy.errors import CheckpointError
from drift_policy.model_card import model_card
from tests.helpers.policies import tiny_config, tiny_obs, tiny_policy

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub of the hub extra")


class FakeApi:
    """Keeps what was uploaded, by repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self) -> "FakeApi":
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", (repo_id, private, exist_ok)))
        if self.error:
            raise self.error

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        self.calls.append(("upload", (repo_id, commit_message)))
        for file in Path(folder_path).iterdir():
            (self.folder / file.name).write_bytes(file.read_bytes())
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    (tmp_path / "hub").mkdir()
    fake = FakeApi(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(fake.folder))
    return fake


def write_manifest(folder: Path, about: Policy, **changes: Any) -> Path:
    interval = {"mean": 0.96364, "low": 0.92326, "high": 0.98746, "n": 50}
    manifest = {
        "command": "python train_policy.py task=pusht",
        "commit": "abc123",
        "date": "2026-11-23T18:25:29+00:00",
        "machine": {"cpu": "A processor", "gpu": None},
        "versions": {"drift-policy": "0.1.0", "torch": "2.13.0"},
        "data": {"name": "pusht", "episodes": 206, "sha256": "a93b"},
        "training": {"steps": 18000, "seconds": 600.0},
        "policy": {**about.config.to_mapping(), "parameters": 1},
        "evaluation": {
            "score_name": "coverage",
            "score": interval,
            "success": interval | {"mean": 0.4},
            "latency_ms": {"p50": 0.48, "p99": 1.73, "decisions": 10},
            "noise_scale": 0.5,
            "protocol": {"n_episodes": 50, "start_seed": 100000},
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def front_matter(card: str) -> Any:
    assert card.startswith("---\n")
    return OmegaConf.to_container(OmegaConf.create(card.split("---\n")[1]))


def test_an_uploaded_policy_can_be_loaded(api: FakeApi, tmp_path: Path) -> None:
    policy = tiny_policy()
    run = write_manifest(tmp_path / "run", policy)
    assert policy.push_to_hub("lab/push-t", run=run, private=True) == "https://hub/lab/push-t/commit/1"
    assert api.calls == [("create", ("lab/push-t", True, True)), ("upload", ("lab/push-t", "Upload policy"))]
    assert {file.name for file in api.folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    obs = tiny_obs(policy)
    expected = policy.predict_action(obs, noise_scale=0.0)["action"]
    assert torch.equal(load_policy("hf://lab/push-t").predict_action(obs, noise_scale=0.0)["action"], expected)


def test_the_card_tells_what_the_manifest_says(api: FakeApi, tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.push_to_hub("lab/push-t", run=write_manifest(tmp_path / "run", policy))
    card = (api.folder / "README.md").read_text()
    front = front_matter(card)
    assert front["library_name"] == "drift-policy" and front["metrics"] == ["coverage", "success"]
    assert {"robotics", "drift", "tiny"} <= set(front["tags"])
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "coverage", "value": 0.9636}, {"type": "success", "value": 0.4}]
    for text in (
        "| coverage | 0.964 | 0.923 to 0.987 | 50 |",
        "`python train_policy.py task=pusht`, commit `abc123`",
        "episodes `206`, sha256 `a93b`",
        "18000 steps, 10.0 minutes",
        "torch 2.13.0",
        "0.48 ms (median; 99th percentile 1.73 ms) on A processor",
        '"start_seed": 100000',
        "with 1 network evaluation.",
    ):
        assert text in card


def test_the_card_of_a_policy_with_candidates_says_how_many(api: FakeApi, tmp_path: Path) -> None:
    policy = tiny_policy(num_candidates=16)
    run = write_manifest(tmp_path / "run", policy)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["evaluation"]["num_candidates"] = 8
    (run / "manifest.json").write_text(json.dumps(manifest))
    policy.push_to_hub("lab/push-t", run=run)
    card = (api.folder / "README.md").read_text()
    assert "with 1 network evaluation, the most typical of 16 candidates." in card
    assert "candidates of a decision: 8;" in card


@pytest.mark.parametrize(("number", "said"), [(4, "candidates of a decision: 4, half of them mirrored;"), (1, ": 1;")])
def test_the_card_of_a_mirrored_policy_says_so(tmp_path: Path, number: int, said: str) -> None:
    policy = tiny_policy(num_candidates=16, mirrored=True)
    run = write_manifest(tmp_path / "run", policy)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["evaluation"] |= {"num_candidates": number, "mirrored": True}  # as older manifests say of a single one
    card = model_card(policy, "lab/push-t", manifest)
    assert "typical of 16 candidates, half of which answer to the mirror image of the observation." in card
    assert said in card


def test_a_manifest_from_before_a_setting_is_of_the_policy_with_its_default(api: FakeApi, tmp_path: Path) -> None:
    run = write_manifest(tmp_path / "run", tiny_policy())
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["policy"]["num_candidates"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    tiny_policy().push_to_hub("lab/push-t", run=run)
    assert "candidates of a decision: 1;" in (api.folder / "README.md").read_text()
    with pytest.raises(CheckpointError, match="about another policy"):
        tiny_policy(num_candidates=2).push_to_hub("lab/push-t", run=run)


def test_the_lines_of_use_run(api: FakeApi) -> None:
    policy = tiny_policy(observations={"arm": 2, "cube": 3})
    policy.push_to_hub("lab/push-t")
    code = (api.folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 5
    variables: dict[str, Any] = {"arm_now": torch.zeros(2), "cube_now": torch.zeros(3)}
    exec(code, variables)
    assert variables["action"].shape == (2,)


def test_without_a_manifest_there_is_no_score() -> None:
    card = model_card(tiny_policy("diffusion"), "lab/x")
    front = front_matter(card)
    assert "metrics" not in front and "model-index" not in front
    assert "Results" not in card and "6 network evaluations" in card


def test_an_open_loop_manifest_and_an_evaluation_manifest_are_understood(tmp_path: Path, api: FakeApi) -> None:
    policy = tiny_policy()
    interval = {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 4}
    open_loop = {
        "action_error": interval,
        "action_mse": interval,
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "noise_scale": 0.0,
        "protocol": {"n_episodes": 4},
    }
    run = write_manifest(tmp_path / "run", policy, evaluation=None, open_loop=open_loop)
    policy.push_to_hub("lab/x", run=run / "manifest.json")
    card = (api.folder / "README.md").read_text()
    assert "| action error | 0.250 | 0.200 to 0.300 | 4 |" in card and "open loop" in card
    checkpoint = {"policy": policy.config.to_mapping()}
    policy.push_to_hub("lab/x", run=write_manifest(tmp_path / "eval", policy, policy=None, checkpoint=checkpoint))
    assert "coverage" in (api.folder / "README.md").read_text()


def test_scores_of_another_policy_are_refused_before_anything_is_sent(api: FakeApi, tmp_path: Path) -> None:
    run = write_manifest(tmp_path / "run", tiny_policy(horizon=8))
    with pytest.raises(CheckpointError, match="about another policy"):
        tiny_policy().push_to_hub("lab/x", run=run)
    write_manifest(run, tiny_policy(), evaluation={"score_name": "coverage"})
    with pytest.raises(CheckpointError, match="lacks 'score'"):
        tiny_policy().push_to_hub("lab/x", run=run)
    for content, message in (
        ("[]", "about another policy"),
        ('{"policy": {"observations": 3, "head": 3}}', "about another policy"),
        ("{", "not valid JSON"),
    ):
        (run / "manifest.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            tiny_policy().push_to_hub("lab/x", run=run)
    with pytest.raises(CheckpointError, match="does not exist: give the folder of a finished run"):
        tiny_policy().push_to_hub("lab/x", run=tmp_path / "none")
    with pytest.raises(CheckpointError, match="no normaliser"):
        build_policy(tiny_config()).push_to_hub("lab/x")
    assert api.calls == []


def test_a_refusal_of_the_hub_says_what_to_do(api: FakeApi) -> None:
    from huggingface_hub.errors import HFValidationError

    api.error = HFValidationError("bad name")
    with pytest.raises(CheckpointError, match=r"lab/x could not be uploaded.*bad name.*hf auth login"):
        tiny_policy().push_to_hub("lab/x")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'drift-policy\[hub\]'"):
        tiny_policy().push_to_hub("lab/x")
