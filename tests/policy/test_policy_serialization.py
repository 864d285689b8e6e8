"""Checkpoints: exact round trips, run folders, and damaged or foreign files."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drift_policy import Policy, load_policy
from drift_policy.errors import CheckpointError
from drift_policy.policy import build_policy
from drift_policy.serialization import CONFIG_FILE, FORMAT_VERSION, MODEL_FILE
from tests.helpers.policies import HEAD_NAMES, NETWORKS, tiny_config, tiny_obs, tiny_policy


def predict(policy: Policy) -> torch.Tensor:
    return policy.predict_action(tiny_obs(policy), generator=torch.Generator().manual_seed(0))["action_pred"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_policy().save_pretrained(tmp_path / "checkpoint")


@pytest.mark.parametrize("head", HEAD_NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_round_trip_is_exact(head: str, network: str, tmp_path: Path) -> None:
    policy = tiny_policy(head, network, noise_scale=0.5)
    expected = predict(policy)
    returned = policy.train().save_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in returned.iterdir()) == [CONFIG_FILE, MODEL_FILE]
    loaded = load_policy(str(returned))
    assert not loaded.training
    assert type(loaded) is type(policy)
    assert loaded.config == policy.config
    assert loaded.metadata == {"task": "tiny"}
    assert torch.equal(predict(loaded), expected)
    state = policy.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_saving_again_replaces_the_checkpoint(folder: Path) -> None:
    other = tiny_policy("flow", seed=1)
    other.save_pretrained(folder)
    assert torch.equal(predict(load_policy(folder)), predict(other))


def make_run(run: Path, **index: Any) -> dict[str, torch.Tensor]:
    """Write two checkpoints of different policies and return what they predict."""
    predictions = {}
    for seed, name in enumerate(("last", "step_00000100")):
        policy = tiny_policy(seed=seed)
        policy.save_pretrained(run / "checkpoints" / name)
        predictions[name] = predict(policy)
    (run / "checkpoints" / "index.json").write_text(json.dumps(index))
    return predictions


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    predictions = make_run(tmp_path, last="last", best="step_00000100")
    assert torch.equal(predict(load_policy(tmp_path)), predictions["step_00000100"])
    assert torch.equal(predict(load_policy(tmp_path / "checkpoints" / "last")), predictions["last"])


def test_a_run_without_rollouts_means_its_last_checkpoint(tmp_path: Path) -> None:
    predictions = make_run(tmp_path, last="last", best=None)
    assert torch.equal(predict(load_policy(tmp_path)), predictions["last"])


@pytest.mark.parametrize(
    "index", ['{"last": "gone", "best": null}', '{"best": 3}', "{}", "[]", "{", '{"last": "../x"}']
)
def test_a_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    make_run(tmp_path)
    path = tmp_path / "checkpoints" / "index.json"
    path.write_text(index)
    with pytest.raises(CheckpointError) as error:
        load_policy(tmp_path)
    assert str(path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist.*run folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no config\.json and no checkpoints/index\.json"):
        load_policy(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file\. Give a run folder"):
        load_policy(tmp_path / "model.safetensors")


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / MODEL_FILE)
        change(tensors)
        save_file(tensors, folder / MODEL_FILE)

    return damage


def truncate(folder: Path) -> None:
    content = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(content[: len(content) // 2])


BIAS = "head.network.output.bias"
DAMAGED_MODELS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "absent": ("is missing", lambda folder: (folder / MODEL_FILE).unlink()),
    "truncated": ("is damaged", truncate),
    "empty": ("is damaged", lambda folder: (folder / MODEL_FILE).write_bytes(b"")),
    "text": ("is damaged", lambda folder: (folder / MODEL_FILE).write_text("<html>not found</html>")),
    "lacking": (f"lacks {BIAS}", edit_tensors(lambda tensors: tensors.pop(BIAS))),
    "extra": ("unknown tensor extra", edit_tensors(lambda tensors: tensors.update(extra=torch.ones(1)))),
    "renamed": ("2 names differ", edit_tensors(lambda tensors: tensors.update(other=tensors.pop(BIAS)))),
    "reshaped": (
        rf"{BIAS} has shape \[3\], but config.json asks for \[12\]",
        edit_tensors(lambda tensors: tensors.update({BIAS: torch.ones(3)})),
    ),
    "nan": (f"{BIAS} holds NaN", edit_tensors(lambda tensors: tensors[BIAS].fill_(torch.nan))),
    "infinite": (f"{BIAS} holds NaN or infinity", edit_tensors(lambda tensors: tensors[BIAS].fill_(torch.inf))),
}


@pytest.mark.parametrize("case", DAMAGED_MODELS)
def test_a_damaged_model_file_is_named(folder: Path, case: str) -> None:
    message, damage = DAMAGED_MODELS[case]
    load_policy(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_policy(folder)
    assert str(folder / MODEL_FILE) in str(error.value)


def test_a_policy_saved_without_normaliser_is_refused(tmp_path: Path) -> None:
    build_policy(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"normalizer\.\w+ holds NaN"):
        load_policy(tmp_path)


def set_entry(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


WRONG_CONFIGS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "newer": (
        f"format version {FORMAT_VERSION + 1}, but this release of drift-policy reads version {FORMAT_VERSION}",
        set_entry("format_version", value=FORMAT_VERSION + 1),
    ),
    "unversioned": ("format version None", lambda content: content.pop("format_version")),
    "no policy": ("no entry 'policy'", lambda content: content.pop("policy")),
    "head name": ("Head 'bridge' is unknown", set_entry("policy", "head", "name", value="bridge")),
    "head": ("does not describe a policy", set_entry("policy", "head", value="drift")),
    "network name": ("network is 'unet'", set_entry("policy", "network", "name", value="unet")),
    "network field": (r"policy\.network\.hight does not exist", set_entry("policy", "network", "hight", value=4)),
    "field": (r"policy\.horizont does not exist", set_entry("policy", "horizont", value=4)),
    "missing field": (r"policy\.action_dim has no value", lambda content: content["policy"].pop("action_dim")),
    "wrong value": ("executed steps", set_entry("policy", "horizon", value=2)),
    "observations": ("does not describe a policy", set_entry("policy", "observations", value=["obs"])),
    "metadata": ("does not describe a policy", set_entry("metadata", value=["task"])),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_wrong_config_file_is_named(folder: Path, case: str) -> None:
    message, change = WRONG_CONFIGS[case]
    content = json.loads((folder / CONFIG_FILE).read_text())
    change(content)
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as error:
        load_policy(folder)
    assert str(folder / CONFIG_FILE) in str(error.value)


@pytest.mark.parametrize("text", [b'{"format_version": 1,', b"", b"\xff\xfe\x00", b"[1]", b"3"])
def test_a_config_file_that_is_no_json_object_is_named(folder: Path, text: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(text)
    with pytest.raises(CheckpointError) as error:
        load_policy(folder)
    assert str(folder / CONFIG_FILE) in str(error.value)


class Trap:
    """Unpickling it writes a file: what a malicious checkpoint could do."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(folder: Path, tmp_path: Path, form: str) -> None:
    victim, malicious = tmp_path / "executed", tmp_path / "malicious.pt"
    if form == "pickle":
        malicious.write_bytes(pickle.dumps({"weight": Trap(victim)}))
        pickle.loads(malicious.read_bytes())
    else:
        torch.save({"weight": Trap(victim)}, malicious)
        torch.load(malicious, weights_only=False)
    assert victim.exists(), "the trap works when it is unpickled"
    victim.unlink()
    malicious.rename(folder / MODEL_FILE)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_policy(folder)
    assert not victim.exists()
