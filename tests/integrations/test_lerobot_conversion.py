"""Policies that LeRobot saved become policies of ours: same decisions from raw observations, and what is refused.

The files are made here, as LeRobot 0.4.4 and the plug-in write them; the plug-in's own tests have LeRobot itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drift_policy import Policy, build_policy, load_policy
from drift_policy.errors import CheckpointError, UserError
from drift_policy.integrations.lerobot import __main__ as command
from drift_policy.integrations.lerobot.conversion import convert_checkpoint
from drift_policy.integrations.lerobot.inner_policy import policy_config_of

EPS = 1e-8
SIZE = 24
STATE, ENV, IMAGE = "observation.state", "observation.environment_state", "observation.images.top"
NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"
UNNORMALIZER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
INPUTS: dict[str, Any] = {
    STATE: {"type": "STATE", "shape": [4]},
    ENV: {"type": "ENV", "shape": [2]},
    IMAGE: {"type": "VISUAL", "shape": [3, SIZE, SIZE]},
}
OUTPUTS: dict[str, Any] = {"action": {"type": "ACTION", "shape": [3]}}
SETTINGS: dict[str, Any] = {
    "type": "drift",
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 3,
    "network": "mlp",
    "network_settings": {"width": 16, "depth": 1},
    "head": "drift",
    "head_settings": {},
    "image_backbone": "small_cnn",
    "image_backbone_settings": {},
    "share_image_backbone": False,
    "resize_shape": None,
    "crop_shape": [20, 20],
    "noise_scale": None,
    "num_candidates": 1,
    "ema_decay": 0.999,
    "input_features": INPUTS,
    "output_features": OUTPUTS,
    "device": "cuda",  # settings that say nothing about decisions are not read
}
# The last dimensions of state and action are constant in the data; statistics of other columns are there, too.
STATISTICS: dict[str, dict[str, list[float]]] = {
    STATE: {
        "min": [-3.0, 100.0, 0.0, 0.7],
        "max": [9.0, 500.0, 0.02, 0.7],
        "mean": [2.0, 310.0, 0.011, 0.7],
        "std": [2.5, 80.0, 0.004, 0.0],
    },
    ENV: {"min": [-1.0, 5.0], "max": [1.0, 6.0], "mean": [0.1, 5.5], "std": [0.3, 0.2]},
    "action": {
        "min": [100.0, -0.4, 0.1],
        "max": [500.0, 0.3, 0.1],
        "mean": [320.0, -0.1, 0.1],
        "std": [90.0, 0.2, 0.0],
    },
    "timestamp": {"min": [0.0], "max": [9.0], "mean": [4.0], "std": [3.0]},
}
MIN_MAX = {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}


def inner_policy(settings: Mapping[str, Any], seed: int) -> Policy:
    """The policy inside LeRobot's, with the identity as normaliser."""
    torch.manual_seed(seed)
    inputs = settings["input_features"]
    shapes = {name: feature["shape"] for name, feature in inputs.items()}
    images = [name for name, feature in inputs.items() if feature["type"] == "VISUAL"]
    policy = build_policy(policy_config_of(settings, shapes, images, settings["output_features"]["action"]["shape"]))
    for parameter in policy.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    state = {name: torch.full_like(b, float("scale" in name)) for name, b in policy.normalizer.named_buffers()}
    policy.normalizer.load_state_dict(state)
    return policy.eval()


def processor_step(name: str, config: Mapping[str, Any], state_file: str | None = None) -> dict[str, Any]:
    step: dict[str, Any] = {"registry_name": name, "config": dict(config)}
    return step if state_file is None else step | {"state_file": state_file}


def save_processors(folder: Path, settings: Mapping[str, Any], modes: Mapping[str, str], statistics: Any) -> None:
    features = {**settings["input_features"], **settings["output_features"]}
    device = processor_step("device_processor", {"device": "cpu", "float_dtype": None})
    before = [
        processor_step("rename_observations_processor", {"rename_map": {}}),
        processor_step("to_batch_processor", {}),
        device,
        processor_step("normalizer_processor", {"eps": EPS, "features": features, "norm_map": modes}, NORMALIZER),
    ]
    after = [
        processor_step(
            "unnormalizer_processor",
            {"eps": EPS, "features": settings["output_features"], "norm_map": modes},
            UNNORMALIZER,
        ),
        device,
    ]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
    flat = {
        f"{feature}.{name}": torch.tensor(value)
        for feature, values in statistics.items()
        for name, value in values.items()
    }
    # Each processor reads its own file: what the other one would need is wrong there.
    for name, is_used in ((NORMALIZER, False), (UNNORMALIZER, True)):
        wrong = {key: value + (key.startswith("action.") is not is_used) for key, value in flat.items()}
        save_file(wrong, folder / name)


