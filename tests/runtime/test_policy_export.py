"""Exported files compute what the policy computes, run without torch, and refuse what they cannot do."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy import Policy
from drift_policy import export as command
from drift_policy.encoders.backbones.resnet18 import Resnet18Config
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.policy_config import ACTION
from drift_policy.runtime import export as export_module
from drift_policy.runtime.export import ParityError, export_policy
from drift_policy.runtime.onnx_policy import OnnxPolicy
from drift_policy.runtime.spec import METADATA_KEY, describe_policy
from tests.helpers.image_policies import CROPPED, camera, tiny_image_policy
from tests.helpers.policies import tiny_obs, tiny_policy

onnx = pytest.importorskip("onnx", reason="needs the packages of the export extra")
pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import json, sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript", "omegaconf", "safetensors", "rich", "msgpack"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
from drift_policy.runtime.chunk_guard import ChunkGuard
from drift_policy.runtime.onnx_policy import OnnxPolicy
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.warm_up import warm_up

policy = OnnxPolicy(sys.argv[1], seed=0)
warm_up(policy)
observation = np.linspace(-1, 1, 5)
action = policy.select_action(observation)
policy.reset(seed=0)
with RecedingHorizon(policy, 10.0, guard=ChunkGuard()) as loop:
    step = loop.step({"obs": observation})
print(json.dumps([action.tolist(), step.action.tolist(), sorted(name for name in sys.modules if "torch" in name)]))
"""


def resnet_policy() -> Policy:
    torch.manual_seed(0)
    cameras = {"left": camera(40, 44, crop=[36, 40]), "right": camera(40, 44, crop=[36, 40])}
    backbone: dict[str, Any] = {"image_backbone_name": "resnet18", "image_backbone": Resnet18Config(feature_size=8)}
    policy = tiny_image_policy(cameras=cameras, share_image_backbone=True, **backbone)
    # tiny_policy disturbs all weights, which 20 layers of random convolutions would blow up to large numbers.
    for name, parameter in policy.encoder.named_parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
        elif "norm" in name:
            torch.nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    return policy


POLICIES = {
    "unet": lambda: tiny_policy("drift", "conditional_unet1d", horizon=7),
    "transformer": lambda: tiny_policy("drift", "transformer"),
    "mip, transformer": lambda: tiny_policy("mip", "transformer"),
    "mip, small_cnn": lambda: tiny_image_policy("mip"),
    "small_cnn, crop and resize": lambda: tiny_image_policy(
        cameras={"cropped": CROPPED, "resized": camera(20, 26, resize=[10, 13], crop=[9, 12])}
    ),
    "two resnet18": resnet_policy,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def exported(folder: Path) -> tuple[Policy, Path]:
    policy = tiny_policy("drift", noise_scale=0.5)
    export_policy(policy, folder / "drift.onnx")
    return policy, folder / "drift.onnx"


def arrays(policy: Policy, batch: int, seed: int) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in tiny_obs(policy, batch, seed).items()}


@pytest.mark.parametrize("name", POLICIES)
def test_onnx_predicts_what_pytorch_predicts(name: str, tmp_path: Path) -> None:
    policy = POLICIES[name]()
    assert export_policy(policy, tmp_path / "policy.onnx") <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    check_predictions(policy, tmp_path / "policy.onnx")


def test_the_drift_mlp_predicts_what_pytorch_predicts(exported: tuple[Policy, Path]) -> None:
    check_predictions(*exported)


def check_predictions(policy: Policy, path: Path) -> None:
    run = OnnxPolicy(path)
    for batch in (1, 2, 5):
        obs = arrays(policy, batch, seed=batch)
        noise = np.random.default_rng(batch).standard_normal((batch, policy.horizon, 2))
        expected = policy.predict_action(obs, noise=noise)
        found = run.predict_action(obs, noise=noise)
        for key in ("action", "action_pred"):
            np.testing.assert_allclose(found[key], expected[key].numpy(), rtol=1e-5, atol=2e-3)
    floats = {key: value / 255.0 if value.dtype == np.uint8 else value for key, value in obs.items()}
    of_floats = run.predict_action(floats, noise=noise)["action_pred"]
    np.testing.assert_allclose(of_floats, found["action_pred"], rtol=1e-6, atol=1e-3)


