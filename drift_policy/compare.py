"""Show training runs beside each other, as their manifests describe them.

    python -m drift_policy.compare runs/pusht [runs/pusht_image/drift_seed0] [results/pusht/flow_seed0.json] ...

Each argument is the folder of a run, a folder that holds runs, or the manifest of a run. Runs whose names differ in
_seed<number> alone also have a row of their mean, over all of their episodes. Brackets hold 95 % intervals over
episodes, which leave out that training seeds differ. Compare rows of the same task, demonstrations and start states:
the manifests have them. A run that decided for several episodes at once shows no time of a decision.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drift_policy.cli import command_line
from drift_policy.errors import ConfigurationError, UserError
from drift_policy.evaluation.statistics import Interval, mean_interval, success_interval
from drift_policy.result_files import MANIFEST

_LONGEST_LINE = 1000
_SEED = re.compile(r"_seed\d+$")
_EVALUATION = re.compile(r"eval(_\d+)?")  # folders within a run


@dataclass(frozen=True)
class Run:
    """A run that ended."""

    name: str  # <task>/<name>
    manifest: dict[str, Any]

    @property
    def group(self) -> str:
        """The name that its other training seeds share."""
        return _SEED.sub("", self.name)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs that paths mean, each once, in their order; those of a folder by name.

    Args:
        paths: folders of runs, folders that hold them directly or a level below, or manifests.

    Raises:
        UserError: a path that means no run that ended, or a manifest that cannot be read.
    """
    files: dict[Path, None] = {}
    for path in paths:
        found = [path] if path.is_file() else _manifests_in(path)
        if not found:
            raise UserError(
                f"{path} holds no {MANIFEST}, which a training writes at its end: give a run folder "
                "(runs/<task>/<name>) that is finished, or a folder of such."
            )
        files |= dict.fromkeys(file.resolve() for file in found)
    return [_read(file) for file in files]


def comparison(runs: Sequence[Run]) -> Table:
    """Return a table of runs, and of the mean over the training seeds of those that have several."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    rows = []
    for group, members in groups.items():
        rows += [_row(run.name, [run]) for run in members]
        if len({run.name for run in members}) > 1:
            rows.append(_row(f"{group}, mean of {len(members)}", members))
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table()
    for name in names:
        table.add_column(Text(name), justify="left" if name in ("run", "policy") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))  # as text: brackets are no markup
    return table


def _manifests_in(folder: Path) -> list[Path]:
    own = folder / MANIFEST
    if own.is_file():
        return [own]
    found = sorted([*folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}")])
    return [file for file in found if not _EVALUATION.fullmatch(file.parent.name)]


def _read(file: Path) -> Run:
    try:
        manifest = json.loads(file.read_text())
        if not {"task", "training", "policy"} <= manifest.keys():
            raise ValueError("it is not that of a training")
        _check(manifest)
        name = file.parent.name if file.name == MANIFEST else file.stem
        return Run(f"{manifest['task']}/{name}", manifest)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be compared: {error}. A training writes it at its end: copy it again from where the run "
            "was made, or leave this run out."
        ) from error


def _check(manifest: dict[str, Any]) -> None:
    """Require what a row shows; ValueError that names what is missing or of another kind."""
    _require(manifest, "task", str)
    for name in ("training.steps", "training.seconds"):
        _require(manifest, name, int | float)
    for name in ("policy.head.name", "policy.network.name"):
        _require(manifest, name, str)
    for section, numbers in (("evaluation", ("score", "success")), ("open_loop", ("action_error",))):
        if not manifest.get(section):
            continue
        _require(manifest, f"{section}.network_evaluations", int | float)
        if manifest[section].get("latency_ms"):
            _require(manifest, f"{section}.latency_ms.p50", int | float)
        if "protocol" in manifest[section]:
            _require(manifest, f"{section}.protocol", dict)
        for number, episode in enumerate(_require(manifest, f"{section}.episodes", list)):
            for what in numbers:
                _require(episode, what, int | float, f"{section}.episodes.{number}.")


def _require(values: Any, name: str, kind: Any, where: str = "") -> Any:
    """Return what stands under a dotted name; ValueError if that is nothing, or not of its kind."""
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            raise ValueError(f"it has no {where}{name}")
        values = values[key]
    if not isinstance(values, kind):
        raise ValueError(f"its {where}{name} is {values!r:.80}")
    return values


def _row(name: str, runs: Sequence[Run]) -> dict[str, str]:
    """Return column -> text of one run, or of several training seeds of the same."""
    manifests = [run.manifest for run in runs]
    training = [manifest["training"] for manifest in manifests]
    policy = manifests[0]["policy"]
    rollouts = [manifest["evaluation"] for manifest in manifests if manifest.get("evaluation")]
    offline = [manifest["open_loop"] for manifest in manifests if manifest.get("open_loop")]
    measured = rollouts or offline
    latency = [float(one["latency_ms"]["p50"]) for one in measured if _decided_one_by_one(one)]
    return {
        "run": name,
        "policy": f"{policy['head']['name']}, {policy['network']['name']}",
        "steps": _range([float(one["steps"]) for one in training]),
        "score": _shown(rollouts, "score"),
        "success": _shown(rollouts, "success"),
        "open-loop error": _shown(offline, "action_error"),
        "episodes": str(sum(len(one["episodes"]) for one in measured)) if measured else "",
        "evaluations": _range([float(one["network_evaluations"]) for one in measured]),
        "decision p50 [ms]": f"{sum(latency) / len(latency):.2f}" if latency else "",
        "training [min]": f"{sum(float(one['seconds']) for one in training) / len(training) / 60:.1f}",
    }


def _decided_one_by_one(measured: dict[str, Any]) -> bool:
    """Whether the times of a measurement are those of single decisions."""
    return bool(measured.get("latency_ms")) and int(measured.get("protocol", {}).get("decision_batch_size", 1)) == 1


def _shown(measured: Sequence[dict[str, Any]], what: str) -> str:
    """Return the mean of a number of all episodes with its interval, empty without any."""
    if what == "success":  # of an environment that says nothing of it, none would be shown
        measured = [one for one in measured if one.get("success_reported", True)]
    values = [episode[what] for one in measured for episode in one["episodes"]]
    if not values:
        return ""
    interval: Interval = success_interval(values) if what == "success" else mean_interval(values)
    form = ".4g" if what == "action_error" else ".3f"  # errors are in units of the data
    if interval.n == 1:
        return f"{interval.mean:{form}}"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _range(values: Sequence[float]) -> str:
    """Return the number that all share, or the smallest and the largest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def main() -> None:
    """Read, compare, print."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    with command_line() as console:
        if not arguments:
            raise ConfigurationError("Name the runs to compare, such as runs/pusht; --help shows how.")
        _print(comparison(find_runs([Path(argument) for argument in arguments])), console)


def _print(table: Table, console: Console) -> None:
    """Print a table in its own width where the output is no terminal, so that a file or a pipe has all of it."""
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=_LONGEST_LINE)).maximum
        console.width = max(console.width, needed)
    console.print(table)


if __name__ == "__main__":
    main()
