"""Speed and latency of the GPU suite on a CPU with toy sizes, its settings, and what it gets along without."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks.gpu_suite import latency, policies, speed
from benchmarks.gpu_suite.breakdown import PARTS, MarkedUpdate, median_parts
from benchmarks.gpu_suite.policies import policy_config, trainer_config
from benchmarks.gpu_suite.prepare import CONFIGS
from benchmarks.gpu_suite.prepared import Prepared
from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.training.batches import ResidentBatches
from drift_policy.training.config import TrainConfig
from tests.helpers.prepared_data import prepared_demonstrations, write_demonstrations

CPU = torch.device("cpu")
ABSENT = (
    "omegaconf,hydra,zarr,numcodecs,numba,gymnasium,diffusers,rich,accelerate,requests,matplotlib,scipy,filelock,"
    "platformdirs,imageio,huggingface_hub,gym_pusht,pymunk,pygame,cv2,h5py"
)
BARE = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from benchmarks.gpu_suite import latency, speed, train

folder, output = sys.argv[2:]
common = ["--prepared", folder, "--output", output, "--device", "cpu"]
tiny = ["--batch-size", "4", "--down-dims", "16", "--step-embedding", "8", "--layers", "1", "--width", "8"]
for task, head, network in (("state", "drift", "transformer"), ("image", "diffusion", "unet")):
    train.main([*common, *tiny, "--task", task, "--head", head, "--network", network, "--steps", "2",
                "--image-backbone", "small_cnn"])
timing = ["--warm-up", "1", "--updates", "3", "--case-seconds", "0.1", "--batch-size", "4"]
speed.main([*common, *timing, "--tiny", "--networks", "image_unet", "--modes", "bfloat16"])
latency.main([*common, "--tiny", "--subjects", "state_transformer", "--repeats", "1", "--time-budget-s", "1"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared demonstrations."""
    return write_demonstrations(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_demonstrations("image")


def run_program(program: Any, folder: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Run `speed` or `latency` with toy sizes and return what it wrote."""
    common = ["--prepared", str(folder), "--output", str(output), "--device", "cpu", "--tiny"]
    program.main([*common, *arguments])
    return json.loads((output / f"{program.__name__.rpartition('.')[2]}.json").read_text())


def test_the_measuring_programs_run_on_a_bare_machine(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, ABSENT, str(folder), str(tmp_path)]
    result = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("state_drift_transformer.json", "state_drift_transformer.0.safetensors"),
        *("image_diffusion_unet.json", "image_diffusion_unet.0.safetensors", "speed.json", "latency.json"),
    }


# Speed


@pytest.fixture(scope="module")
def speed_result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = ["--warm-up", "2", "--updates", "4", "--case-seconds", "0.2", "--batch-size", "8"]
    return run_program(speed, folder, tmp_path_factory.mktemp("speed"), *arguments, "--modes", "float32")


def test_every_case_is_measured(speed_result: dict[str, Any]) -> None:
    assert {"command", "commit", "machine", "versions", "goal", "sizes"} <= speed_result.keys()
    networks = ("state_unet", "image_unet", "state_transformer")
    assert list(speed_result["cases"]) == [f"{n}/{h}/float32" for n in networks for h in ("drift", "diffusion")]
    assert speed_result["not_measured"] == []
    for case, row in speed_result["cases"].items():
        assert row["batch_size"] == 8 and row["parameters"] > 0 and row["start_s"] > 0
        assert row["samples_per_s"] == pytest.approx(8000 / row["step_ms"])
        assert list(row["breakdown_ms"]) == list(PARTS) and min(row["breakdown_ms"].values()) > 0
        assert ("drift_loss_share" in row) == ("/drift/" in case)
        if "/drift/" in case:
            assert row["drift_loss_share"] == pytest.approx(row["drift_loss_alone_ms"] / row["step_ms"])


def test_cases_that_do_not_fit_into_the_time_are_named(folder: Path, tmp_path: Path) -> None:
    result = run_program(speed, folder, tmp_path, "--time-budget-s", "1", "--networks", "state_unet")
    assert result["cases"] == {} and len(result["not_measured"]) == 2 * 3


@pytest.mark.parametrize("slow", ["data_gather", "encoder_forward", "generator_forward", "ema"])
def test_the_breakdown_says_which_part_is_slow(slow: str, prepared: Prepared) -> None:
    sizes = speed.TINY["image_unet"][1]
    policy = policies.make_policy(prepared, policy_config(prepared, "drift", sizes), 0, CPU)
    update = MarkedUpdate(policy, trainer_config("unet", True, batch_size=4), 0)
    windows = prepared.windows(CPU)
    place, method = {
        "data_gather": (windows, "batch"),
        "encoder_forward": (policy.encoder, "forward"),
        "generator_forward": (policy.head.network, "forward"),
        "ema": (update.update.ema, "next_decay"),
    }[slow]
    ordinary = getattr(place, method)

    def wait_first(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        return ordinary(*args, **kwargs)

    batches = ResidentBatches(windows, lambda step: update.update.parts(torch.arange(4).numpy()))
    update(0, batches.step(0))
    setattr(place, method, wait_first)
    parts = median_parts([update(1, batches.step(1))])
    assert parts[slow] >= 300 > max(ms for part, ms in parts.items() if part != slow)


# Latency


def test_latency_of_all_methods(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = latency.measure
    monkeypatch.setattr(latency, "measure", lambda decisions, device, *_: measure(decisions, device, 0.0, 1))
    result = run_program(latency, folder, tmp_path, "--precisions", "float32")
    assert result["not_measured"] == [] and result["graphs"].startswith("not measured")
    assert result["goals_p50_ms"]["state_unet"] == 1.0 and result["goals_p50_ms"]["image_unet"] == 3.0
    assert list(result["subjects"]) == list(latency.SUBJECTS)
    for subject in result["subjects"].values():
        drift, ddpm, ddim = (subject["methods"][f"{head}/eager/float32"] for head in ("drift", "ddpm_100", "ddim_16"))
        assert drift["times_drift"] == 1.0
        assert 0 < drift["p50_ms"] < ddpm["p50_ms"] <= ddpm["p99_ms"] and ddim["p50_ms"] > 0
        assert ddim["times_drift"] == pytest.approx(ddim["p50_ms"] / drift["p50_ms"])
        assert [row["decisions"] for row in (drift, ddpm, ddim)] == [1, 1, 1]
    cameras = [result["subjects"][name]["parameters"]["drift"] for name in ("image_unet", "image_unet_two_cameras")]
    assert cameras[0] < cameras[1]


def test_all_methods_are_timed_in_turns_as_often_as_the_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = SimpleNamespace(now=0.0), []
    clock.perf_counter = lambda: clock.now

    def decide(name: str, seconds: float) -> None:
        calls.append(name)
        clock.now += seconds

    monkeypatch.setattr(latency, "time", clock)
    decisions = {"slow": lambda: decide("slow", 1.0), "fast": lambda: decide("fast", 0.01)}
    times = latency.measure(decisions, CPU, 10.0, 5)
    assert clock.now <= 10.0 < clock.now + 2.1, "another round would not have fitted"
    assert times == {"slow": pytest.approx([1000.0] * 4), "fast": pytest.approx([10.0] * 20)}
    assert calls[:9] == ["slow", "slow", *["fast"] * 6, "slow"], "the first call of each round only warms up"


def test_subjects_without_time_are_named(folder: Path, tmp_path: Path) -> None:
    result = run_program(latency, folder, tmp_path, "--time-budget-s", "1e-9")
    assert result["subjects"] == {} and result["not_measured"] == list(latency.SUBJECTS)


# Settings


def shipped(policy: str, task: str) -> TrainConfig:
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        return parse_config(TrainConfig, resolved(compose("train", [f"task={task}", f"policy={policy}", "name=x"])))


@pytest.mark.parametrize(
    ("policy", "head", "sizes"),
    [
        ("drift_unet", "drift", policies.STATE_UNET),
        ("diffusion_unet", "ddpm_100", policies.STATE_UNET),
        ("drift_transformer", "drift", policies.STATE_TRANSFORMER),
        ("diffusion_transformer", "ddpm_100", policies.STATE_TRANSFORMER),
        ("drift_unet_image", "drift", policies.IMAGE_UNET),
        ("diffusion_unet_image", "ddpm_100", policies.IMAGE_UNET),
    ],
)
def test_the_original_sizes_and_optimiser_settings_are_the_shipped_ones(
    policy: str, head: str, sizes: policies.Sizes
) -> None:
    task = "image" if policy.endswith("_image") else "state"
    config = shipped(policy, "pusht_image" if task == "image" else "pusht")
    prepared = prepared_demonstrations(task)
    observations = {key: vars(spec) for key, spec in prepared.specs.items()}
    # The suite asks what the library's own drift head does, without what the task `pusht` sets for its decisions.
    own = {**config.policy, "num_candidates": 1, "mirrored": False, "horizon": 16}
    if head == "drift":
        own |= {"noise_scale": 0.5, "head": {**config.policy["head"], "kernel": "affinity"}}
    expected = policy_config_from_mapping({**own, "action_dim": 2, "observations": observations})
    assert policy_config(prepared, head, sizes) == expected
    ours = trainer_config(sizes.network, task == "image")
    for name in ("learning_rate", "betas", "weight_decay", "warmup_steps", "gradient_clip", "ema_decay"):
        assert getattr(ours, name) == getattr(config.trainer, name), name
    assert ours.batch_size == (64 if task == "image" else 256)


def test_the_small_cnn_is_the_shipped_one() -> None:
    config = shipped("drift", "pusht_image")
    settings = dict(config.policy["image_backbone"])
    assert settings.pop("name") == "small_cnn" and vars(policies.BACKBONES["small_cnn"]) == settings
