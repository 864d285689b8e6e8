"""The task files of the command line (configs/task/<name>.yaml), composed without the rest of a configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from drift_policy.config import parse_config
from drift_policy.errors import CheckpointError
from drift_policy.task import EnvConfig, TaskConfig


def load_task(tasks: Path, name: object) -> TaskConfig:
    """Return a task from its file.

    Args:
        tasks: folder of the task files.
        name: what a checkpoint calls its task; anything but the name of a file is refused.

    Raises:
        CheckpointError: there is no such task.
    """
    known = sorted(file.stem for file in tasks.glob("*.yaml"))
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(
            f"The policy was trained on the task {name!r:.80}, which is not one of {', '.join(known)}."
        )
    with hydra_in(tasks):
        task = cast(dict[str, Any], OmegaConf.to_container(compose(name), resolve=True))
    return parse_config(TaskConfig, task, "task")


def task_env(tasks: Path, name: object) -> EnvConfig:
    """Return the environment of a task from its file; arguments as `load_task`.

    Raises:
        CheckpointError: there is no such task, or it has no environment.
    """
    env = load_task(tasks, name).env
    if env is None:
        raise CheckpointError(f"The task {name!r} has no environment to score a policy in.")
    return env


@contextmanager
def hydra_in(folder: Path) -> Iterator[None]:
    """Let Hydra compose the files of a folder, also inside a program that Hydra runs in another one."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer
