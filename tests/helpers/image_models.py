"""Recorded arrays and small networks for the tests of image_gen."""

import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from image_gen.models import MAE, DiT, DiTConfig, MaeConfig

Network = TypeVar("Network", bound=nn.Module)
GOLDEN = Path(__file__).parents[1] / "golden"
# The recorded MAE's weights (17 MB) are not in the repository.
MAE_ARTIFACT = Path(os.environ.get("DRIFT_POLICY_GOLDEN", "")) / "mae/latent_tiny"
needs_mae_artifact = pytest.mark.skipif(
    "DRIFT_POLICY_GOLDEN" not in os.environ or not MAE_ARTIFACT.exists(),
    reason="DRIFT_POLICY_GOLDEN does not name a folder with mae/latent_tiny",
)


def recorded(path: str) -> dict[str, Any]:
    """Read an archive of recorded arrays."""
    with np.load(GOLDEN / path, allow_pickle=False) as archive:
        return dict(archive)


def channels_first(array: Any) -> Tensor:
    """Turn [..., H, W, C] into [..., C, H, W]."""
    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


def small_generator(**changes: Any) -> DiT:
    """Return a generator with random weights, none of them zero."""
    settings: dict[str, Any] = {
        "input_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "hidden_size": 32,
        "cond_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
        "noise_classes": 6,
        "noise_coords": 3,
        "n_cls_tokens": 2,
    }
    torch.manual_seed(0)
    return shaken(DiT(DiTConfig(**(settings | changes)))).eval()


def small_mae(**changes: Any) -> MAE:
    """Return a masked autoencoder with random weights."""
    settings: dict[str, Any] = {"in_channels": 3, "base_channels": 8, "layers": [1, 2, 1, 1], "num_classes": 5}
    torch.manual_seed(0)
    return shaken(MAE(MaeConfig(**(settings | changes)))).eval()


def shaken(network: Network) -> Network:
    """Add noise to every weight, so that no part of the network is switched off."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network
