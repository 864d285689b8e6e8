"""Train a generator: python image_gen/train.py [dataset=imagenet256 model=latent_B] [setting=value ...]."""

import sys
from pathlib import Path

# Started as a file, Python looks for modules beside it instead of in the folder above.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import hydra  # noqa: E402  # after the path is set
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from drift_policy.cli import command_line, resolved  # noqa: E402
from drift_policy.composition import composition_errors  # noqa: E402
from drift_policy.config import parse_config  # noqa: E402
from image_gen.training.config import GeneratorTrainConfig  # noqa: E402
from image_gen.training.program import run_program  # noqa: E402


@hydra.main(config_path="../configs/image_gen", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and train."""
    with command_line() as console:
        config = parse_config(GeneratorTrainConfig, resolved(cfg))
        run_program(config, "image_gen/train.py", HydraConfig.get().overrides.task, console)


if __name__ == "__main__":
    with command_line(), composition_errors(GeneratorTrainConfig):
        main()