def test_pt2_predicts_what_pytorch_predicts_and_brings_its_metadata(tmp_path: Path) -> None:
    policy = tiny_image_policy()
    path = tmp_path / "policy.pt2"
    assert export_policy(policy, path, "pt2") <= 1e-5
    extra = {f"{METADATA_KEY}.json": ""}
    graph = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra[f"{METADATA_KEY}.json"]) == json.loads(describe_policy(policy).to_json())
    obs = tiny_obs(policy, 4)
    noise = torch.randn(4, policy.horizon, 2)
    found = graph({"image": obs["image"] / 255.0, "agent_pos": obs["agent_pos"]}, noise)
    torch.testing.assert_close(found, policy.predict_action(obs, noise=noise)["action_pred"], rtol=1e-5, atol=2e-3)


def test_the_metadata_are_readable_by_everybody(exported: tuple[Policy, Path]) -> None:
    policy, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    (text,) = (entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    assert json.loads(text) == {
        "format_version": 1,
        "observations": {"obs": {"kind": "state", "shape": [5]}},
        "action_dim": 2,
        "horizon": 6,
        "n_obs_steps": 2,
        "n_action_steps": 3,
        "noise_scale": 0.5,
        "num_evaluations": 1,
        "num_candidates": 1,
        "mirrored": False,
        "metadata": {"task": "tiny"},
    }
    assert OnnxPolicy(path).spec == describe_policy(policy)


def test_it_runs_without_torch(exported: tuple[Policy, Path]) -> None:
    program = [sys.executable, "-c", WITHOUT_TORCH, str(exported[1])]
    result = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    selected, stepped, modules = json.loads(result.stdout)
    assert selected == stepped
    assert modules == []


class TestNoise:
    def test_a_generator_makes_the_answer_repeatable(self, exported: tuple[Policy, Path]) -> None:
        policy, path = exported
        run, obs = OnnxPolicy(path), arrays(policy, 2, seed=0)
        first, second = (run.predict_action(obs, generator=np.random.default_rng(3))["action"] for _ in range(2))
        np.testing.assert_array_equal(first, second)
        other = run.predict_action(obs, generator=np.random.default_rng(4))["action"]
        assert not np.array_equal(first, other)

    def test_the_seed_makes_an_episode_repeatable(self, exported: tuple[Policy, Path]) -> None:
        policy, path = exported
        run, observations = OnnxPolicy(path, seed=5), np.random.default_rng(0).normal(size=(7, 5))
        first = [run.select_action(observation) for observation in observations]
        unseeded = [run.select_action(observation) for observation in observations]
        run.reset(seed=5)
        again = [run.select_action(observation) for observation in observations]
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, unseeded)

    def test_the_scale_is_that_of_the_policy_or_of_the_call(self, exported: tuple[Policy, Path]) -> None:
        policy, path = exported
        run, obs = OnnxPolicy(path), arrays(policy, 1, seed=0)
        noise = np.random.default_rng(0).standard_normal((1, 6, 2)).astype(np.float32)
        default = run.predict_action(obs, noise=noise)["action_pred"]
        explicit = run.predict_action(obs, noise=0.5 * noise, noise_scale=1.0)["action_pred"]
        np.testing.assert_allclose(default, explicit, rtol=1e-6)
        typical = [run.predict_action(obs, noise_scale=0.0)["action_pred"] for _ in range(2)]
        np.testing.assert_array_equal(*typical)

    @pytest.mark.parametrize(
        ("noise", "message"),
        [(np.zeros((1, 6, 3)), r"shape \[1, 6, 2\], but has \[1, 6, 3\]"), (np.full((1, 6, 2), np.nan), "holds NaN")],
    )
    def test_noise_that_does_not_fit_is_refused(
        self, exported: tuple[Policy, Path], noise: np.ndarray, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            OnnxPolicy(exported[1]).predict_action(np.zeros((1, 2, 5)), noise=noise)


def test_select_action_is_that_of_the_policy(exported: tuple[Policy, Path]) -> None:
    policy, path = exported
    regression = tiny_policy("regression")
    export_policy(regression, path.with_name("regression.onnx"))
    run = OnnxPolicy(path.with_name("regression.onnx"))
    for _ in range(2):
        run.reset()
        regression.reset()
        for observation in np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32):
            expected = regression.select_action(observation).numpy()
            np.testing.assert_allclose(run.select_action(observation), expected, rtol=1e-5, atol=1e-3)