def save(
    folder: Path,
    *,
    modes: Mapping[str, str] = MIN_MAX,
    statistics: Any = STATISTICS,
    updates: int = 5,
    **changed: Any,
) -> tuple[Path, Policy]:
    """Write what LeRobot writes, and return the folder and the policy inside that decides."""
    settings = SETTINGS | changed
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    trained, average = inner_policy(settings, 0), inner_policy(settings, 1)
    state = {f"policy.{name}": value for name, value in trained.state_dict().items()}
    if settings["ema_decay"] > 0:
        state |= {f"average.module.{name}": value for name, value in average.state_dict().items()}
        state["average.n_averaged"] = torch.tensor(updates)
    save_file(state, folder / "model.safetensors")
    save_processors(folder, settings, modes, statistics)
    return folder, average if settings["ema_decay"] > 0 and updates else trained


def normalized(value: Tensor, mode: str, statistics: Mapping[str, list[float]]) -> Tensor:
    """What LeRobot's normaliser computes, in its order of operations."""
    known = {name: torch.tensor(numbers) for name, numbers in statistics.items()}
    if mode == "IDENTITY":
        return value
    if mode == "MEAN_STD":
        return (value - known["mean"]) / (known["std"] + EPS)
    span = known["max"] - known["min"]
    return 2 * (value - known["min"]) / torch.where(span == 0, torch.tensor(EPS), span) - 1


def unnormalized(value: Tensor, mode: str, statistics: Mapping[str, list[float]]) -> Tensor:
    known = {name: torch.tensor(numbers) for name, numbers in statistics.items()}
    if mode == "IDENTITY":
        return value
    if mode == "MEAN_STD":
        return value * known["std"] + known["mean"]
    span = known["max"] - known["min"]
    return (value + 1) / 2 * torch.where(span == 0, torch.tensor(EPS), span) + known["min"]


def raw_observations(batch: int = 6) -> dict[str, Tensor]:
    """Observations in the units of the data, somewhat beyond its range; what is constant there is constant here."""
    generator = torch.Generator().manual_seed(2)
    raw = {IMAGE: torch.rand(batch, 2, 3, SIZE, SIZE, generator=generator)}
    for name in (STATE, ENV):
        low, high = (torch.tensor(STATISTICS[name][which]) for which in ("min", "max"))
        raw[name] = low + (1.2 * torch.rand(batch, 2, len(low), generator=generator) - 0.1) * (high - low)
    return raw


