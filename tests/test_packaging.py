"""The wheel holds the library and nothing else, and a robot can use it without the checkout and without the extras."""

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from drift_policy import DriftPolicy, PolicyConfig
from drift_policy.data.normalizer import Normalizer
from drift_policy.encoders import ObservationSpec
from drift_policy.networks.mlp import MlpConfig

pytest.importorskip("build", reason="needs the package `build` of the dev extra")
pytest.importorskip("hatchling", reason="needs the package `hatchling` of the dev extra")

ROOT = Path(__file__).resolve().parents[1]
# Import names of the extras that nothing in the core dependencies imports either.
EXTRAS = (
    "hydra,zarr,numcodecs,numba,requests,platformdirs,rich,matplotlib,imageio,scipy,gymnasium,diffusers,"
    "accelerate,h5py,mujoco,gymnasium_robotics,robosuite,pybullet,gym_pusht,pymunk,pygame,cv2,huggingface_hub,wandb,"
    "tensorboard,pyarrow,msgpack,sklearn,PIL,transformers,torchmetrics,onnx,onnxruntime,websockets,envs,image_gen"
)
PREDICT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[3].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
import drift_policy

policy = drift_policy.load_policy(sys.argv[1])
obs = {"obs": torch.linspace(-1, 1, 10).reshape(1, 2, 5)}
out = policy.predict_action(obs, generator=torch.Generator().manual_seed(0))
torch.save(out["action_pred"], sys.argv[2])
print(drift_policy.__file__, drift_policy.__version__)
"""


def run(command: list[str], cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, f"{' '.join(command[:5])}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    run(command, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed") / "site"
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    run([sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(wheel)], cwd=target.parent)
    return target


def small_policy() -> DriftPolicy:
    torch.manual_seed(0)
    config = PolicyConfig(
        action_dim=2, observations={"obs": ObservationSpec(shape=[5])}, network=MlpConfig(width=32, depth=2)
    )
    policy = DriftPolicy(config, {"task": "none"})
    policy.set_normalizer(Normalizer.fit({"obs": torch.randn(50, 5), "action": 100 * torch.rand(50, 2)}))
    return policy.eval()


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "drift_policy").rglob("*.py")}
    assert package == sources | {"drift_policy/py.typed"}


def test_the_wheel_brings_its_licence_and_core_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licences = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
        licence = archive.read(licences[0]).decode()
    assert licence == (ROOT / "LICENSE").read_text()
    required = {line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")}
    core = {line.replace(" ", "") for line in required if "extra ==" not in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert core == set(project["dependencies"])


def test_an_installed_wheel_predicts_without_checkout_and_extras(installed: Path, tmp_path: Path) -> None:
    policy = small_policy()
    policy.save_pretrained(tmp_path / "checkpoint")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(installed)
    # -P keeps the working directory out of the import path, -s the user's packages; -I would drop PYTHONPATH as well.
    command = [sys.executable, "-P", "-s", "-c", PREDICT, "../checkpoint", "prediction.pt", EXTRAS]
    file, version = run(command, cwd=elsewhere, environment=environment).split()
    assert Path(file).is_relative_to(installed)
    assert f"drift_policy-{version}.dist-info" in {path.name for path in installed.iterdir()}

    obs = {"obs": torch.linspace(-1, 1, 10).reshape(1, 2, 5)}
    expected = policy.predict_action(obs, generator=torch.Generator().manual_seed(0))["action_pred"]
    predicted = torch.load(elsewhere / "prediction.pt", weights_only=True)
    torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-4)
