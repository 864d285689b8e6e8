"""torch.compile of the update gives the training of eager mode."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from rich.console import Console

from drift_policy import load_policy
from drift_policy.training.run import train
from drift_policy.training.update import TrainingModule
from drift_policy.training.weight_update import WeightUpdate
from tests.helpers.point_task import point_training


def test_compilation_reaches_the_loss_and_the_step_of_the_optimiser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def remember(what: Any, **options: Any) -> Any:
        compiled.append(what)
        return what

    monkeypatch.setattr(torch, "compile", remember)
    for setting in (False, True):
        assert not compiled
        settings = {"compile": setting, "num_steps": 1, "rollout_every": 0}
        train(point_training(tmp_path / str(setting), trainer=settings), [], Console(quiet=True))
    step, loss = compiled
    assert isinstance(loss, TrainingModule) and isinstance(step.__self__, WeightUpdate)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_training_follows_the_eager_one(tmp_path: Path) -> None:
    weights = []
    # Compiled code draws other random numbers than eager code unless told not to; monkeypatch would delete this setting
    # in the end, and with it what later tests in the process compile.
    with torch._inductor.config.patch(fallback_random=True):
        for compiled in (False, True):
            settings = {
                "compile": compiled,
                "num_steps": 3,
                "rollout_every": 0,
                "validate_every": 3,
                "learning_rate": 1e-3,
            }
            run = train(point_training(tmp_path / str(compiled), trainer=settings), [], Console(quiet=True))
            weights.append(torch.cat([parameter.flatten() for parameter in load_policy(run).parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
