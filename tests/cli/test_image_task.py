"""Push-T from the camera on the command line: composed with every policy, and trained with a backbone of the user."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.policy_config import PolicyConfig, policy_config_from_mapping
from drift_policy.training.config import TrainConfig
from tests.helpers.programs import ROOT, SHORT, error_of, run

_FILES = (ROOT / "configs" / "policy").glob("*.yaml")
POLICIES = sorted(file.stem for file in _FILES if not file.stem.startswith("base"))
OBSERVATIONS = {
    "image": {"kind": "image", "shape": [3, 96, 96], "crop": [84, 84]},
    "agent_pos": {"kind": "state", "shape": [2]},
}
BACKBONE = """
from dataclasses import dataclass
from torch import nn
from drift_policy.encoders import register_image_backbone

@dataclass
class MeanConfig:
    size: int = 3

def build(config, channels, height, width):
    assert (channels, height, width) == (3, 84, 84)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.size))

register_image_backbone("mean_colour", MeanConfig, build)
"""


@pytest.fixture(scope="module", autouse=True)
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield


def composed(*overrides: str) -> tuple[TrainConfig, PolicyConfig]:
    """The configuration that train_policy.py would use, and the policy it describes."""
    config = parse_config(TrainConfig, resolved(compose("train", [*overrides, "name=test"])))
    return config, policy_config_from_mapping({**config.policy, "action_dim": 2, "observations": OBSERVATIONS})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_task_composes_with_every_policy(policy: str) -> None:
    config, policy_config = composed("task=pusht_image", f"policy={policy}")
    assert config.task.name == "pusht_image"
    assert list(config.task.observations) == list(OBSERVATIONS)
    assert config.task.observations["image"].crop == OBSERVATIONS["image"]["crop"]
    assert (config.trainer.batch_size, config.trainer.num_steps) == (64, 18000)
    assert policy_config.head_name == policy.split("_")[0]


def test_there_are_policies() -> None:
    assert {"drift", "drift_unet_image", "diffusion_transformer"} <= set(POLICIES)


def test_settings_of_a_policy_stand_beside_those_of_the_task() -> None:
    trainer = composed("task=pusht_image", "policy=diffusion_unet")[0].trainer
    assert (trainer.betas, trainer.ema_decay, trainer.gradient_clip) == ([0.95, 0.999], 0.9999, None)
    assert composed("task=pusht", "policy=diffusion_unet")[0].trainer.batch_size == 256
    assert composed("task=pusht_image", "trainer.batch_size=32")[0].trainer.batch_size == 32


def test_a_backbone_is_chosen_by_its_file() -> None:
    _, policy_config = composed("task=pusht_image", "policy=drift", "policy/image_backbone=resnet18")
    assert (policy_config.image_backbone_name, policy_config.image_backbone.num_keypoints) == ("resnet18", 32)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A short training on random demonstrations in the layout of Push-T, images and all."""
    folder = tmp_path_factory.mktemp("image_task")
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {
        "action": rng.uniform(0, 512, (60, 2)).astype(np.float32),
        "state": rng.uniform(0, 512, (60, 5)).astype(np.float32),
        "img": rng.integers(256, size=(60, 96, 96, 3)).astype(np.float32),  # as the original stores them
    }
    write_zarr(folder / "pusht.zarr", ReplayBuffer(data, np.arange(1, 4) * 20))
    short = ["trainer.num_steps=2", "trainer.batch_size=4", "trainer.rollout_every=0", "evaluation.n_episodes=1"]
    return ["task=pusht_image", *SHORT, *short, f"data_path={folder}/pusht.zarr", f"output={folder}/runs"]


def test_a_crop_that_shows_too_little_is_explained(arguments: list[str]) -> None:
    result = run("train_policy.py", *arguments, "task.observations.image.crop=[20,20]", "name=crop")
    text = error_of(result)
    assert "A crop of [20, 20] keeps only 4% of an image of [96, 96]" in text
    assert text.count("╭─ error") == 1
    assert result.returncode == 2


def test_a_backbone_of_the_user_trains_and_is_evaluated(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "my_backbones.py").write_text(BACKBONE)
    path = {"PYTHONPATH": str(tmp_path)}
    mine = ["~policy.image_backbone", "+policy.image_backbone={name:mean_colour,size:5}", f"output={tmp_path}"]
    trained = run("train_policy.py", *arguments, *mine, "plugins=[my_backbones]", "name=mine", **path)
    assert trained.returncode == 0, trained.stderr
    checkpoint = f"ckpt={tmp_path}/pusht_image/mine"
    evaluation = [checkpoint, "evaluation.n_episodes=1", "evaluation.max_steps=8"]
    evaluated = run("eval_policy.py", *evaluation, "plugins=[my_backbones]", **path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "highest coverage" in evaluated.stdout
    assert "'mean_colour' is unknown" in error_of(run("eval_policy.py", *evaluation, **path))


def test_a_missing_plugin_is_explained() -> None:
    text = error_of(run("eval_policy.py", "ckpt=nowhere", "plugins=[modules_of_nobody]"))
    assert "'modules_of_nobody', which cannot be imported" in text and "PYTHONPATH" in text
