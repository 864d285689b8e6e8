"""Image configurations as the programs compose them, in this process."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from drift_policy.cli import resolved
from drift_policy.config import parse_config
from image_gen.training.config import GeneratorTrainConfig, MaeTrainConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "image_gen"
# A generator and an autoencoder of the smallest size, for a few steps.
TINY_MAE = ["base_channels=4", "layers=[1,1,1,1]"]
TINY_GENERATOR = ["hidden_size=16", "cond_dim=16", "depth=1", "num_heads=2", "n_cls_tokens=1", "noise_coords=2"]
TINY = [
    "device=cpu",
    "trainer.num_threads=1",
    "trainer.num_steps=6",
    "trainer.warmup_steps=2",
    "trainer.log_every=2",
    "trainer.checkpoint_every=100",
    "trainer.sample_every=0",
    "drift.labels_per_step=4",
    "drift.samples_per_label=4",
    "drift.positives_per_label=4",
    "drift.unconditional_per_label=2",
    "drift.bank.push_per_step=8",
    "drift.bank.fill_steps=8",
    "drift.bank.class_capacity=6",
    "drift.bank.unconditional_capacity=9",
    "feature.mae_training.trainer.num_steps=3",
    "feature.mae_training.classification_steps=2",
    "feature.mae_training.batch_size=8",
    *(f"++feature.mae_training.model.{setting}" for setting in TINY_MAE),
    *(f"++model.{setting}" for setting in TINY_GENERATOR),
    "picture.classes=3",
    "picture.per_class=1",
]


def composed(program: str, *overrides: str) -> dict[str, Any]:
    """Compose configs/image_gen/<program>.yaml."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(program, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(deepcopy(cfg))
    with open_dict(cfg):
        del cfg["hydra"]
    return resolved(cfg)


def generator_config(*overrides: str) -> GeneratorTrainConfig:
    """The configuration of image_gen/train.py."""
    return parse_config(GeneratorTrainConfig, composed("train", *overrides))


def mae_config(*overrides: str) -> MaeTrainConfig:
    """The configuration of image_gen/train_mae.py."""
    return parse_config(MaeTrainConfig, composed("train_mae", *overrides))
