"""What each spawned process of `test_drift_distributed.py` runs; spawn must be able to import it by name."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from drift_policy.drift import drift_loss, temperature_score
from drift_policy.drift.loss import Scope

SCOPES: tuple[Scope, ...] = ("batch", "group")


def evaluate(arrays: dict[str, Tensor], scope: Scope) -> dict[str, NDArray[np.float32]]:
    """Loss, gradient of its sum and statistics, and the score of temperatures with its gradient, as arrays."""
    gen = arrays["gen"].clone().requires_grad_()
    arguments: dict[str, Any] = arrays | {"gen": gen, "scope": scope}
    loss, info = drift_loss(**arguments)
    (grad,) = torch.autograd.grad(loss.sum(), gen)
    force_sq = torch.stack(list(info["force_sq"].values()))
    results = {"loss": loss.detach(), "grad": grad, "scale": info["scale"], "force_sq": force_sq}
    temperatures = torch.tensor([0.1, 0.5], requires_grad=True)
    score = temperature_score(arrays["gen"], arrays["pos"][:, :1], temperatures, scope=scope)
    (teaching,) = torch.autograd.grad(score.sum(), temperatures)
    results |= {"score": score.detach(), "teaching": teaching}
    return {name: value.numpy() for name, value in results.items()}


def load_arrays(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one npz file."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def run_worker(rank: int, world_size: int, folder: Path, cases: list[str]) -> None:
    """Evaluate this process' part of every case in both scopes and leave the results in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    try:
        forbidden = AssertionError("scope='group' must not communicate")
        for case in cases:
            arrays = {
                name: value.chunk(world_size)[rank] for name, value in load_arrays(folder / f"{case}.npz").items()
            }
            for scope in SCOPES:
                with nullcontext() if scope == "batch" else patch.object(dist, "all_reduce", side_effect=forbidden):
                    results: dict[str, Any] = evaluate(arrays, scope)
                np.savez(folder / f"{case}_{scope}_{rank}.npz", **results)
    finally:
        dist.destroy_process_group()
