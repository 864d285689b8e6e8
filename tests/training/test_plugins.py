"""Modules of the user that add parts to a training, an evaluation, an export or a server."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from drift_policy import export, serve
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.encoders import IMAGE_BACKBONES
from drift_policy.errors import ConfigurationError, DataError, UserError
from drift_policy.evaluation.evaluate import EvalConfig, evaluate
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.plugins import import_plugins
from drift_policy.runtime.warm_up import blank_observation
from drift_policy.training.run import train
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.image_task import image_task, image_training
from tests.helpers.point_task import point_demonstrations, point_training

QUIET = Console(quiet=True)
NAME = "mean_colour"
PLUGIN = """
from dataclasses import dataclass
from torch import nn
from drift_policy.encoders import register_image_backbone

@dataclass
class MeanConfig:
    size: int = 3

def build(config, channels, height, width):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.size))

register_image_backbone("mean_colour", MeanConfig, build)
"""


def forget_plugin() -> None:
    """As in a new process."""
    IMAGE_BACKBONES.pop(NAME, None)
    sys.modules.pop(NAME, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the module `mean_colour`."""
    (tmp_path / f"{NAME}.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget_plugin()


def test_a_backbone_of_the_user_is_trained_and_evaluated(folder: Path) -> None:
    short = {"num_steps": 2, "batch_size": 8, "rollout_every": 0}
    config = image_training(folder, backbone={"name": NAME, "size": 5}, trainer=short, plugins=[NAME])
    run = train(config, [], QUIET)
    assert NAME in IMAGE_BACKBONES

    forget_plugin()
    evaluation = EvaluationConfig(n_episodes=2, max_steps=8)
    with pytest.raises(UserError, match=rf"'{NAME}' is unknown.*plugins=\[my_package\.my_module\]"):
        evaluate(EvalConfig(str(run), evaluation, image_task()), folder, [], QUIET)  # a checkpoint imports nothing
    result = evaluate(EvalConfig(str(run), evaluation, image_task(), plugins=[NAME]), folder, [], QUIET)
    assert len(result.episodes) == 2


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """A policy with the user's backbone, as a new process finds it."""
    import_plugins([NAME])
    config = IMAGE_BACKBONES[NAME].config()
    policy = tiny_image_policy(image_backbone_name=NAME, image_backbone=config)
    path = policy.save_pretrained(folder / "checkpoint")
    forget_plugin()
    return path


def test_a_backbone_of_the_user_is_exported(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = checkpoint.parent / "policy.pt2"
    arguments = ["export", f"ckpt={checkpoint}", "format=pt2", f"output={output}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        export.main()
    assert not output.exists()
    monkeypatch.setattr(sys, "argv", [*arguments, f"plugins=[{NAME}]"])
    export.main()
    assert output.exists()


def test_a_backbone_of_the_user_is_served(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=rf"'{NAME}' is unknown"):
        serve.load_served_policy(serve.ServeConfig(str(checkpoint)))
    policy = serve.load_served_policy(serve.ServeConfig(str(checkpoint), plugins=[NAME]))
    assert policy.predict_action(blank_observation(policy.spec))["action"].isfinite().all()


CODEC_PLUGIN = """
import numpy as np
from numcodecs.abc import Codec
from numcodecs.registry import register_codec

class Inverted(Codec):
    codec_id = "inverted"

    def encode(self, buf):
        return (~np.ascontiguousarray(buf).view(np.uint8)).tobytes()

    def decode(self, buf, out=None):
        return (~np.frombuffer(buf, np.uint8)).tobytes()

register_codec(Inverted)
"""


def test_a_codec_of_the_user_is_registered_before_the_demonstrations_are_read(folder: Path) -> None:
    (folder / "my_codecs.py").write_text(CODEC_PLUGIN)
    write_zarr(folder / "point.zarr", point_demonstrations(), zarr_format=2)
    column = folder / "point.zarr/data/observation"
    metadata = json.loads((column / ".zarray").read_text())
    metadata["compressor"] = {"id": "inverted"}
    (column / ".zarray").write_text(json.dumps(metadata))
    stored = np.zeros(metadata["chunks"], np.float32)
    observations = point_demonstrations().data["observation"]
    stored[: len(observations)] = observations
    (column / "0.0").write_bytes((~stored.view(np.uint8)).tobytes())

    short = {"num_steps": 2, "rollout_every": 0}
    with pytest.raises(DataError, match=r"'inverted'.*plugins=\["):
        train(point_training(folder, trainer=short), [], QUIET)
    run = train(point_training(folder, trainer=short, plugins=["my_codecs"]), [], QUIET)
    sha256 = json.loads((run / "manifest.json").read_text())["data"]["sha256"]
    assert sha256 == point_demonstrations().content_hash()


def test_missing_modules_are_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'nowhere.to_be_found', which cannot be imported.*PYTHONPATH"):
        train(point_training(tmp_path, plugins=["nowhere.to_be_found"]), [], QUIET)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigurationError, match="'nowhere', which cannot be imported"):
        evaluate(EvalConfig("no_checkpoint", EvaluationConfig(), plugins=["nowhere"]), tmp_path, [], QUIET)


def test_a_module_that_lacks_a_package_is_named_with_it(folder: Path) -> None:
    (folder / "needy.py").write_text("import package_that_nobody_has\n")
    with pytest.raises(ConfigurationError, match="'needy', which cannot be imported.*package_that_nobody_has"):
        import_plugins(["needy"])


@pytest.mark.parametrize("name", ["", ".relative", "folder/module", "my-module", "a..b"])
def test_names_that_are_no_modules(name: str) -> None:
    with pytest.raises(ConfigurationError, match="which is no module"):
        import_plugins([name])
