"""What each process of `test_image_processes.py` does: python -m tests.image_gen.image_processes FOLDER, started twice."""

import json
import sys
from pathlib import Path

from image_gen.training.run import train_generator, train_mae
from tests.helpers.image_configs import TINY_MAE, mae_config
from tests.helpers.image_runs import quiet_surroundings, tiny_generator

RUNS = {
    "ddp": ["method=drift"],
    "fsdp2": ["trainer.sharding=fsdp2"],
    "parts": ["trainer.gradient_accumulation_steps=2"],
    "flow": ["method=flow"],
}
MAE_RUNS = {"mae": "none", "mae_fsdp2": "fsdp2"}


def perform(folder: Path, sharding: bool) -> None:
    """Do all runs, one after the other: starting costs more than training here."""
    kept = {name: run for name, run in RUNS.items() if sharding or name != "fsdp2"}
    for name, overrides in kept.items():
        config = tiny_generator(folder, f"name={name}", *overrides)
        config.feature.mae = str(folder / "digits/mae")
        train_generator(config, quiet_surroundings())


def perform_mae(folder: Path, name: str, sharding: str) -> None:
    """Train an autoencoder."""
    settings = ["mae.trainer.num_steps=4", "mae.trainer.num_threads=1", "mae.batch_size=8", "device=cpu"]
    own = [f"output={folder}", f"name={name}", f"mae.trainer.sharding={sharding}", "mae.classification_steps=2"]
    train_mae(mae_config(*settings, *own, *(f"+mae.model.{text}" for text in TINY_MAE)), quiet_surroundings())


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    for mae_name, mae_sharding in MAE_RUNS.items():
        perform_mae(FOLDER, mae_name, mae_sharding)
    perform(FOLDER, sharding=True)
    print(json.dumps("done"))
