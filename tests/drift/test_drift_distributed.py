"""Two processes with half the batch each give what one process gives with all of it."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

WORLD_SIZE = 2
# Factors of the first and the second half. Samples beyond 1e6 are computed in another unit than the other process'.
HALVES = {"alike": (1.0, 1.0), "unlike": (0.1, 5.0), "other_unit": (1.0, 1e8)}

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.fixture(scope="module")
def workers() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))  # spawned processes inherit sys.path
        yield importlib.import_module("distributed_workers")


@pytest.fixture(scope="module")
def folder(workers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs and the results of both processes for every case; one spawn serves all tests."""
    folder = tmp_path_factory.mktemp("distributed")
    for seed, (case, factors) in enumerate(HALVES.items()):
        rng = np.random.default_rng(seed)
        factor = np.repeat(factors, 3).reshape(6, 1, 1)
        arrays = {name: factor * rng.normal(size=(6, count, 4)) for name, count in (("gen", 5), ("pos", 4), ("neg", 3))}
        arrays["weight_neg"] = rng.uniform(0.2, 3, (6, 3))
        single: dict[str, Any] = {name: value.astype(np.float32) for name, value in arrays.items()}
        np.savez(folder / f"{case}.npz", **single)
    spawn(workers.run_worker, args=(WORLD_SIZE, folder, list(HALVES)), nprocs=WORLD_SIZE)
    return folder


@pytest.mark.parametrize("scope", ["batch", "group"])
@pytest.mark.parametrize("case", HALVES)
def test_halves_equal_the_whole(workers: ModuleType, folder: Path, case: str, scope: str) -> None:
    whole = workers.evaluate(workers.load_arrays(folder / f"{case}.npz"), scope)
    parts = [dict(np.load(folder / f"{case}_{scope}_{rank}.npz", allow_pickle=False)) for rank in range(WORLD_SIZE)]
    for name in ("loss", "grad", "score"):
        expected = whole[name]
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    for name in ("scale", "force_sq"):
        if scope == "batch":
            for part in parts:
                np.testing.assert_allclose(part[name], whole[name], rtol=1e-5)
        else:
            np.testing.assert_allclose(np.mean([part[name] for part in parts], axis=0), whole[name], rtol=1e-5)
    # Of a mean over the batch DistributedDataParallel takes the mean of the gradients: of a sum it is the sum.
    np.testing.assert_allclose(sum(part["teaching"] for part in parts), whole["teaching"], rtol=1e-3)


def test_the_halves_alone_differ_from_the_whole(workers: ModuleType, folder: Path) -> None:
    """The agreement above is the work of the all-reduce: without it the halves have statistics of their own."""
    arrays = workers.load_arrays(folder / "unlike.npz")
    whole = workers.evaluate(arrays, "batch")
    half = workers.evaluate({name: torch.chunk(value, WORLD_SIZE)[0] for name, value in arrays.items()}, "batch")
    assert np.abs(half["grad"] - whole["grad"][:3]).max() > 0.1 * np.abs(whole["grad"]).max()