def test_the_answer_tells_its_time(exported: tuple[Policy, Path]) -> None:
    timing = OnnxPolicy(exported[1]).predict_action(np.zeros((1, 2, 5)))["timing"]
    assert timing.keys() == {"prepare", "graph", "total"}
    assert 0 < timing["prepare"] + timing["graph"] <= timing["total"]


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_iterative_heads_are_refused(head: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"head '{head}' draws .* steps.*drift, mip and regression can"):
        export_policy(tiny_policy(head), tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("drift")

    class Wrong(export_module.DecisionGraph):
        def forward(self, observations: Any, noise: torch.Tensor) -> torch.Tensor:
            right = super().forward(observations, noise)
            return right + 1e-4 / self.policy.normalizer.get_buffer(f"scale_{ACTION}")

    monkeypatch.setattr(export_module, "DecisionGraph", Wrong)
    with pytest.raises(ParityError, match=r"differs from the policy by 1.0e-04"):
        export_policy(policy, tmp_path / "policy.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"), [({"file_format": "tensorrt"}, "choose one of: onnx, pt2"), ({}, "training mode")]
)
def test_what_cannot_be_exported_is_named(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        export_policy(tiny_policy("drift").train(), tmp_path / "policy.onnx", **settings)


class TestFiles:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing.onnx does not exist: write it with python -m drift_policy"):
            OnnxPolicy(tmp_path / "nothing.onnx")

    def test_a_damaged_file_is_named(self, exported: tuple[Policy, Path], tmp_path: Path) -> None:
        path = tmp_path / "cut.onnx"
        path.write_bytes(exported[1].read_bytes()[:500])
        with pytest.raises(CheckpointError, match=r"cut.onnx cannot be run"):
            OnnxPolicy(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (None, "has no metadata of drift-policy"),
            ({"format_version": 99}, "format version 99, but this release"),
            ({"horizon": 7}, r"noise is tensor\(float\) .*, but its metadata say .*7, 2"),
            ({"horizon": 2}, "A chunk of horizon 2 cannot hold 3 actions"),
            ({"observations": {"obs": {"kind": "sound", "shape": [5]}}}, "'sound'"),
            ({"observations": {"state": {"kind": "state", "shape": [5]}}}, "but its metadata say"),
            ({"observations": 3}, "does not describe a policy"),
            ({"action_dim": "two"}, "action_dim of a policy must be a positive number, not 'two'"),
        ],
    )
    def test_metadata_that_do_not_fit_are_refused(
        self, exported: tuple[Policy, Path], tmp_path: Path, change: dict[str, Any] | None, message: str
    ) -> None:
        model = onnx.load(exported[1])
        (entry,) = model.metadata_props
        if change is None:
            entry.key = "other"
        else:
            entry.value = json.dumps(json.loads(entry.value) | change)
        onnx.save(model, tmp_path / "changed.onnx")
        with pytest.raises(CheckpointError, match=message):
            OnnxPolicy(tmp_path / "changed.onnx")

    def test_a_provider_that_is_not_there_is_named(
        self, exported: tuple[Policy, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"names NoneExecutionProvider, but this onnxruntime has .*CPU"):
            OnnxPolicy(exported[1], providers=["NoneExecutionProvider"])
        # A build for GPUs on a machine whose driver or libraries are missing: the session falls back to the CPU.
        onnxruntime = pytest.importorskip("onnxruntime")
        start, names = onnxruntime.InferenceSession, ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers: start(path, options))
        with pytest.raises(ConfigurationError, match="cannot start CUDA.*, and would compute on the CPU"):
            OnnxPolicy(exported[1], providers=names)

    def test_the_number_of_threads_is_checked(self, exported: tuple[Policy, Path]) -> None:
        with pytest.raises(ValueError, match="num_threads"):
            OnnxPolicy(exported[1], num_threads=0)


def test_the_command_writes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_policy("drift").save_pretrained(tmp_path / "checkpoint")
    output = tmp_path / "new" / "policy.pt2"
    monkeypatch.setattr(sys, "argv", ["export", f"ckpt={tmp_path / 'checkpoint'}", "format=pt2", f"output={output}"])
    command.main()
    assert "differs from PyTorch by" in " ".join(capsys.readouterr().out.split())
    assert zipfile.is_zipfile(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt=nowhere"], "nowhere does not exist"),
        (["fromat=onnx"], "did you mean format"),
        (["policy.onnx"], "give setting=value"),
    ],
)
def test_the_command_names_what_does_not_fit(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_command_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--help"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert all(f"{name}:" in text for name in command.ExportConfig.__dataclass_fields__)
