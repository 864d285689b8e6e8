"""The task files of the command line (configs/task/<name>.yaml), composed without the rest of a configuration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from drift_policy.config import parse_config
from drift_policy.errors import CheckpointError
from drift_policy.task import EnvConfig, TaskConfig

_SEARCH_PATH = "hydra.searchpath"


def load_task(tasks: Path, name: object, further: Sequence[Path] = ()) -> TaskConfig:
    """Return a task from its file.

    Args:
        tasks: folder of the task files.
        name: what a checkpoint calls its task; anything but the name of a file is refused.
        further: folders with more task files, for names that are not in `tasks`.

    Raises:
        CheckpointError: there is no such task.
    """
    folders = (tasks, *further)
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(
            f"The policy was trained on the task {name!r:.80}, which is not one of {', '.join(known)}."
        )
    home = next(folder for folder in folders if (folder / f"{name}.yaml").is_file())
    others = ",".join(f"'file://{folder.resolve()}'" for folder in folders if folder != home)
    with hydra_in(home):  # its file may be composed of files in the others
        composed = compose(name, [f"{_SEARCH_PATH}=[{others}]"])
        task = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
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


def further_task_folders() -> list[Path]:
    """Return the folders of task files that the running program was given with hydra.searchpath."""
    sources = HydraConfig.get().runtime.config_sources
    given = [Path(source.path) / "task" for source in sources if source.provider == f"{_SEARCH_PATH} in command-line"]
    return [folder for folder in given if folder.is_dir()]


def given_settings() -> list[str]:
    """Return the settings that the running program was given, so that a command with them does the same."""
    given = HydraConfig.get().overrides
    return [*given.task, *(setting for setting in given.hydra if setting.startswith(f"{_SEARCH_PATH}="))]
