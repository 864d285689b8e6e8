"""Our policies in what a Diffusion Policy workspace does: normaliser, batches, optimiser, EMA copy, checkpoints."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from drift_policy import load_policy
from drift_policy.errors import ConfigurationError
from drift_policy.integrations.diffusion_policy import DriftImagePolicy, DriftLowdimPolicy
from drift_policy.integrations.diffusion_policy.linear_normalizer import from_linear_normalizer
from tests.helpers.diffusion_policy_stub import LinearNormalizer
from tests.helpers.documents import blocks
from tests.helpers.programs import ROOT

MLP = {"name": "mlp", "width": 64, "depth": 1}
SHAPE_META = {
    "obs": {"image": {"shape": [3, 20, 24], "type": "rgb"}, "agent_pos": {"shape": [2], "type": "low_dim"}},
    "action": {"shape": [2]},
}
WORKSPACE = {  # what the workspaces' configurations define beside the policy
    "horizon": 8,
    "n_obs_steps": 2,
    "n_action_steps": 4,
    "n_latency_steps": 0,
    "obs_dim": 5,
    "action_dim": 2,
    "shape_meta": {
        "obs": {"image": {"shape": [3, 96, 96], "type": "rgb"}, "agent_pos": {"shape": [2]}},
        "action": {"shape": [2]},
    },
}


def lowdim_policy(**settings: Any) -> DriftLowdimPolicy:
    torch.manual_seed(0)
    return DriftLowdimPolicy(
        horizon=8, obs_dim=5, action_dim=2, n_obs_steps=2, n_action_steps=4, network=MLP, **settings
    )


def image_policy(**settings: Any) -> DriftImagePolicy:
    torch.manual_seed(0)
    backbone = {"name": "small_cnn", "channels": [16], "kernel_sizes": [3], "strides": [2], "num_keypoints": 3}
    return DriftImagePolicy(SHAPE_META, 8, 2, 4, crop_shape=[18, 20], image_backbone=backbone, network=MLP, **settings)


def lowdim_data(size: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    obs = 3 + 4 * torch.rand(size, 8, 5, generator=generator)  # all steps of the window, as its datasets give them
    return {"obs": obs, "action": 100 + 50 * obs[:, :1, :2].expand(-1, 8, -1)}


def image_data(size: int = 12) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 8, 3, 20, 24, generator=generator)
    position = 9 * torch.rand(size, 8, 2, generator=generator)
    return {"obs": {"image": images, "agent_pos": position}, "action": 100 + position[:, :1].expand(-1, 8, -1)}


def fitted(batch: dict[str, Any]) -> LinearNormalizer:
    normalizer = LinearNormalizer()
    normalizer.fit({"action": batch["action"]})
    if isinstance(batch["obs"], dict):
        normalizer.fit({"agent_pos": batch["obs"]["agent_pos"]})
        normalizer.put_image_range("image")
    else:
        normalizer.fit({"obs": batch["obs"]})
    return normalizer


def ema_step(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Average parameters as its EMAModel does: module by module, in the order in which they were registered."""
    for ours, new in zip(average.modules(), model.modules(), strict=True):
        for mean, value in zip(ours.parameters(recurse=False), new.parameters(recurse=False), strict=True):
            mean.data.mul_(decay).add_(value.data, alpha=1 - decay)


@pytest.mark.parametrize("make", [lowdim_policy, image_policy])
def test_a_loss_that_changes_with_the_step_is_refused(make: Any) -> None:
    head = {"name": "drift", "regression_weight": 1.0}
    make(head=head)
    with pytest.raises(ConfigurationError, match=r"regression_steps=9 .*Diffusion Policy workspace .*: leave it out"):
        make(head=head | {"regression_steps": 9})


