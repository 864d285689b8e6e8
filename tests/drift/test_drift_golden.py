"""The loss, its gradient and its statistics against arrays recorded from the released implementation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drift_policy.drift import drift_loss

GOLDEN_FILES = sorted((Path(__file__).parents[1] / "golden" / "drift_loss").glob("*.npz"))
TENSOR_NAMES = ("gen", "pos", "neg", "weight_gen", "weight_pos", "weight_neg")
RTOL, ATOL = 1e-4, 1e-7


def test_golden_files_exist() -> None:
    assert GOLDEN_FILES, "tests/golden/drift_loss holds no recordings"


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_equals_released_loss(path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        golden = dict(archive)
    inputs: dict[str, Any] = {name: torch.from_numpy(golden[name]) for name in TENSOR_NAMES if name in golden}
    gen = inputs["gen"].requires_grad_()
    # Through text, because float(float32(0.2)) is 0.20000000298.
    temperatures = [float(str(value)) for value in golden["temperatures"]]

    loss, info = drift_loss(**inputs, temperatures=temperatures)
    (grad,) = torch.autograd.grad(loss.sum(), gen)

    np.testing.assert_allclose(loss.detach().numpy(), golden["loss"], rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(grad.numpy(), golden["grad_gen"], rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(info["scale"].numpy(), golden["scale"], rtol=RTOL, atol=ATOL)
    assert list(info["force_sq"]) == temperatures
    for temperature in temperatures:
        np.testing.assert_allclose(
            info["force_sq"][temperature].numpy(), golden[f"force_sq_{temperature}"], rtol=RTOL, atol=0
        )
