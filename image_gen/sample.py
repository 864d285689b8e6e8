"""Draw images: python image_gen/sample.py ckpt=runs/image_gen/digits/<name> [classes=[3,7]] [setting=value ...]."""

import sys
from pathlib import Path

# Started as a file, Python looks for modules beside it instead of in the folder above.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import hydra  # noqa: E402  # after the path is set
from omegaconf import DictConfig  # noqa: E402

from drift_policy.cli import command_line, resolved  # noqa: E402
from drift_policy.composition import composition_errors  # noqa: E402
from drift_policy.config import parse_config  # noqa: E402
from image_gen.sample_images import SampleConfig, sample  # noqa: E402


@hydra.main(config_path="../configs/image_gen", config_name="sample", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and draw."""
    with command_line() as console:
        sample(parse_config(SampleConfig, resolved(cfg)), console)


if __name__ == "__main__":
    with command_line(), composition_errors(SampleConfig):
        main()
