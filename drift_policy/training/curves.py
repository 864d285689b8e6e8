"""The learning curves of a run as a picture."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen needed; before pyplot is imported
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Panel title -> metrics in it. A panel without any of its metrics is left out.
_PANELS: dict[str, tuple[str, ...]] = {
    "rollouts (score, success)": ("rollout/score", "rollout/success"),
    "held-out error (normalised, squared)": ("val/action_mse", "val/typical_mse", "val/executed_mse"),
    "training error (squared)": ("train/action_mse", "train/noise_mse", "train/velocity_mse", "train/reconstruction"),
    "accuracy of the classifier": ("train/accuracy",),
    "raw force per temperature": ("train/force_*",),
    "scale: mean distance": ("train/scale",),
    "spread between samples": ("train/spread", "train/spread_real", "val/spread"),
    "gradient norm": ("train/gradient_norm",),
    "loss (affinity kernel: constant by construction)": ("train/loss",),
}
_LOGARITHMIC = ("error", "force", "gradient")
_FEW = 12  # points up to so many are marked: a single one would be no line at all


def plot_curves(metrics_csv: Path, picture: Path, title: str) -> None:
    """Draw the metrics of a run.

    Args:
        metrics_csv: as `CsvTracker` writes it.
        picture: the PNG to write.
        title: heading of the picture.
    """
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    panels = {name: _present(metrics, columns) for name, metrics in _PANELS.items()}
    panels = {name: metrics for name, metrics in panels.items() if metrics}
    n_rows = max(1, -(-len(panels) // 4))
    figure, axes = plt.subplots(n_rows, 4, figsize=(18, 3.6 * n_rows), squeeze=False, layout="constrained")
    for axis, (name, metrics) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(axis, name, metrics, rows)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    figure.savefig(picture, dpi=90)
    plt.close(figure)


def _present(metrics: tuple[str, ...], columns: list[str]) -> list[str]:
    found = []
    for metric in metrics:
        if metric.endswith("*"):
            found += [column for column in columns if column.startswith(metric[:-1])]
        elif metric in columns:
            found.append(metric)
    return found


def _draw_panel(axis: Axes, name: str, metrics: list[str], rows: list[dict[str, str]]) -> None:
    is_positive = False
    for metric in metrics:
        points = [(int(row["step"]), float(row[metric])) for row in rows if row.get(metric)]
        steps, values = zip(*points, strict=True)
        is_marked = metric.startswith("rollout") or len(steps) <= _FEW
        is_positive |= any(value > 0 for value in values)
        axis.plot(steps, values, label=metric, marker="o" if is_marked else None)
    if is_positive and any(word in name for word in _LOGARITHMIC):
        axis.set_yscale("log")
    axis.set_title(name)
    axis.set_xlabel("optimiser step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
