"""What tests of training runs share: interrupting one at a given update, and comparing what two of them left."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from drift_policy.training import update as update_module

TIMED_COLUMNS = ("train/samples_per_s", "train/data_wait")  # of metrics.csv: they differ between equal runs


def stop_before_step(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], None]) -> None:
    """Call `how` once, in the middle of the update that follows `step` updates."""
    original = update_module.learning_rate
    armed = [True]

    def interrupting(current: int, config: Any) -> float:
        if current == step and armed:
            armed.clear()
            how()
        return original(current, config)

    monkeypatch.setattr(update_module, "learning_rate", interrupting)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def tensors_of(run: Path) -> dict[str, Tensor]:
    """The trained weights, AdamW's moments and the averaged weights that a run saved last."""
    last = run / "checkpoints" / "last"
    tensors = load_file(last / "training.safetensors")
    return tensors | {f"ema.{name}": tensor for name, tensor in load_file(last / "model.safetensors").items()}


def progress_of(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """How far a run came, without times, and its table of checkpoints."""
    state = json.loads((run / "checkpoints" / "last" / "training.json").read_text())
    del state["training_s"]
    return state, json.loads((run / "checkpoints" / "index.json").read_text())


def assert_same_state(run: Path, other: Path) -> None:
    """Require equal tensors to the bit, and equal progress."""
    tensors, other_tensors = tensors_of(run), tensors_of(other)
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []
    assert progress_of(run) == progress_of(other)


def assert_near_state(run: Path, other: Path, tolerance: float = 1e-6) -> None:
    """Require tensors that differ by rounding alone, and equal numbers of updates.

    The biases of attention's keys are left out: they change no result, so their gradient is rounding, of which AdamW
    makes steps as large as any.
    """
    tensors, other_tensors = tensors_of(run), tensors_of(other)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in other_tensors.items()
    }
    differences = {name: (tensors[name] - other_tensors[name]).abs() for name in tensors}
    for name, difference in differences.items():
        if name.endswith(".in_proj_bias"):
            queries, _, values = difference.chunk(3)
            differences[name] = torch.cat([queries, values])
    errors = {name: float(difference.max()) for name, difference in differences.items()}
    assert {name: error for name, error in errors.items() if error > tolerance} == {}
    for name in ("step", "ema_updates"):
        assert progress_of(run)[0][name] == progress_of(other)[0][name]
