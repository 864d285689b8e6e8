"""The picture of learning curves."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from drift_policy.training.curves import plot_curves


@pytest.mark.parametrize(("n_points", "is_marked"), [(1, True), (3, True), (200, False)])
def test_a_curve_of_few_points_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_points: int, is_marked: bool
) -> None:
    rows = [f"{step},{step + 1},{0.5 if step else ''},2" for step in range(n_points)]
    header = "step,train/scale,rollout/score,train/spread_real"
    (tmp_path / "metrics.csv").write_text("\n".join([header, *rows, f"{n_points},1,1,2"]))
    markers: dict[str, Any] = {}
    draw = Axes.plot

    def plot(self: Axes, *points: Any, label: str, marker: str | None) -> Any:
        markers[label] = marker
        return draw(self, *points, label=label, marker=marker)

    monkeypatch.setattr(Axes, "plot", plot)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "title")
    marker = "o" if is_marked else None
    assert markers == {"train/scale": marker, "rollout/score": "o", "train/spread_real": marker}
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_numbers_that_stay_zero_are_drawn_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/gradient_norm\n1,0.0\n2,0.0\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").stat().st_size > 1000
