"""A policy that LeRobot saved, converted: decisions from raw observations are those that LeRobot makes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from drift_policy.integrations.lerobot.conversion import convert_checkpoint
from programs import SIZE
from torch import Tensor

pytest.importorskip("lerobot", reason="needs LeRobot: run integrations/lerobot_policy_drift/test.sh")
pytest.importorskip("lerobot_policy_drift", reason="needs the plug-in: run integrations/lerobot_policy_drift/test.sh")

from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_drift import DriftConfig, DriftPolicy, make_drift_pre_post_processors

STATE, CAMERA = "observation.state", "observation.images.top"
FEATURES: dict[str, Any] = {
    STATE: PolicyFeature(FeatureType.STATE, (4,)),
    CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 20, 24)),
}
# The last dimensions are constant in the data.
STATISTICS = {
    STATE: {
        "min": torch.tensor([-3.0, 100.0, 0.0, 0.7]),
        "max": torch.tensor([9.0, 500.0, 0.02, 0.7]),
        "mean": torch.tensor([2.0, 310.0, 0.011, 0.7]),
        "std": torch.tensor([2.5, 80.0, 0.004, 0.0]),
    },
    "action": {
        "min": torch.tensor([100.0, 0.1]),
        "max": torch.tensor([500.0, 0.1]),
        "mean": torch.tensor([320.0, 0.1]),
        "std": torch.tensor([90.0, 0.0]),
    },
}
MODES = {"VISUAL": NormalizationMode.IDENTITY}
MODES_OF_NUMBERS = (NormalizationMode.IDENTITY, NormalizationMode.MIN_MAX, NormalizationMode.MEAN_STD)


def saved(folder: Path, mode: NormalizationMode, **settings: Any) -> Path:
    """Save a policy with large random weights and its processors, as `lerobot-train` does."""
    torch.manual_seed(0)
    config = DriftConfig(
        device="cpu",
        horizon=8,
        n_action_steps=3,
        network_settings={"width": 16, "depth": 1},
        image_backbone="small_cnn",
        normalization_mapping=MODES | dict.fromkeys(("STATE", "ACTION"), mode),
        input_features=FEATURES,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **settings,
    )
    policy = DriftPolicy(config)
    for _ in range(3):
        for parameter in policy.policy.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        policy.update()
    policy.save_pretrained(folder)
    for processor in make_drift_pre_post_processors(config, STATISTICS):
        processor.save_pretrained(folder)
    return folder


def decided_by_lerobot(folder: Path, steps: list[dict[str, Tensor]], noise: Tensor) -> Tensor:
    """Return the chunk [Ta, Da] that LeRobot executes after single observations {feature: [...]}, from its files."""
    policy = DriftPolicy.from_pretrained(folder, strict=True)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    for step in steps:
        chunk = policy.predict_action_chunk(before(dict(step)), noise=noise)
    return torch.stack([after(action) for action in chunk.unbind(dim=1)], dim=1)[0]


def decided_after_conversion(folder: Path, steps: list[dict[str, Tensor]], noise: Tensor) -> Tensor:
    policy = convert_checkpoint(folder)
    observed = {
        feature.replace(".", "_"): torch.stack([step[feature] for step in steps]).unsqueeze(0) for feature in steps[0]
    }
    return policy.predict_action(observed, noise=noise)["action"][0]


@pytest.mark.parametrize("mode", MODES_OF_NUMBERS)
@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.0, "noise_scale": 0.9}, {"head": "flow"}])
def test_decisions_after_conversion_are_lerobots(
    tmp_path: Path, mode: NormalizationMode, settings: dict[str, Any]
) -> None:
    folder = saved(tmp_path, mode, **settings)
    low, high = STATISTICS[STATE]["min"], STATISTICS[STATE]["max"]
    generator = torch.Generator().manual_seed(1)
    steps = [
        {
            STATE: low + (high - low) * torch.rand(4, generator=generator),
            CAMERA: torch.rand(3, 20, 24, generator=generator),
        }
        for _ in range(2)
    ]
    noise = torch.randn(1, 8, 2, generator=generator)
    expected = decided_by_lerobot(folder, steps, noise)
    assert expected.shape == (3, 2)
    torch.testing.assert_close(decided_after_conversion(folder, steps, noise), expected, rtol=1e-5, atol=1e-5)


def test_what_lerobot_train_wrote_is_converted(trained: Path) -> None:
    folder = trained / "checkpoints" / "last" / "pretrained_model"
    steps = [
        {
            STATE: torch.tensor([100.0 + 10 * step, 400.0]),
            "observation.image": torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(step)),
        }
        for step in range(2)
    ]
    noise = torch.randn(1, 16, 2, generator=torch.Generator().manual_seed(2))
    expected = decided_by_lerobot(folder, steps, noise)
    torch.testing.assert_close(decided_after_conversion(folder, steps, noise), expected, rtol=1e-5, atol=1e-5)
    metadata = convert_checkpoint(folder.parent).metadata
    assert metadata["lerobot"]["weights"] == "averaged" and metadata["lerobot"]["averaged_updates"] == 5
    assert metadata["data"] == {"name": "local/pusht"}
