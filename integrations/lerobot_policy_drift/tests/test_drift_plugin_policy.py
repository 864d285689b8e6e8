"""The policy class by itself: history, queue, averaged weights, windows of one step, and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from drift_policy.errors import ConfigurationError

pytest.importorskip("lerobot", reason="needs LeRobot: run integrations/lerobot_policy_drift/test.sh")
pytest.importorskip("lerobot_policy_drift", reason="needs the plug-in: run integrations/lerobot_policy_drift/test.sh")

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config

from lerobot_policy_drift import DriftConfig, DriftPolicy

STATE = PolicyFeature(FeatureType.STATE, (3,))
CAMERA = PolicyFeature(FeatureType.VISUAL, (3, 20, 24))
ACTION = PolicyFeature(FeatureType.ACTION, (2,))


def config(**settings: Any) -> DriftConfig:
    values: dict[str, Any] = {
        "device": "cpu",
        "horizon": 8,
        "n_action_steps": 3,
        "network_settings": {"width": 16, "depth": 1},
        "input_features": {"observation.state": STATE},
        "output_features": {"action": ACTION},
    }
    return DriftConfig(**(values | settings))


def policy(**settings: Any) -> DriftPolicy:
    torch.manual_seed(0)
    made = DriftPolicy(config(**settings))
    for parameter in made.policy.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def batch(steps: int = 2, size: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(size, steps, 3, generator=generator)
    return {"observation.state": state, "action": torch.rand(size, 8, 2, generator=generator), "task": ["x"] * size}


def test_lerobot_finds_the_parts_by_name() -> None:
    assert get_policy_class("drift") is DriftPolicy
    assert isinstance(make_policy_config("drift", device="cpu"), DriftConfig)


def test_the_chunk_begins_at_the_newest_observation() -> None:
    made = policy()
    noise = torch.randn(4, 8, 2)
    given = batch()
    whole = made.policy.predict_action({"observation_state": given["observation.state"]}, noise=noise)
    assert torch.equal(made.predict_action_chunk(given, noise=noise), whole["action_pred"][:, 1:4])


def test_decisions_draw_the_configured_candidates() -> None:
    made = policy(num_candidates=6)
    drawn: list[int] = []
    made.policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[1]))
    torch.manual_seed(1)
    chosen = made.predict_action_chunk(batch())
    torch.manual_seed(1)
    assert torch.equal(made.predict_action_chunk(batch(), noise=torch.randn(4, 6, 8, 2)), chosen)
    made.predict_action_chunk(batch(), noise=torch.randn(4, 8, 2))
    assert drawn == [6, 6, 1]


def test_actions_come_from_the_queue_and_history() -> None:
    made = policy()
    states = torch.rand(4, 5, 3)
    noise = torch.randn(4, 8, 2)
    actions = [made.select_action({"observation.state": states[:, step]}, noise=noise) for step in range(4)]
    first = made.predict_action_chunk({"observation.state": states[:, :1].expand(-1, 2, -1)}, noise=noise)
    second = made.predict_action_chunk({"observation.state": states[:, 2:4]}, noise=noise)
    assert torch.equal(torch.stack(actions[:3], dim=1), first)
    assert torch.equal(actions[3], second[:, 0])
    made.reset()
    again = made.predict_action_chunk({"observation.state": states[:, 0]}, noise=noise)
    assert torch.equal(again, first)


def test_averaged_weights_decide_once_there_are_any() -> None:
    made = policy()
    assert made.deciding is made.policy
    trained = [parameter.clone() for parameter in made.policy.parameters()]
    made.update()
    assert made.deciding is made.average.module
    for parameter in made.policy.parameters():
        parameter.data.add_(1.0)
    made.update()  # (1 + 1) / (10 + 1) of the average stays
    for average, before in zip(made.average.module.parameters(), trained, strict=True):
        torch.testing.assert_close(average, before + 9 / 11)
    assert not made.train().average.training
    assert policy(ema_decay=0.0).average is None


def test_gradients_flow_into_the_trained_weights_alone() -> None:
    made = policy(input_features={"observation.state": STATE, "observation.images.top": CAMERA})
    given = batch() | {"observation.images.top": torch.rand(4, 2, 3, 20, 24)}
    loss, metrics = made.train().forward(given)
    loss.backward()
    assert all(isinstance(value, float) for value in metrics.values()) and "action_mse" in metrics
    optimised = {id(parameter) for parameter in made.get_optim_params()}
    for parameter in made.parameters():
        assert (parameter.grad is not None) == (id(parameter) in optimised)


def test_data_of_a_single_step_need_no_axis() -> None:
    made = policy(n_obs_steps=1)
    given = batch(steps=1)
    flat = given | {"observation.state": given["observation.state"][:, 0]}
    losses = []
    for data in (given, flat):
        torch.manual_seed(0)
        losses.append(made.forward(data)[0])
    assert torch.equal(*losses)


def test_a_state_dict_restores_the_decisions() -> None:
    made, other = policy(), policy(ema_decay=0.5)
    made.update()
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    noise = torch.randn(4, 8, 2)
    assert torch.equal(
        made.predict_action_chunk(batch(), noise=noise), other.predict_action_chunk(batch(), noise=noise)
    )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"output_features": {}}, ValueError, "needs the output feature 'action'"),
        ({"input_features": {}}, ConfigurationError, "needs at least one observation key"),
        ({"network": "mpl"}, ConfigurationError, "choose one of: mlp"),
        ({"num_candidates": 0}, ConfigurationError, "num_candidates must be at least 1"),
        ({"network_settings": {"widht": 3}}, ConfigurationError, "did you mean width"),
        ({"input_features": {"a.b": STATE, "a_b": STATE}}, ValueError, "cannot be told from another"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DriftPolicy(config(**settings))


def test_step_counts_and_decays_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="horizon must be at least"):
        config(horizon=3)
    with pytest.raises(ValueError, match="ema_decay"):
        config(ema_decay=1.0)


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(ValueError, match=r"lacks \['observation.state'\]"):
        policy().select_action({"action": torch.zeros(1, 2)})
