"""Draw docs/images/method.png: python docs/images/draw_method.py (from the repository root).

The arrows of the middle panel are the drifting field itself, from drift_policy.drift.drift_field.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray

from drift_policy.drift import drift_field

Array = NDArray[np.float64]
INK, GREY, BLUE, ORANGE, PALE = "#1f2937", "#9ca3af", "#2563eb", "#f97316", "#eff3fb"
TEMPERATURE = 2.0  # kernel width in the unit of the middle panel's plane
STEP = 1.0  # root mean square of the drawn arrows
SAMPLES = torch.tensor([[1.2, 3.6], [1.8, 6.6], [2.7, 5.1], [3.2, 2.6], [3.9, 7.4], [4.3, 4.1], [5.0, 5.8], [6.2, 3.0]])
STEPS = np.linspace(0, 1, 16)  # a chunk has 16 actions


def chunk(bend: float = 0.0) -> Array:
    """Return a smooth path of 16 two-dimensional actions, [16, 2], in -1 .. 1."""
    angle = 2.6 * STEPS - 0.5
    return np.stack([2 * STEPS - 1, -0.75 * np.sin(1.4 * angle) + bend * STEPS**1.5], axis=1)


def path(ax: Axes, points: Array, centre: tuple[float, float], size: float, color: str, alpha: float = 1.0) -> None:
    """Draw a chunk as dots on a line."""
    x, y = (points * size + np.asarray(centre)).T
    ax.plot(x, y, "-", color=color, lw=1.3, alpha=0.55 * alpha, zorder=3)
    ax.plot(x, y, "o", color=color, ms=4.2, mew=0, alpha=alpha, zorder=4)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, bend: float = 0.0) -> None:
    """Draw an arrow, bent for a loop."""
    patch = FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0, mutation_scale=13)
    patch.set(arrowstyle="-|>", linewidth=1.6, color=color, zorder=5)
    ax.add_patch(patch)


def network(ax: Axes, x: float, y: float) -> None:
    """Draw the box of a network, 2 wide and 1.7 high, around a point."""
    box = FancyBboxPatch((x - 1.0, y - 0.85), 2.0, 1.7, boxstyle="round,pad=0,rounding_size=0.25")
    box.set(facecolor="#dbe6fd", edgecolor=BLUE, linewidth=1.6, zorder=4)
    ax.add_patch(box)
    ax.text(x, y, "network", ha="center", va="center", color=INK, fontsize=12.5, zorder=6)


def panel(fig: Figure, column: int, when: str, title: str, foot: str) -> Axes:
    """Add one of three panels with a plane of 10 x 10 units."""
    ax = fig.add_axes((0.012 + 0.3295 * column, 0.03, 0.317, 0.94))
    ax.set(xlim=(0, 10), ylim=(0, 11.1), xticks=[], yticks=[], facecolor=PALE)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.text(0.45, 10.5, when, color=BLUE, fontsize=11.5, fontweight="bold", va="center")
    ax.text(0.45, 9.75, title, color=INK, fontsize=15, fontweight="bold", va="center")
    ax.text(5, 0.65, foot, color=INK, fontsize=11.5, ha="center", va="center", linespacing=1.4)
    return ax


def label(ax: Axes, x: float, y: float, text: str, color: str = INK, size: float = 11.5) -> None:
    """Write a centred label."""
    ax.text(x, y, text, ha="center", va="center", color=color, fontsize=size, zorder=6)


def draw_evaluation(ax: Axes, noise: Array, count: str, color: str) -> None:
    """Draw noise and observation going through the network to a chunk."""
    path(ax, noise, (1.6, 6.3), 1.0, GREY)
    label(ax, 1.6, 4.65, "noise")
    arrow(ax, (2.95, 6.3), (3.9, 6.3))
    network(ax, 5.0, 6.3)
    label(ax, 5.0, 8.6, count, color, 13)
    label(ax, 5.0, 4.65, "observation")
    arrow(ax, (5.0, 4.95), (5.0, 5.4))
    arrow(ax, (6.1, 6.3), (7.05, 6.3))
    path(ax, chunk(), (8.4, 6.3), 1.0, BLUE)
    label(ax, 8.4, 4.65, "action chunk")


def draw_diffusion(ax: Axes, noise: Array) -> None:
    """Noise goes 100 times through the network."""
    draw_evaluation(ax, noise, "100 network evaluations", BLUE)
    arrow(ax, (5.75, 7.2), (4.25, 7.2), BLUE, bend=1.2)
    for index, left in enumerate((1.0, 0.75, 0.5, 0.25, 0.0)):
        x = 1.2 + 1.9 * index
        mixed = np.sqrt(1 - left**2) * chunk() + left * noise
        path(ax, mixed, (x, 2.75), 0.62, GREY if left == 1 else BLUE, 1 - 0.45 * left)
        if index:
            arrow(ax, (x - 1.12, 1.55), (x - 0.78, 1.55), GREY)
        label(ax, x, 1.55, f"{100 - round(100 * left)}", GREY)


def draw_drift(ax: Axes) -> None:
    """Draw the samples of one observation and where the drifting field moves each."""
    demonstration = torch.tensor([[7.6, 6.3]])
    field = drift_field(SAMPLES, demonstration, SAMPLES, TEMPERATURE)
    moved = SAMPLES + STEP * field / field.square().mean().sqrt()
    for sample, goal in zip(SAMPLES.tolist(), moved.tolist(), strict=True):
        ax.plot([sample[0], 7.6], [sample[1], 6.3], ":", color=ORANGE, lw=1.1, alpha=0.55)
        arrow(ax, tuple(sample), tuple(goal), BLUE)
    ax.plot(*SAMPLES.T.numpy(), "o", color=BLUE, ms=10, mec="white", mew=1.2, zorder=6)
    ax.plot(*demonstration.T.numpy(), "*", color=ORANGE, ms=26, mec="white", mew=1.2, zorder=7)
    label(ax, 7.6, 7.25, "demonstrated chunk", ORANGE)
    label(ax, 3.0, 8.45, "samples of one observation", BLUE)


def draw_one_step(ax: Axes, noise: Array) -> None:
    """Noise and observation go through the network once; other noise gives another chunk."""
    draw_evaluation(ax, noise, "1 network evaluation", ORANGE)
    for index, bend in enumerate((0.9, 0.45, 0.0, -0.35, -0.7)):
        x = 1.2 + 1.9 * index
        path(ax, chunk(bend), (x, 2.75), 0.62, BLUE)


def main() -> None:
    """Draw and write the picture."""
    noise = np.random.default_rng(3).normal(size=(16, 2)) * 0.5
    fig = Figure(figsize=(16, 6), dpi=100, facecolor="white")
    draw_diffusion(
        panel(fig, 0, "DIFFUSION POLICY, TEST TIME", "Remove the noise bit by bit", "denoising steps done"), noise
    )
    foot = "dotted: straight to the demonstration\narrows: the drifting field, which also pushes samples apart"
    draw_drift(panel(fig, 1, "DRIFT POLICY, TRAINING", "The samples drift, the network follows", foot))
    foot = "other noise, another chunk"
    draw_one_step(panel(fig, 2, "DRIFT POLICY, TEST TIME", "Draw the chunk at once", foot), noise)
    fig.savefig(Path(__file__).with_name("method.png"))


if __name__ == "__main__":
    main()
