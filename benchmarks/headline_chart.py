"""The README's chart: what the methods score on Push-T against the network evaluations of a decision."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.manifests import Manifest, read_runs, score_interval, success_rate
from drift_policy.evaluation.statistics import Interval

# policy -> name, colour, and where the name stands beside the point, as a factor of the evaluations
METHODS = {
    "drift": ("drift", "tab:red", 0.8),
    "mip": ("MIP", "tab:purple", 1.25),
    "flow": ("flow matching", "tab:green", 0.8),
    "regression": ("regression", "tab:gray", 0.8),
    "diffusion": ("diffusion (DDPM)", "tab:blue", 0.8),
}
PANELS: Sequence[tuple[str, Callable[[Sequence[Manifest]], Interval]]] = (
    ("mean of the highest coverage", score_interval),
    ("success (coverage above 95 %)", success_rate),
)


def draw_headline_chart(results: Path, path: Path) -> None:
    """Draw coverage and success of every method that has results/pusht/<policy>_seed<number>.json to a PNG file."""
    runs = {policy: found for policy in METHODS if (found := read_runs(results / "pusht", policy))}
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharex=True)
    for axes, (title, interval) in zip(panels, PANELS, strict=True):
        for policy, found in runs.items():
            _draw_method(axes, policy, found[0]["evaluation"]["network_evaluations"], interval(found))
        axes.set(title=title, xlabel="network evaluations of a decision", xscale="log", xlim=(0.2, 200))
        axes.set_xticks([1, 2, 10, 100], ["1", "2", "10", "100"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_method(axes: Axes, policy: str, evaluations: int, interval: Interval) -> None:
    name, colour, side = METHODS[policy]
    reach = [[interval.mean - interval.low], [interval.high - interval.mean]]
    axes.errorbar(evaluations, interval.mean, yerr=reach, fmt="o", color=colour, capsize=3, markersize=7)
    weight = "bold" if policy == "drift" else "normal"
    alignment = "left" if side > 1 else "right"
    axes.text(evaluations * side, interval.mean, name, color=colour, weight=weight, ha=alignment, va="center")
