"""What each process of `test_image_processes.py` does; started twice with a folder as its argument."""

import sys
from pathlib import Path

from image_gen.training.run import train_generator, train_mae
from tests.helpers.image_configs import TINY_MAE, mae_config
from tests.helpers.image_runs import quiet_surroundings, tiny_generator

PARTS = ["trainer.gradient_accumulation_steps=2"]
FSDP2 = ["trainer.sharding=fsdp2", "trainer.activation_checkpointing=true", "feature.activation_checkpointing=true"]
# Name -> settings; all go on from a run of one process.
RUNS = {"ddp": [], "fsdp2": FSDP2, "parts": PARTS, "flow": ["method=flow"]}
MAE_RUNS = {"mae": "none", "mae_fsdp2": "fsdp2"}
FIRST_STEPS, ALL_STEPS = 12, 15


def perform(folder: Path, name: str, overrides: list[str], steps: int, resume: bool) -> None:
    """Train a generator, or go on with it."""
    own = [f"name={name}", f"trainer.num_steps={steps}", f"resume={str(resume).lower()}"]
    train_generator(tiny_generator(folder, *own, *overrides), quiet_surroundings())


def perform_mae(folder: Path, name: str, sharding: str) -> None:
    """Train an autoencoder."""
    settings = ["mae.trainer.num_steps=4", "mae.trainer.num_threads=1", "mae.batch_size=8", "device=cpu"]
    own = [f"output={folder}", f"name={name}", f"mae.trainer.sharding={sharding}", "mae.classification_steps=2"]
    own.append(f"mae.trainer.activation_checkpointing={str(sharding != 'none').lower()}")
    train_mae(mae_config(*settings, *own, *(f"+mae.model.{text}" for text in TINY_MAE)), quiet_surroundings())


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    for mae_name, mae_sharding in MAE_RUNS.items():
        perform_mae(FOLDER, mae_name, mae_sharding)
    for run_name, settings in RUNS.items():
        perform(FOLDER, run_name, settings, ALL_STEPS, resume=True)
