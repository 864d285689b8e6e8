"""Where the metrics of a run go, apart from metrics.csv."""

from dataclasses import dataclass

from drift_policy.errors import require

LOGGERS = ("csv", "wandb", "tensorboard")


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.csv, which is always written."""

    name: str = "csv"  # "csv", "wandb" or "tensorboard"
    project: str = "drift-policy"  # Weights & Biases project

    def __post_init__(self) -> None:
        require(self.name in LOGGERS, f"logger.name must be one of {', '.join(LOGGERS)}, but is {self.name!r}.")
