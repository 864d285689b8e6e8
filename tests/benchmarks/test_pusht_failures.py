"""Failures of Push-T are sorted by what happened in the end, and the program runs on the pretrained checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pusht_failures import Track, kind_of_failure
from tests.helpers import programs


def track(agent_radius: float, block_travel: float) -> Track:
    """200 steps of an agent on a circle, and of a block that moves in a straight line over the last hundred."""
    angle = np.linspace(0, 8 * np.pi, 200)
    agent = 200 + agent_radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    moved = np.clip((np.arange(200) - 100) / 100, 0, None)[:, None] * block_travel
    return np.concatenate([np.full((200, 18), 100.0) + moved, agent], axis=1)


@pytest.mark.parametrize(
    ("agent_radius", "block_travel", "coverage", "kind"),
    [
        (10.0, 0.0, 0.9, "imprecise"),
        (10.0, 0.0, 0.3, "waiting"),
        (100.0, 0.0, 0.3, "circling"),
        (10.0, 50.0, 0.3, "unfinished"),
    ],
)
def test_kinds(agent_radius: float, block_travel: float, coverage: float, kind: str) -> None:
    assert kind_of_failure(track(agent_radius, block_travel), coverage) == kind


def test_program_counts_every_failure(tmp_path: Path) -> None:
    output = tmp_path / "failures.json"
    result = programs.run("-m", "benchmarks.pusht_failures", "ckpt=pretrained/pusht", "episodes=4", f"output={output}")
    assert result.returncode == 0, result.stderr
    content = json.loads(output.read_text())
    failed = round((1 - content["success"]["mean"]) * 4)
    assert len(content["failures"]) == sum(content["kinds"].values()) == failed
    assert output.with_suffix(".png").exists() == (failed > 0)


def test_wrong_settings_are_refused() -> None:
    result = programs.run("-m", "benchmarks.pusht_failures", "ckpt=pretrained/pusht", "episodes=0")
    assert "episodes must be at least 1" in programs.error_of(result)
