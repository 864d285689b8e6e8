"""Tables and plots of docs/study.md, generated from the manifests that benchmarks.study left under results/study/.

python -m benchmarks.study_report           writes the tables between the markers of docs/study.md, and the plots
python -m benchmarks.study_report --check   exits with 1 if docs/study.md differs from what the files say
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from omegaconf import OmegaConf

from benchmarks.manifests import Manifest, mean_and_interval, read_runs, score_interval, success_rate
from benchmarks.pages import NOT_MEASURED, ROOT, fill, is_check, markdown, update_page
from benchmarks.study import for_task
from drift_policy.evaluation.statistics import Interval, difference_interval

PAGE = ROOT / "docs" / "study.md"
IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "results" / "study"
QUESTIONS = ROOT / "configs" / "study" / "question"
TOY = "multimodal_toy"


@dataclass(frozen=True)
class Column:
    """One number of the runs of a variant, with its interval."""

    title: str
    interval: Callable[[Sequence[Manifest]], Interval]


def over_seeds(key: str, runs: Sequence[Manifest]) -> Interval:
    """Return mean, lowest and highest value over training seeds, for numbers that have no episodes."""
    values = [run["evaluation"][key] for run in runs]
    return Interval(sum(values) / len(values), min(values), max(values), len(values))


COLUMNS = {
    TOY: (
        Column("on a mode", partial(over_seeds, "on_mode")),
        Column("every mode kept", partial(over_seeds, "all_modes")),
        Column("spread", partial(over_seeds, "spread")),
    ),
}
POLICY_COLUMNS = (Column("score", score_interval), Column("success", success_rate))


def columns_of(task: str) -> Sequence[Column]:
    """Return what is shown of a task."""
    return COLUMNS.get(task, POLICY_COLUMNS)


def variants_of(question: str) -> list[str]:
    """Return the variants of a question in the order of its file."""
    return [str(name) for name in OmegaConf.load(QUESTIONS / f"{question}.yaml").variants]


def measured_tasks(question: str, results: Path) -> list[str]:
    """Return the tasks of a question that have results, in the order of its file."""
    tasks = [str(task) for task in OmegaConf.load(QUESTIONS / f"{question}.yaml").tasks]
    return [task for task in tasks if any((results / question / task).glob("*.json"))]


def reference_of(question: str, task: str) -> str:
    """Return what the other variants are compared with: the one without settings of its own, else the first."""
    asked = OmegaConf.load(QUESTIONS / f"{question}.yaml")
    own = {str(name): [str(setting) for setting in settings] for name, settings in asked.variants.items()}
    tasks = [str(name) for name in asked.tasks]
    return next((name for name, settings in own.items() if not for_task(task, settings, tasks)), next(iter(own)))


def success_difference(runs: Sequence[Manifest], reference: Sequence[Manifest]) -> str:
    """Return how much more often policies succeed than those of the reference, if both have several training seeds."""
    if min(len(runs), len(reference)) < 2:
        return ""
    if [run["command"] for run in runs] == [run["command"] for run in reference]:
        return "reference"
    difference = difference_interval(_successes(runs), _successes(reference))
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _successes(runs: Sequence[Manifest]) -> NDArray[np.float64]:
    """Return the successes [seeds, start states] of evaluations on the same start states."""
    by_start = [{episode["seed"]: episode["success"] for episode in run["evaluation"]["episodes"]} for run in runs]
    return np.array([[successes[seed] for seed in sorted(by_start[0])] for successes in by_start], dtype=float)


def question_table(question: str, results: Path) -> str:
    """Return the tables of a question, one a task; every seed's main number stands in the last column."""
    parts = []
    for task in measured_tasks(question, results):
        columns, rows = columns_of(task), []
        has_episodes = columns is POLICY_COLUMNS
        reference = read_runs(results / question / task, reference_of(question, task)) if has_episodes else []
        for variant in variants_of(question):
            runs = read_runs(results / question / task, variant)
            if runs:
                cells = [mean_and_interval(column.interval(runs), digits=3) for column in columns]
                by_seed = " / ".join(f"{columns[0].interval([run]).mean:.3f}" for run in runs)
                cells += [success_difference(runs, reference)] if has_episodes else []
                rows.append([variant.replace("_", " "), *cells, _minutes(runs), by_seed])
        compared = ["difference in success"] if has_episodes else []
        titles = [*(column.title for column in columns), *compared]
        header = [task, *titles, "training [min]", f"{columns[0].title} by seed"]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts) or NOT_MEASURED


def draw_question(question: str, results: Path, path: Path) -> None:
    """Draw every task's first two columns: bars of the interval, and a dot for each seed."""
    tasks = measured_tasks(question, results)
    panels = [(task, column) for task in tasks for column in columns_of(task)[:2]]
    variants = [name for name in variants_of(question) if any(read_runs(results / question / t, name) for t in tasks)]
    figure, grid = plt.subplots(
        1, len(panels), figsize=(3.2 * len(panels) + 1, 0.45 * len(variants) + 1.3), squeeze=False, layout="constrained"
    )
    for axes, (task, column) in zip(grid[0], panels, strict=True):
        _draw_panel(axes, [read_runs(results / question / task, variant) for variant in variants], column)
        axes.set_title(f"{task}: {column.title}", fontsize=10)
        axes.set_yticks(range(len(variants)), [variant.replace("_", " ") for variant in variants])
        axes.invert_yaxis()
    for axes in grid[0][1:]:
        axes.set_yticklabels([])
    figure.suptitle(str(OmegaConf.load(QUESTIONS / f"{question}.yaml").title))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_panel(axes: Axes, groups: Sequence[Sequence[Manifest]], column: Column) -> None:
    for row, runs in enumerate(groups):
        if not runs:
            continue
        interval = column.interval(runs)
        axes.plot([interval.low, interval.high], [row, row], color="tab:blue", linewidth=3, alpha=0.4)
        axes.plot([column.interval([run]).mean for run in runs], [row] * len(runs), "o", color="0.4", markersize=4)
        axes.plot(interval.mean, row, "D", color="tab:blue", markersize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(-0.5, len(groups) - 0.5)


def _minutes(runs: Sequence[Manifest]) -> str:
    if any("training" not in run for run in runs):  # evaluations of a policy that exists
        return ""
    return f"{sum(run['training']['seconds'] for run in runs) / len(runs) / 60:.1f}"


def question_names() -> list[str]:
    """Return all questions that can be asked."""
    return sorted(path.stem for path in QUESTIONS.glob("*.yaml"))


def filled_page(text: str, results: Path = RESULTS) -> str:
    """Return the page with the current tables."""
    tables = {f"study_{name}": partial(question_table, name) for name in question_names()}
    return fill(text, results, tables, complete=False)


def main() -> None:
    """Write or check the page."""
    check = is_check(__doc__)
    update_page(PAGE, filled_page(PAGE.read_text()), "benchmarks.study_report", check=check)
    for name in question_names():
        if not check and measured_tasks(name, RESULTS):
            draw_question(name, RESULTS, IMAGES / f"study_{name}.png")


if __name__ == "__main__":
    main()
