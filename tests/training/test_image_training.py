"""A training run on images, from demonstrations to scores and pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from drift_policy.encoders import IMAGE_BACKBONES
from drift_policy.errors import UserError
from drift_policy.training.run import train
from tests.helpers.image_env import SIZE
from tests.helpers.image_task import BATCH_NORM, image_training
from tests.helpers.training_runs import assert_same_state, press_ctrl_c, stop_before_step, tensors_of

QUIET = Console(quiet=True)
SHORT = {"num_steps": 6, "batch_size": 8, "log_every": 2, "validate_every": 3, "rollout_every": 3}


@pytest.mark.parametrize("backbone", ["small_cnn", "batch_norm"])
def test_image_run_is_complete_and_resumes_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    monkeypatch.setitem(IMAGE_BACKBONES, "batch_norm", BATCH_NORM)
    settings: dict[str, Any] = {
        "trainer": SHORT,
        "video_episodes": 1,
        "backbone": {"name": "batch_norm"} if backbone == "batch_norm" else None,
    }
    whole = train(image_training(tmp_path, name="whole", **settings), [], QUIET)
    stop_before_step(monkeypatch, 1, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 2"):
        train(image_training(tmp_path, name="parts", **settings), [], QUIET)
    torch.manual_seed(12345)  # the resumed process starts from another random state
    parts = train(image_training(tmp_path, name="parts", resume=True, **settings), [], QUIET)
    assert_same_state(whole, parts)
    if backbone == "batch_norm":
        counts = [tensor for name, tensor in tensors_of(whole).items() if name.endswith("num_batches_tracked")]
        assert [int(count) for count in counts] == [SHORT["num_steps"]] * 2  # of the trained and the averaged policy

    manifest = json.loads((whole / "manifest.json").read_text())
    assert len(manifest["evaluation"]["episodes"]) == 4
    assert manifest["policy"]["observations"]["image"]["shape"] == [3, SIZE, SIZE]
    assert manifest["policy"]["image_backbone"]["name"] == backbone
    assert (whole / "action_fan.png").stat().st_size > 1000
    with (whole / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert float(rows[6]["val/action_mse"]) > 0 and float(rows[6]["rollout/score"]) > 0
