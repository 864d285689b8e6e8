"""Manifests of training runs under results/, and the numbers that tables take from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drift_policy.evaluation.statistics import Interval, mean_interval, success_interval

Manifest = dict[str, Any]


def read_runs(folder: Path, prefix: str) -> list[Manifest]:
    """Return the manifests of the training runs called `<prefix>_seed<number>`, in the order of their seeds."""
    paths = [path for path in folder.glob(f"{prefix}_seed*.json") if path.stem.removeprefix(f"{prefix}_seed").isdigit()]
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda manifest: int(manifest["seed"]))


def mean_and_interval(interval: Interval, digits: int = 2) -> str:
    """Return "mean [low, high]"."""
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def score_interval(runs: Sequence[Manifest]) -> Interval:
    """Return the mean of the highest score over the episodes of all runs."""
    return mean_interval([episode["score"] for episode in episodes_of(runs)])


def success_rate(runs: Sequence[Manifest]) -> Interval:
    """Return the success rate over the episodes of all runs."""
    return success_interval([episode["success"] for episode in episodes_of(runs)])


def phase_interval(runs: Sequence[Manifest], phase: str) -> Interval:
    """Return the share of the episodes of all runs that completed a phase, such as "p2": two subtasks or more."""
    number = int(phase.removeprefix("p"))
    return success_interval([episode["completed"] >= number for episode in episodes_of(runs)])


def demonstrations(runs: Sequence[Manifest]) -> str:
    """Return how many demonstrations runs were trained on, and whether they are scripted."""
    kinds = {f"{run['data']['episodes']}{' scripted' if is_scripted(run) else ''}" for run in runs}
    return ", ".join(sorted(kinds))


def is_scripted(run: Manifest) -> bool:
    """Whether a run names scripted demonstrations: as its data set, its file, or on its command line."""
    dataset = run.get("config", {}).get("task", {}).get("dataset", {})
    said = (run["data"]["name"], dataset.get("relative_path", ""), run.get("command", ""))
    return any("scripted" in str(text) for text in said)


def episodes_of(runs: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Return the episodes of all runs."""
    return [episode for run in runs for episode in run["evaluation"]["episodes"]]