@pytest.mark.parametrize("kind", ["lowdim", "image"])
def test_the_loop_of_a_workspace(kind: str, tmp_path: Path) -> None:
    model: Any = lowdim_policy() if kind == "lowdim" else image_policy()
    batch = lowdim_data() if kind == "lowdim" else image_data()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=3e-3)
    normalizer = fitted(batch)
    model.set_normalizer(normalizer)
    average.set_normalizer(normalizer)
    obs = batch["obs"] if kind == "image" else {"obs": batch["obs"]}

    def error(policy: Any) -> float:
        policy.eval()
        torch.manual_seed(1)
        predicted = policy.predict_action(obs)["action_pred"]
        policy.train()
        return nn.functional.mse_loss(predicted, batch["action"]).item()

    before = error(model)
    for _ in range(150):
        loss = model.compute_loss(batch)
        assert loss.shape == ()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        ema_step(average, model, 0.5)
    assert error(model) < 0.5 * before
    assert error(average) < 0.5 * before
    with torch.no_grad():
        assert model.compute_loss(batch).item() > 0

    average.eval().reset()
    assert average.device == torch.device("cpu") and average.dtype == torch.float32
    restored: Any = lowdim_policy() if kind == "lowdim" else image_policy()
    restored.load_state_dict(average.state_dict())
    exported = load_policy(average.save_pretrained(tmp_path))
    torch.manual_seed(3)
    expected = average.predict_action(obs)
    assert expected["action"].shape == (len(batch["action"]), 4, 2)
    assert torch.equal(expected["action"], expected["action_pred"][:, 1:5])
    for policy in (restored.eval(), exported):
        torch.manual_seed(3)
        seen = {key: value[:, :2] for key, value in obs.items()}
        assert torch.equal(policy.predict_action(seen)["action_pred"], expected["action_pred"])


@pytest.mark.parametrize("kind", ["lowdim", "image"])
def test_decisions_draw_the_configured_candidates(kind: str) -> None:
    policy: Any = lowdim_policy(num_candidates=6) if kind == "lowdim" else image_policy(num_candidates=6)
    batch = lowdim_data() if kind == "lowdim" else image_data()
    policy.set_normalizer(fitted(batch))
    drawn: list[int] = []
    policy.policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[1]))
    policy.eval().predict_action(batch["obs"] if kind == "image" else {"obs": batch["obs"]})
    assert drawn == [6]


@pytest.mark.parametrize("make", [lowdim_policy, image_policy])
def test_the_noise_at_test_time_is_what_is_usual_for_the_head(make: Any) -> None:
    assert make().policy.config.noise_scale == 0.5
    for head in ("flow", "mip", "regression"):
        assert make(head={"name": head}).policy.config.noise_scale == 1.0
        assert make(head={"name": head}, noise_scale=0.25).policy.config.noise_scale == 0.25


def test_more_steps_may_be_executed_than_trained_with() -> None:
    """As `eval_real_robot.py` asks for: a robot that moves on while it decides needs the rest of the chunk."""
    policy, batch = lowdim_policy(), lowdim_data()
    policy.set_normalizer(fitted(batch))
    policy.eval().n_action_steps = policy.horizon - policy.n_obs_steps + 1
    answer = policy.predict_action({"obs": batch["obs"]})
    assert answer["action"].shape == (len(batch["action"]), 7, 2)
    assert torch.equal(answer["action"], answer["action_pred"][:, 1:])
    with pytest.raises(ConfigurationError, match="n_action_steps is 8; give 1 to .* = 7"):
        policy.n_action_steps = 8


def test_double_precision_moves_with_to() -> None:
    policy, batch = lowdim_policy(), lowdim_data()
    policy.set_normalizer(fitted(batch))
    policy.to(torch.float64)
    assert policy.dtype == torch.float64
    assert policy.predict_action({"obs": batch["obs"]})["action"].dtype == torch.float64
    assert policy.compute_loss(batch).dtype == torch.float64


@pytest.mark.parametrize(("title", "policy_class"), [("lowdim", DriftLowdimPolicy), ("image", DriftImagePolicy)])
def test_the_yaml_of_the_page_makes_the_policy(title: str, policy_class: type) -> None:
    hydra_utils = pytest.importorskip("hydra.utils", reason="needs Hydra of the train extra")
    section, parts = (
        next(block.text for block in blocks("diffusion_policy.md") if block.title == name) for name in (title, "parts")
    )
    # The checkout registers a resolver that evaluates; the sum is written out, so that nothing is evaluated here.
    section = section.replace("${eval:'${n_action_steps}+${n_latency_steps}'}", "${n_action_steps}")
    config = OmegaConf.merge(WORKSPACE, OmegaConf.create(section))
    policy = hydra_utils.instantiate(config.policy)
    assert type(policy) is policy_class and policy.n_action_steps == 4
    config = OmegaConf.merge(config, OmegaConf.create(parts.replace("[256, 512, 1024]", "[16, 32]")))
    policy = hydra_utils.instantiate(config.policy)
    assert policy.policy.config.network.down_dims == [16, 32]


