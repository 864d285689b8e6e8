"""Controlled experiments that decide the defaults: one question, its variants, several seeds, a fixed budget.

    python -m benchmarks.study question=kernel
    python -m benchmarks.study question=kernel tasks=[multimodal_toy] seeds=[0,1,2,3,4] variant=energy,affinity
    python -m benchmarks.study question=kernel hydra/launcher=joblib hydra.launcher.n_jobs=2
    python -m benchmarks.study question=network tasks=[pusht] 'machine=["device=cuda","trainer.compile=true"]'

A question is a file configs/study/question/<name>.yaml that names its variants: lists of settings of the program that
runs the task; "pusht:setting=value" is for that task alone. Every run is a real command line and leaves
results/study/<question>/<task>/<variant>_seed<seed>.json; what was run with the same settings is skipped, and a run
that another question made (the default, which most questions ask about) is taken from there. Both only if the command
would make the same run today: defaults change, and checkpoints are replaced (`study_reuse`).
`python -m benchmarks.study_report` draws the tables and plots of docs/study.md.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from benchmarks.study_reuse import EVALUATION, MACHINE, TRAINING, sources, what_changed
from drift_policy.cli import command_line, resolved
from drift_policy.composition import composition_errors
from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError, UserError
from drift_policy.manifest import write_json


def choices(values: Iterable[Any]) -> str:
    """Return the comma-separated sweep over a list, or over the keys of a mapping."""
    return ",".join(str(value) for value in values)


OmegaConf.register_new_resolver("choices", choices, replace=True)


@dataclass
class Budget:
    """How one run of a task is made."""

    program: str  # as python is given it: "train_policy.py", "eval_policy.py" or "-m benchmarks.multimodal_toy"
    overrides: list[str]  # settings of every run: the fixed budget


@dataclass
class Question:
    """What is compared."""

    title: str  # heading of its picture
    tasks: list[str]  # keys of `budgets`
    variants: dict[str, list[str]]  # name of a row -> settings that make it
    common: list[str] = field(default_factory=list)  # settings of all its variants


@dataclass
class StudyConfig:
    """One run of a study: a variant of a question, on a task, with a seed."""

    question: Question
    task: str
    variant: str
    seed: int
    budgets: dict[str, Budget]
    results: str
    runs: str
    machine: list[str] = field(default_factory=list)  # settings of the machine that it is made on: no other experiment
    seeds: list[int] = field(default_factory=list)  # what the sweep goes over; not used by the single run
    tasks: list[str] = field(default_factory=list)  # the same

    def __post_init__(self) -> None:
        other = [setting for setting in self.machine if setting.partition("=")[0] not in MACHINE]
        if other:
            raise ConfigurationError(f"machine may set {', '.join(MACHINE)}, but holds {other[0]!r}.")
        for name, value, known in (
            ("task", self.task, self.budgets),
            ("variant", self.variant, self.question.variants),
        ):
            if value not in known:
                raise ConfigurationError(f"{name} {value!r} does not exist; expected one of {', '.join(known)}.")


def command(config: StudyConfig, question: str) -> list[str]:
    """Return the arguments of python that make this run; later settings overrule earlier ones."""
    budget = config.budgets[config.task]
    own = [*config.question.common, *config.question.variants[config.variant]]
    settings = [*budget.overrides, *for_task(config.task, own, config.budgets)]
    if budget.program == EVALUATION:  # of a policy that exists: its noise is what a seed changes
        settings += [f"evaluation.policy_seed={config.seed}", f"output={run_folder(config, question)}"]
    else:
        settings += [f"seed={config.seed}", f"name={config.variant}_seed{config.seed}"]
        settings += [f"output={config.runs}/{question}"]
    if budget.program == TRAINING:
        settings = [f"task={config.task}", *settings, *config.machine]
    return [*shlex.split(budget.program), *_last_of_each(settings)]


def run_folder(config: StudyConfig, question: str) -> Path:
    """Return the folder in which the program leaves its manifest."""
    return Path(config.runs) / question / config.task / f"{config.variant}_seed{config.seed}"


def run(config: StudyConfig, question: str) -> Path:
    """Make one run unless its result is there, and return the file of its result.

    Raises:
        UserError: the program failed; its output stands above.
    """
    file = Path(config.results) / question / config.task / f"{config.variant}_seed{config.seed}.json"
    arguments = command(config, question)
    found = _made_before(config, file, arguments)
    if found is not None:
        known, manifest = found
        print(f"have     {known}")
        if known != file:
            write_json(file, manifest | {"study": {"question": question, "variant": config.variant}})
        return file
    print(f"run      python {shlex.join(arguments)}", flush=True)
    finished = subprocess.run([sys.executable, *arguments], check=False)
    if finished.returncode:
        raise UserError(f"{file.stem} of {question} on {config.task} ended with exit code {finished.returncode}.")
    manifest = json.loads((run_folder(config, question) / "manifest.json").read_text())
    manifest |= {"seed": config.seed, "study": {"question": question, "variant": config.variant}}
    write_json(file, manifest)
    return file


def _made_before(config: StudyConfig, file: Path, arguments: Sequence[str]) -> tuple[Path, dict[str, Any]] | None:
    """Return the result of a run that counts as one of this command, of this question or another, and where it is."""
    program = config.budgets[config.task].program
    others = sorted(Path(config.results).glob(f"*/{config.task}/*_seed{config.seed}.json"))
    for known in dict.fromkeys([file, *others]):
        manifest = json.loads(known.read_text()) if known.exists() else {"command": ""}
        made = shlex.split(manifest["command"])
        has_command = _settings(made, program) == _settings(["python", *arguments], program)
        # The manifest of a training tells all its settings, also those that a command leaves out.
        tells_all = program == TRAINING and "config" in manifest and sources(made) == sources(arguments)
        if not has_command and not tells_all:
            continue
        changed = what_changed(manifest, program, arguments[len(shlex.split(program)) :])
        if not changed:
            return known, manifest
        if has_command:
            print(f"stale    {known}: its command makes another run today ({', '.join(changed)})")
    return None


def _settings(arguments: Sequence[str], program: str) -> list[str]:
    """Leave out of a command where it writes to, and where a training computes."""
    ignored = ("name", "output", *(MACHINE if program == TRAINING else ()))
    return [argument for argument in arguments if argument.partition("=")[0] not in ignored]


def for_task(task: str, settings: list[str], tasks: Iterable[str]) -> list[str]:
    """Leave out what is for other tasks, and the names of tasks in front of settings."""
    kept = []
    for setting in settings:
        prefix, separator, rest = setting.partition(":")
        if not separator or prefix not in tasks:
            kept.append(setting)
        elif prefix == task:
            kept.append(rest)
    return kept


def _last_of_each(settings: list[str]) -> list[str]:
    """Keep the last of the settings with one name: Hydra refuses a name that is given twice."""
    return list({setting.partition("=")[0]: setting for setting in settings}.values())


@hydra.main(config_path="../configs/study", config_name="study", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make the run that the sweep asks for."""
    with command_line():
        values = resolved(cfg)
        run(parse_config(StudyConfig, values), str(HydraConfig.get().runtime.choices["question"]))


if __name__ == "__main__":
    with command_line(), composition_errors(StudyConfig):
        main()
