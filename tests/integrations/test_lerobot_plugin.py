"""The LeRobot plug-in without LeRobot: stand-ins for what it imports, so that its settings reach the policy inside.

Its own tests, with LeRobot, are in integrations/lerobot_policy_drift.
"""

import enum
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from drift_policy.errors import ConfigurationError

PLUGIN = Path(__file__).resolve().parents[2] / "integrations/lerobot_policy_drift/lerobot_policy_drift"


@dataclass
class PreTrainedConfig:
    """Stands in for LeRobot's: the features of the data set."""

    input_features: dict[str, Any] = field(default_factory=dict)
    output_features: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def register_subclass(name: str) -> Any:
        return lambda kind: kind

    def __post_init__(self) -> None:
        """Nothing to do."""

    @property
    def action_feature(self) -> Any:
        return self.output_features.get("action")

    @property
    def image_features(self) -> dict[str, Any]:
        return {}


class PreTrainedPolicy(nn.Module):
    """Stands in for LeRobot's."""

    def __init__(self, config: Any) -> None:
        super().__init__()


STAND_INS: dict[str, dict[str, Any]] = {
    "configs.policies": {"PreTrainedConfig": PreTrainedConfig},
    "configs.types": {"NormalizationMode": enum.Enum("NormalizationMode", ["IDENTITY", "MIN_MAX"])},
    "optim.optimizers": {"AdamWConfig": SimpleNamespace},
    "optim.schedulers": {"DiffuserSchedulerConfig": SimpleNamespace},
    "policies.pretrained": {"PreTrainedPolicy": PreTrainedPolicy},
    "utils.constants": {"ACTION": "action"},
}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Give the plug-in's configuration and policy, imported against the stand-ins."""
    for name, members in STAND_INS.items():
        module = ModuleType(f"lerobot.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in ("lerobot", "lerobot_policy_drift", *(f"lerobot.{name.split('.')[0]}" for name in STAND_INS)):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    loaded = []
    for name in ("configuration_drift", "modeling_drift"):
        spec = importlib.util.spec_from_file_location(f"lerobot_policy_drift.{name}", PLUGIN / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        loaded.append(module)
    return SimpleNamespace(DriftConfig=loaded[0].DriftConfig, DriftPolicy=loaded[1].DriftPolicy)


def test_decisions_draw_the_configured_candidates(plugin: SimpleNamespace) -> None:
    config = plugin.DriftConfig(
        input_features={"observation.state": SimpleNamespace(shape=(3,))},
        output_features={"action": SimpleNamespace(shape=(2,))},
        network_settings={"width": 16, "depth": 1},
        num_candidates=6,
    )
    made = plugin.DriftPolicy(config).eval()
    drawn: list[int] = []
    made.policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[1]))
    state = {"observation.state": torch.zeros(4, 3)}
    assert made.select_action(state).shape == (4, 2)
    made.predict_action_chunk(state)
    made.predict_action_chunk(state, noise=torch.zeros(4, 16, 2))
    assert drawn == [6, 6, 1]


def test_a_loss_that_changes_with_the_step_is_refused(plugin: SimpleNamespace) -> None:
    settings = {"regression_weight": 1.0}
    features = {
        "input_features": {"observation.state": SimpleNamespace(shape=(3,))},
        "output_features": {"action": SimpleNamespace(shape=(2,))},
        "network_settings": {"width": 16, "depth": 1},
    }
    plugin.DriftPolicy(plugin.DriftConfig(**features, head_settings=settings))
    with pytest.raises(ConfigurationError, match=r"regression_steps=9 .*lerobot-train .*: leave it out"):
        plugin.DriftPolicy(plugin.DriftConfig(**features, head_settings=settings | {"regression_steps": 9}))


@pytest.mark.parametrize(("head", "given", "expected"), [("drift", None, 0.5), ("flow", None, 1.0), ("mip", 0.2, 0.2)])
def test_the_noise_at_test_time_is_what_is_usual_for_the_head(
    plugin: SimpleNamespace, head: str, given: float | None, expected: float
) -> None:
    config = plugin.DriftConfig(
        input_features={"observation.state": SimpleNamespace(shape=(3,))},
        output_features={"action": SimpleNamespace(shape=(2,))},
        network_settings={"width": 16, "depth": 1},
        head=head,
        noise_scale=given,
    )
    made = plugin.DriftPolicy(config).eval()
    assert made.deciding.config.noise_scale == expected
    assert made.select_action({"observation.state": torch.zeros(4, 3)}).shape == (4, 2)