def edit(path: Path, change: Any) -> None:
    """Apply `change` to the content of a JSON file, in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "modes",
    [
        MIN_MAX,
        {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ENV": "MIN_MAX", "ACTION": "MEAN_STD"},
        {"STATE": "MEAN_STD", "ACTION": "IDENTITY"},  # what is not named is left alone
    ],
)
def test_decisions_are_those_of_lerobots_three_parts(tmp_path: Path, modes: dict[str, str]) -> None:
    folder, inside = save(tmp_path / "saved", modes=modes)
    convert_checkpoint(folder).save_pretrained(tmp_path / "converted")
    policy = load_policy(tmp_path / "converted")
    raw, noise = raw_observations(), torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(3))
    given = {
        name.replace(".", "_"): normalized(value, modes.get(INPUTS[name]["type"], "IDENTITY"), STATISTICS.get(name, {}))
        for name, value in raw.items()
    }
    decided = inside.predict_action(given, noise=noise)["action"]
    expected = unnormalized(decided, modes["ACTION"], STATISTICS["action"])
    found = policy.predict_action({name.replace(".", "_"): value for name, value in raw.items()}, noise=noise)["action"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert decided.std() > 0.1, "the comparison would not notice observations"
    assert policy.config.noise_scale == 0.5 and policy.n_action_steps == 3


def test_what_was_constant_in_the_data(tmp_path: Path) -> None:
    policy = convert_checkpoint(save(tmp_path)[0])
    state = torch.tensor(STATISTICS[STATE]["min"])
    deviating = state + torch.tensor([0.0, 0.0, 0.0, 0.25])
    normalize, unnormalize = policy.normalizer.normalize, policy.normalizer.unnormalize
    assert torch.allclose(normalize("observation_state", state), -torch.ones(4), atol=1e-6)
    assert float(normalize("observation_state", deviating)[3]) == pytest.approx(-0.75, abs=1e-6)
    drawn = torch.tensor([[-1.0, 0.0, 1.0], [0.5, 0.1, -7.0]])
    assert unnormalize("action", drawn)[:, 2].tolist() == [torch.tensor(0.1).item()] * 2


@pytest.mark.parametrize("value", [0.0, 1e-20, 3e-9, 0.013, -5.5, 1e30])
@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD"])
def test_a_constant_action_is_the_constant_whatever_is_drawn(tmp_path: Path, mode: str, value: float) -> None:
    action = {"min": [0.0, 0.0, value], "max": [1.0, 1.0, value], "mean": [0.5, 0.5, value], "std": [0.2, 0.2, 0.0]}
    folder, _ = save(tmp_path, modes=MIN_MAX | {"ACTION": mode}, statistics=STATISTICS | {"action": action})
    policy = convert_checkpoint(folder)
    drawn = torch.linspace(-3, 3, 50).unsqueeze(1).expand(-1, 3)
    found = policy.normalizer.unnormalize("action", drawn)[:, 2]
    torch.testing.assert_close(found, torch.full((50,), value), rtol=1e-7, atol=5e-8)


def test_the_mean_of_a_constant_may_be_rounded(tmp_path: Path) -> None:
    """MEAN_STD divides what rounding left; the constant itself is given what it was in training."""
    state = {
        name: [*values[:3], value]
        for (name, values), value in zip(STATISTICS[STATE].items(), [7.0, 7.0, 7.0000005, 1e-7], strict=True)
    }
    modes = MIN_MAX | {"STATE": "MEAN_STD"}
    policy = convert_checkpoint(save(tmp_path, modes=modes, statistics=STATISTICS | {STATE: state})[0])
    seen = torch.tensor([2.0, 310.0, 0.011, 7.0])
    expected = normalized(seen, "MEAN_STD", state)
    assert expected[3] < -3
    torch.testing.assert_close(policy.normalizer.normalize("observation_state", seen), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("decay", "updates", "weights"), [(0, 0, "trained"), (0.9, 0, "trained"), (0.9, 1, "averaged")]
)
def test_trained_weights_decide_where_there_is_no_average(
    tmp_path: Path, decay: float, updates: int, weights: str
) -> None:
    folder, inside = save(tmp_path, ema_decay=decay, updates=updates)
    policy = convert_checkpoint(folder)
    assert policy.metadata["lerobot"]["weights"] == weights
    for mine, theirs in zip(policy.parameters(), inside.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_command_writes_a_checkpoint_that_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = save(tmp_path / "000010" / "pretrained_model", num_candidates=4)
    (folder / "train_config.json").write_text(json.dumps({"dataset": {"repo_id": "lerobot/pusht"}}))
    monkeypatch.setattr("sys.argv", ["lerobot", f"ckpt={folder.parent}", f"output={tmp_path / 'mine'}"])
    command.main()
    assert "observation_state: MIN_MAX" in capsys.readouterr().out
    policy = load_policy(tmp_path / "mine")
    said = policy.metadata["lerobot"]
    assert said["weights"] == "averaged" and said["averaged_updates"] == 5 and len(said["model_sha256"]) == 64
    assert said["features"]["observation_images_top"] == IMAGE
    assert policy.metadata["data"] == {"name": "lerobot/pusht"}
    with pytest.raises(SystemExit):  # the folder is there now
        command.main()
    pytest.importorskip("onnxruntime", reason="needs onnxruntime of the export extra")
    pytest.importorskip("onnxscript", reason="needs onnxscript of the export extra")
    from drift_policy.runtime.export import export_policy
    from drift_policy.runtime.onnx_policy import OnnxPolicy

    export_policy(policy, tmp_path / "policy.onnx")
    raw = {name.replace(".", "_"): value.numpy() for name, value in raw_observations().items()}
    noise = np.random.default_rng(0).standard_normal((6, 4, 8, 3), dtype=np.float32)
    expected = policy.predict_action(raw, noise=noise)["action"].numpy()
    found = OnnxPolicy(tmp_path / "policy.onnx").predict_action(raw, noise=noise)["action"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"type": "act"}, r"LeRobot's type 'act'\. Only what lerobot-train --policy.type=drift"),
        ({"type": None}, "no policy of LeRobot"),
        ({"output_features": {}}, "'action' among the latter"),
        ({"input_features": {STATE: {"type": "LANGUAGE", "shape": [4]}}}, "must have a type"),
        ({"input_features": {STATE: {"type": "STATE", "shape": "4"}}}, "must have a type"),
        ({"input_features": INPUTS | {STATE: {"type": "STATE", "shape": [4, 2]}}}, "numbers per step"),
        ({"output_features": {"action": {"type": "ACTION", "shape": [3, 2]}}}, "actions of the shape"),
        ({"input_features": INPUTS | {STATE: {"type": "STATE", "shape": [5]}}}, r"must be 5 finite numbers|has shape"),
        ({"network": "mpl"}, "choose one of"),
        ({"network_settings": 3}, "does not describe a policy"),
        ({"ema_decay": "much"}, "ema_decay must be"),
        ({"ema_decay": 0}, "unknown tensor average"),
    ],
)
def test_configurations_that_cannot_be_converted(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder, _ = save(tmp_path)
    edit(folder / "config.json", lambda content: content.update(changed))
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json", NORMALIZER]
)
def test_missing_and_damaged_files(tmp_path: Path, name: str) -> None:
    folder, _ = save(tmp_path)
    (folder / name).write_bytes(b"{" * 20_000)
    with pytest.raises(CheckpointError, match="not valid JSON|damaged"):
        convert_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="is missing|holds no"):
        convert_checkpoint(folder)


def test_a_setting_that_the_file_lacks(tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    edit(folder / "config.json", lambda content: content.pop("num_candidates"))
    with pytest.raises(CheckpointError, match="lacks 'num_candidates'"):
        convert_checkpoint(folder)


def test_json_that_is_too_large(tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    (folder / "policy_preprocessor.json").write_text(" " * (5 * 2**20) + "{}")
    with pytest.raises(CheckpointError, match="bytes"):
        convert_checkpoint(folder)


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (
            {"STATE": "QUANTILES"},
            "'observation.state' with QUANTILES; what can be converted there is IDENTITY, MIN_MAX",
        ),
        ({"ACTION": "QUANTILE10"}, "'action' with QUANTILE10"),
        ({"VISUAL": "MEAN_STD"}, "top' with MEAN_STD; what can be converted there is IDENTITY"),
    ],
)
def test_other_modes(tmp_path: Path, modes: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(save(tmp_path, modes=MIN_MAX | modes)[0])


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({}, "no statistic 'min' of 'observation.state'"),
        (STATISTICS | {"action": {"min": [0.0] * 3}}, "no statistic 'max' of 'action'"),
        (STATISTICS | {ENV: {"min": [0.0], "max": [1.0]}}, "must be 2 finite numbers"),
        (STATISTICS | {ENV: {"min": [0.0, float("nan")], "max": [1.0, 1.0]}}, "must be 2 finite numbers"),
        (STATISTICS | {ENV: {"min": [1.0, 0.0], "max": [1.0 + 1e-6, 1.0]}}, "dimension 0 varies so little"),
        (STATISTICS | {ENV: {"min": [1.0, 0.0], "max": [1.0 + 1e-5, 1.0]}}, "by 0.02, and 0.01 is allowed"),
        (STATISTICS | {"action": {"min": [0.0] * 3, "max": [1e-44, 1.0, 1.0]}}, "cannot be folded into float32"),
    ],
)
def test_statistics_that_cannot_be_folded(tmp_path: Path, statistics: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(save(tmp_path, statistics=statistics)[0])


def set_in_normalizer(**values: Any) -> Any:
    return lambda content: content["steps"][3]["config"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(steps={}), "no list 'steps'"),
        (lambda content: content["steps"].pop(3), "expected one normalizer_processor"),
        (lambda content: content["steps"].append({"registry_name": "delta_actions"}), "delta_actions"),
        (lambda content: content["steps"].append({"class": "os.system"}), "os.system"),
        (lambda content: content["steps"][2]["config"].update(float_dtype="float16"), "float16"),
        (lambda content: content["steps"][3].update(state_file="../other.safetensors"), "beside it"),
        (lambda content: content["steps"][3].update(state_file="model.pkl"), "beside it"),
        (lambda content: content["steps"][3].pop("config"), "lacks its features"),
        (set_in_normalizer(eps=0.5), "eps is 0.5"),
        (set_in_normalizer(eps=float("nan")), "eps is nan"),
        (set_in_normalizer(normalize_observation_keys=[STATE]), "normalize_observation_keys"),
        (set_in_normalizer(features={}), "does not know the feature 'observation.state'"),
    ],
)
def test_processors_that_do_something_else(tmp_path: Path, change: Any, message: str) -> None:
    folder, _ = save(tmp_path)
    edit(folder / "policy_preprocessor.json", change)
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(folder)


def test_a_normaliser_inside_that_is_not_the_identity(tmp_path: Path) -> None:
    folder, _ = save(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["average.module.normalizer.scale_action"] *= 2
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not the identity"):
        convert_checkpoint(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        convert_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="holds no config.json"):
        convert_checkpoint(tmp_path)


def test_policies_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = save(tmp_path)
    requested: list[Any] = []

    def download(repository: str, files: list[str], revision: str | None, *, asked: str) -> Path:
        requested.append((repository, revision))
        assert "policy_preprocessor*" in files
        return folder

    monkeypatch.setattr("drift_policy.integrations.lerobot.saved_files.download_snapshot", download)
    assert convert_checkpoint("hf://me/pusht@v1").horizon == 8
    assert requested == [("me/pusht", "v1")]