@pytest.mark.parametrize("page", ["diffusion_policy.md", "lerobot.md"])
def test_the_links_of_the_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "docs" / page).read_text())
    assert links and all((ROOT / "docs" / link).exists() for link in links)


def test_the_normaliser_has_the_same_maps() -> None:
    given = LinearNormalizer()
    data = {"obs": torch.rand(50, 5) * 7 - 2, "action": torch.rand(50, 2) * 100}
    given.fit(data)
    ours = from_linear_normalizer(given, {"obs": 5, "action": 2})
    for key, value in data.items():
        torch.testing.assert_close(ours.normalize(key, value), given.normalize(key, value))
        torch.testing.assert_close(ours.unnormalize(key, ours.normalize(key, value)), value)


def test_one_number_stands_for_every_dimension() -> None:
    given = LinearNormalizer()
    given.put("action", torch.ones(1), torch.zeros(1))
    ours = from_linear_normalizer(given, {"action": 3})
    assert torch.equal(ours.normalize("action", torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[1.0, 2.0, 3.0]]))


def broken(key: str, scale: Tensor, offset: Tensor) -> LinearNormalizer:
    normalizer = fitted(image_data())
    normalizer.put(key, scale, offset)
    return normalizer


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (object(), "give Diffusion Policy's LinearNormalizer"),
        (LinearNormalizer(), "lacks the key 'agent_pos'"),
        (broken("action", torch.ones(3), torch.zeros(3)), "'action' has 3 numbers; expected 2"),
        (broken("action", torch.zeros(2), torch.zeros(2)), "holds zeros"),
        (broken("agent_pos", torch.full((2,), torch.nan), torch.zeros(2)), "NaN"),
        (broken("image", torch.tensor([255.0]), torch.zeros(1)), "maps the images 'image' with scale 255"),
    ],
)
def test_a_normaliser_that_does_not_fit_is_refused(normalizer: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        image_policy().set_normalizer(normalizer)


def test_images_as_they_are_need_no_map() -> None:
    policy = image_policy()
    policy.set_normalizer(broken("image", torch.ones(1), torch.zeros(1)))
    assert policy.policy.normalizer.is_fitted


@pytest.mark.parametrize(
    ("shape_meta", "message"),
    [
        ({"obs": {}}, "shape_meta must be"),
        ({"obs": {"cloud": {"shape": [3, 4], "type": "depth"}}, "action": {"shape": [2]}}, "has the type 'depth'"),
        ({"obs": {"pos": {"shape": [2]}}, "action": {"shape": [2, 2]}}, r"must be \[Da\]"),
    ],
)
def test_a_shape_meta_that_does_not_fit_is_refused(shape_meta: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DriftImagePolicy(shape_meta, 8, 2, 4, network=MLP)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.network\.widht does not exist"):
        DriftLowdimPolicy(8, 5, 2, 2, 4, network={"name": "mlp", "widht": 3})


def test_past_actions_and_missing_keys_are_refused() -> None:
    policy, batch = lowdim_policy(), lowdim_data()
    policy.set_normalizer(fitted(batch))
    with pytest.raises(ValueError, match="past_action: False"):
        policy.predict_action({"obs": batch["obs"], "past_action": batch["action"]})
    with pytest.raises(ValueError, match="lacks the key 'obs'"):
        policy.predict_action({"state": batch["obs"]})


def test_the_image_workspace_can_freeze_the_encoder() -> None:
    policy, batch = image_policy(), image_data()
    policy.set_normalizer(fitted(batch))
    policy.obs_encoder.eval()
    policy.obs_encoder.requires_grad_(False)
    policy.compute_loss(batch).backward()
    grads = {name: parameter.grad is not None for name, parameter in policy.named_parameters()}
    assert not any(given for name, given in grads.items() if ".encoder." in name)
    assert all(given for name, given in grads.items() if ".head." in name)
