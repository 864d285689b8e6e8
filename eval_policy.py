"""Score a checkpoint: python eval_policy.py ckpt=runs/pusht/<name> [setting=value ...]."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from drift_policy.cli import command_line, resolved
from drift_policy.composition import composition_errors
from drift_policy.config import parse_config
from drift_policy.evaluation.evaluate import EvalConfig, evaluate
from drift_policy.task_files import further_task_folders, given_settings

TASKS = Path(__file__).parent / "configs" / "task"


@hydra.main(config_path="configs", config_name="eval", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and evaluate."""
    with command_line() as console:
        config = parse_config(EvalConfig, resolved(cfg))
        evaluate(config, TASKS, given_settings(), console, further_task_folders())


if __name__ == "__main__":
    with command_line(), composition_errors(EvalConfig):
        main()
