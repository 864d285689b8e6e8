"""Score a generator: python image_gen/evaluate.py ckpt=<run or folder> [network=classifier] [setting=value]."""

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
from image_gen.evaluation import EvaluateConfig, evaluate, require_named  # noqa: E402


@hydra.main(config_path="../configs/image_gen", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and evaluate."""
    with command_line() as console:
        values = resolved(cfg)
        require_named(values.get("dataset"))
        config = parse_config(EvaluateConfig, values)
        evaluate(config, HydraConfig.get().overrides.task, console)


if __name__ == "__main__":
    with command_line(), composition_errors(EvaluateConfig):
        main()
