"""The real programs, run as a user runs them: train, sample, evaluate; and errors a user can read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_gen import load_mae
from image_gen.training.bare import main as bare_main
from tests.helpers.image_configs import TINY, TINY_MAE
from tests.helpers.programs import error_of, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("programs")
    result = run("image_gen/train.py", f"output={folder}", "name=run", *TINY)
    assert result.returncode == 0, result.stderr
    assert "none was given (feature.mae=...), so one is trained" in result.stdout
    return folder / "digits/run"


def test_training_leaves_pictures_and_a_manifest(trained: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["command"].startswith("python image_gen/train.py")
    assert (trained / "curves.png").stat().st_size > 1000
    # Three columns and one row of 8x8 digits, six times enlarged, with gaps of two pixels.
    assert Image.open(trained / "samples/step_00000006.png").size == (3 * 50 + 2, 52)


def test_sampling_draws_a_grid(trained: Path, tmp_path: Path) -> None:
    wanted = [f"ckpt={trained}", "classes=[3,7]", "per_class=3", f"output={tmp_path / 'grid.png'}", "cfg_scale=1.5"]
    result = run("image_gen/sample.py", *wanted)
    assert result.returncode == 0, result.stderr
    assert "6 images, 1 network evaluation(s) each" in result.stdout
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (3 * 50 + 2, 2 * 50 + 2)
    assert "from 0 to 9" in error_of(run("image_gen/sample.py", f"ckpt={trained}", "classes=[10]"))


def test_evaluation_names_its_network(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    small = ["num_samples=60", "num_manifold=50", "splits=2"]
    held_out = ["dataset=digits", "dataset.split=val", "network=classifier"]
    result = run("image_gen/evaluate.py", f"ckpt={trained}", *held_out, *small, f"output={output}")
    assert result.returncode == 0, result.stderr
    content = json.loads(output.read_text())
    scores = content["scores"]
    assert scores["Frechet distance in a small classifier of digits features"] > 0
    assert "FID" not in output.read_text()
    assert 0 <= scores["precision"] <= 1
    assert 0 <= scores["accuracy"] <= 1
    assert content["evaluations_per_image"] == 1
    assert content["reference"]["images"] == 297
    assert content["reference"]["name"] == "digits, val"
    missing = run("image_gen/evaluate.py", f"ckpt={trained}", *small, DRIFT_POLICY_CACHE=str(tmp_path))
    assert "pt_inception-2015-12-05" in error_of(missing)


def test_an_autoencoder_that_one_machine_configures_is_trained_on_another(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    steps = ["mae.trainer.num_steps=2", "mae.trainer.num_threads=1", "mae.batch_size=8", "device=cpu"]
    model = [f"+mae.model.{setting}" for setting in TINY_MAE]
    own = [f"output={tmp_path}", "name=run", f"write_config={config}"]
    result = run("image_gen/train_mae.py", *own, *steps, *model)
    assert result.returncode == 0, result.stderr
    assert "python -m image_gen.training.bare" in result.stdout
    bare_main([str(config)])
    assert load_mae(tmp_path / "digits/run").config.base_channels == 4
    assert json.loads((tmp_path / "digits/run/manifest.json").read_text())["training"]["steps"] == 2


def test_wrong_settings_end_with_a_sentence() -> None:
    result = run("image_gen/train.py", "drift.labels_per_step=100")
    assert "drift.bank.push_per_step=64 must be at least as many" in error_of(result)
