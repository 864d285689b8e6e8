"""Train, evaluate and film a policy: python train_policy.py task=pusht [policy=drift] [setting=value ...]."""

import hydra
from omegaconf import DictConfig

from drift_policy.cli import command_line, resolved
from drift_policy.composition import composition_errors
from drift_policy.config import parse_config
from drift_policy.task_files import given_settings
from drift_policy.training.config import TrainConfig
from drift_policy.training.run import train


@hydra.main(config_path="configs", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and train."""
    with command_line() as console:
        config = parse_config(TrainConfig, resolved(cfg))
        train(config, given_settings(), console)


if __name__ == "__main__":
    with command_line(), composition_errors(TrainConfig, complete=["policy"]):
        main()
