"""Configuration of a training run. Every field has a YAML counterpart under configs/."""

from dataclasses import dataclass, field
from typing import Any

from drift_policy.errors import require
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.task import TaskConfig

LOGGERS = ("csv", "wandb", "tensorboard")


@dataclass
class TrainerConfig:
    """How a policy is optimised."""

    num_steps: int = 18000  # optimiser steps
    batch_size: int = 64  # observations in a step; the drift head draws several samples for each
    learning_rate: float = 1e-3  # peak of the schedule
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW's moment decays
    weight_decay: float = 1e-6  # AdamW's decoupled decay
    warmup_steps: int = 200  # linear warm-up, followed by a cosine to zero
    gradient_clip: float = 2.0  # largest global gradient norm
    ema_decay: float = 0.999  # decay of the averaged weights that are saved and evaluated
    precision: str = "float32"  # or "bfloat16": autocast of the network, the drift loss stays in float32
    compile: bool = False  # torch.compile the loss; costs half a minute at the start
    num_threads: int | None = None  # CPU threads; null leaves PyTorch's choice
    val_ratio: float = 0.02  # share of the episodes that is held out
    max_train_episodes: int | None = None  # use only so many training episodes; null is all
    validation_windows: int = 256  # held-out windows whose action error is reported
    log_every: int = 100  # steps between rows of metrics.csv
    validate_every: int = 500  # steps between measurements of the held-out action error
    rollout_every: int = 3000  # steps between rollouts; 0 is never
    checkpoint_every: int = 1000  # steps between saves of the `last` checkpoint
    keep_best: int = 3  # checkpoints kept by rollout score

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "validation_windows", "log_every", "validate_every", "checkpoint_every")
        for name in (*positive, "keep_best"):
            require(getattr(self, name) >= 1, f"trainer.{name} must be at least 1, but is {getattr(self, name)}.")
        for name in ("warmup_steps", "rollout_every", "weight_decay"):
            require(getattr(self, name) >= 0, f"trainer.{name} must not be negative, but is {getattr(self, name)}.")
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, f"trainer.{name} must be positive, but is {getattr(self, name)}.")
        require(0 <= self.ema_decay < 1, f"trainer.ema_decay must be in [0, 1), but is {self.ema_decay}.")
        require(len(self.betas) == 2, f"trainer.betas must be two numbers, but is {self.betas}.")
        require(0 <= self.val_ratio < 1, f"trainer.val_ratio must be in [0, 1), but is {self.val_ratio}.")
        require(
            self.precision in ("float32", "bfloat16"),
            f"trainer.precision must be float32 or bfloat16, but is {self.precision!r}.",
        )
        for name in ("num_threads", "max_train_episodes"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"trainer.{name} must be null or at least 1, but is {value}.")


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.csv, which is always written."""

    name: str = "csv"  # "csv", "wandb" or "tensorboard"
    project: str = "drift-policy"  # Weights & Biases project

    def __post_init__(self) -> None:
        require(self.name in LOGGERS, f"logger.name must be one of {', '.join(LOGGERS)}, but is {self.name!r}.")


@dataclass
class TrainConfig:
    """A whole training run."""

    task: TaskConfig  # demonstrations and environment
    policy: dict[str, Any]  # see drift_policy.policy_config; sizes are filled in from the task
    name: str  # the run's folder is <output>/<task>/<name>
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    rollout: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(n_episodes=100, start_seed=200000)
    )  # while training
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # at the end, the reported score
    seed: int = 0  # seed of weights, data order and noise
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one
    output: str = "runs"  # folder of all runs
    data_path: str | None = None  # the demonstrations themselves, instead of searching for them
    allow_download: bool = True  # whether the original data set may be fetched from its site
    resume: bool = False  # go on with the run of this name from its last checkpoint
    video_episodes: int = 8  # episodes filmed at the end; 0 is no film

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must not be negative, but is {self.seed}.")
        require(self.video_episodes >= 0, f"video_episodes must not be negative, but is {self.video_episodes}.")
        require(
            self.name not in ("", ".", "..") and "/" not in self.name,
            f"name must be a plain folder name, but is {self.name!r}.",
        )
