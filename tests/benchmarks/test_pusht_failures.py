"""Failures of Push-T are sorted by what happened in the end, and the program runs on the pretrained checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pusht_failures import Track, intention, kind_of_failure
from drift_policy import load_policy
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


def test_intention_tells_executed_from_discarded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(programs.ROOT / "pretrained" / "pusht")
    given = track(agent_radius=0.0, block_travel=0.0)  # the agent stands at (200, 200)
    steps = torch.arange(policy.horizon, dtype=torch.float32)
    chunk = torch.stack([200 + steps, torch.full_like(steps, 200.0)], dim=1)
    monkeypatch.setattr(policy, "sample_actions", lambda obs, number: chunk.expand(1, number, -1, -1))
    executed = policy.n_obs_steps - 1 + policy.n_action_steps
    assert intention(policy, given) == {"executed_px": executed - 1.0, "discarded_px": policy.horizon - 1.0}


def test_program_counts_draws_and_films_failures(tmp_path: Path) -> None:
    output = tmp_path / "failures.json"
    result = programs.run(
        "-m", "benchmarks.pusht_failures", "ckpt=pretrained/pusht", "episodes=4", "film=true", f"output={output}"
    )
    assert result.returncode == 0, result.stderr
    content = json.loads(output.read_text())
    failed = round((1 - content["success"]["mean"]) * 4)
    assert len(content["failures"]) == sum(content["kinds"].values()) == failed
    assert output.with_suffix(".png").exists() == (failed > 0)
    assert {path.stem for path in tmp_path.glob("*.mp4")} == {f"failures_{kind}" for kind in content["kinds"]}


def test_wrong_settings_are_refused() -> None:
    result = programs.run("-m", "benchmarks.pusht_failures", "ckpt=pretrained/pusht", "episodes=0")
    assert "episodes must be at least 1" in programs.error_of(result)
