"""The code blocks of a page, and its commands run in this process with few steps on a small network."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from drift_policy.cli import resolved
from drift_policy.compare import comparison, find_runs
from drift_policy.config import parse_config
from drift_policy.evaluation.evaluate import EvalConfig, evaluate
from drift_policy.training.config import TrainConfig
from drift_policy.training.run import train
from tests.helpers.programs import ROOT

SHORT_TRAINING = [
    "device=cpu",
    "video_episodes=1",
    "trainer.num_steps=4",
    "trainer.warmup_steps=1",
    "trainer.batch_size=8",
    "trainer.validation_windows=4",
    "trainer.validate_every=2",
    "trainer.rollout_every=2",
    "policy.network.width=16",
    "policy.network.depth=1",
]
SHORT_ROLLOUTS = ["rollout.n_episodes=2", "rollout.max_steps=8"]
SHORT_EVALUATION = ["evaluation.n_episodes=2", "evaluation.max_steps=8"]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def title(self) -> str:
        """What its first line says if that is a comment, such as the name of a file; otherwise nothing."""
        first = self.text.splitlines()[0]
        return first.removeprefix("# ") if first.startswith("# ") else ""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page in docs/, or of README.md, in order."""
    text = (ROOT / page if page == "README.md" else ROOT / "docs" / page).read_text()
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def run_command(command: str, folder: Path) -> None:
    """Run `python train_policy.py ...` or `python eval_policy.py ...`; task files are also those of folder/configs."""
    python, script, *overrides = shlex.split(command)
    assert python == "python"
    console = Console(quiet=True)
    tasks = [f"hydra.searchpath=[file://{folder}/configs]"] if (folder / "configs").is_dir() else []
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        if script == "train_policy.py":
            short = [*SHORT_TRAINING, *SHORT_ROLLOUTS, *SHORT_EVALUATION, "trainer.num_threads=1"]
            given = dict(override.split("=", 1) for override in overrides)
            # What configs/train.yaml composes, which Hydra knows only in a program of its own.
            name = f"name={given.get('policy', 'drift')}_seed{given.get('seed', 0)}"
            settings = resolved(compose("train", [name, *overrides, *short, *tasks]))
            train(parse_config(TrainConfig, settings), overrides, console)
        else:
            assert script == "eval_policy.py"
            settings = resolved(compose("eval", [*overrides, *SHORT_EVALUATION, *tasks]))
            evaluate(parse_config(EvalConfig, settings), folder / "configs" / "task", overrides, console)


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a page in order, in `folder`: files are written, Python is executed, commands are run.

    Python without a file name shares its variables with what came before. A YAML block that is no file is left out, and
    so are commands that install.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    variables: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.title.endswith((".py", ".yaml")):
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), variables)
        elif block.language == "bash":
            _run_shell_block(block, folder)


def _run_shell_block(block: Block, folder: Path) -> None:
    for command in block.text.splitlines():
        module = re.fullmatch(r"python -m ([\w.]+)", command)
        if module:
            source = (folder / f"{module.group(1).replace('.', '/')}.py").read_text()
            exec(compile(source, module.group(1), "exec"), {"__name__": "__main__"})
        elif command.startswith("python -m drift_policy.compare "):
            comparison(find_runs([Path(argument) for argument in shlex.split(command)[3:]]))
        elif not command.startswith("pip install"):
            run_command(command, folder)
