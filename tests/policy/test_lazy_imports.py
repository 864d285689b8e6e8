"""A robot that only predicts, or a user of the loss alone, loads none of the training packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import drift_policy

ROOT = Path(drift_policy.__file__).parent.parent
TRAINING_PACKAGES = {"gymnasium", "zarr", "numba", "hydra", "diffusers", "rich", "matplotlib", "scipy", "envs"}


def loaded_packages(code: str) -> set[str]:
    """Run `code` in a fresh interpreter and return the top-level packages it has imported."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_drift_core_needs_only_torch() -> None:
    loaded = loaded_packages("import drift_policy.drift")
    assert "torch" in loaded
    assert not loaded & (TRAINING_PACKAGES | {"omegaconf", "safetensors", "einops"})


def test_a_policy_that_predicts_needs_no_training_packages() -> None:
    loaded = loaded_packages(
        "import torch, drift_policy\n"
        "from drift_policy.data.normalizer import Normalizer\n"
        "spec = {'action_dim': 1, 'observations': {'obs': {'shape': [1]}}}\n"
        "spec |= {'head': {'name': 'drift'}, 'network': {'name': 'mlp', 'width': 4, 'depth': 1}}\n"
        "from drift_policy.policy_config import policy_config_from_mapping\n"
        "policy = drift_policy.DriftPolicy(policy_config_from_mapping(spec))\n"
        "policy.set_normalizer(Normalizer.fit({'obs': torch.eye(1), 'action': torch.eye(1)}))\n"
        "assert policy.predict_action(torch.zeros(1, 2, 1))['action'].shape == (1, 8, 1)\n"
        "drift_policy.load_policy\n"
    )
    assert {"torch", "omegaconf", "safetensors"} <= loaded
    assert not loaded & TRAINING_PACKAGES


@pytest.mark.parametrize("name", drift_policy.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(drift_policy, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'DiffusionPolicy'"):
        _ = drift_policy.DiffusionPolicy
