"""Files of tensors can be read by whom the umask lets."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drift_policy.tensor_files import save_file


@pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o077, 0o600)])
def test_tensors_have_the_permissions_of_other_files(tmp_path: Path, umask: int, permissions: int) -> None:
    before = os.umask(umask)
    try:
        save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == permissions
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]
