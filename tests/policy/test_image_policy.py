"""Policies that see images: what their actions depend on, and how often an image is encoded."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drift_policy import Policy
from tests.helpers.image_policies import camera, tiny_image_policy
from tests.helpers.policies import HEAD_NAMES, CallCounter, tiny_batch, tiny_obs

B, G, TO = 3, 5, 2
TWO_CAMERAS = {"front": camera(crop=[8, 9]), "wrist": camera(9, 14, resize=[10, 12], crop=[8, 9])}
every_head = pytest.mark.parametrize("head", HEAD_NAMES)


def typical(policy: Policy, obs: dict[str, Any]) -> Tensor:
    """Return the chunks [B, Tp, Da] of a fixed noise."""
    return policy.predict_action(obs, generator=torch.Generator().manual_seed(0))["action_pred"]


def backbone_calls(policy: Policy) -> dict[str, CallCounter]:
    return {name: CallCounter(backbone) for name, backbone in policy.encoder.backbones.items()}


def with_black_border(images: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    framed = torch.zeros_like(images)
    rows, columns = slice(top, images.shape[-2] - bottom), slice(left, images.shape[-1] - right)
    framed[..., rows, columns] = images[..., rows, columns]
    return framed


@every_head
def test_the_loss_trains_the_networks_of_all_cameras(head: str) -> None:
    policy = tiny_image_policy(head, cameras=TWO_CAMERAS).train()
    loss, _ = policy.compute_loss(tiny_batch(policy))
    loss.backward()
    for name, parameter in policy.encoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        # A number added to a whole map changes no softmax.
        assert name.endswith("maps.bias") or bool((parameter.grad != 0).any()), name


@every_head
def test_the_actions_depend_on_every_camera_and_on_the_numbers(head: str) -> None:
    policy = tiny_image_policy(head, cameras=TWO_CAMERAS)
    obs, other = tiny_obs(policy), tiny_obs(policy, seed=1)
    before = typical(policy, obs)
    assert before.shape == (B, policy.horizon, policy.action_dim)
    for key in obs:
        changed = typical(policy, obs | {key: other[key]})
        assert bool(((changed - before).abs().flatten(1).amax(dim=1) > 1e-3).all()), key


def test_a_policy_may_see_images_alone() -> None:
    policy = tiny_image_policy(numbers=False)
    obs = tiny_obs(policy)
    assert torch.equal(typical(policy, obs["image"]), typical(policy, obs))  # type: ignore[arg-type]
    assert policy.normalizer.sizes == {"action": 2}
    assert bool(policy.compute_loss(tiny_batch(policy))[0].isfinite())


@pytest.mark.parametrize("form", ["float", "double", "array", "float array", "read-only array", "channels last"])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_forms_of_an_image(form: str) -> None:
    policy = tiny_image_policy(cameras=TWO_CAMERAS)
    obs = tiny_obs(policy)
    array = obs["front"].numpy()
    read_only = array.copy()
    read_only.setflags(write=False)
    given = {
        "float": obs["front"].float() / 255,
        "double": obs["front"].double() / 255,
        "array": array,
        "float array": array.astype(np.float32) / 255,
        "read-only array": read_only,
        "channels last": np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -3, -1)), -1, -3),
    }[form]
    # Actions span 400 units.
    torch.testing.assert_close(typical(policy, obs | {"front": given}), typical(policy, obs), rtol=1e-5, atol=1e-2)


def test_float_images_are_not_modified() -> None:
    policy = tiny_image_policy(cameras=TWO_CAMERAS)
    obs = {key: value.float() / 255 if key in TWO_CAMERAS else value for key, value in tiny_obs(policy).items()}
    before = {key: value.clone() for key, value in obs.items()}
    policy.predict_action(obs)
    policy.compute_loss(tiny_batch(policy) | {"obs": obs})
    policy.select_action({key: value[0, 0] for key, value in obs.items()})
    assert all(torch.equal(value, before[key]) for key, value in obs.items())


@pytest.mark.parametrize("training", [False, True])
def test_decisions_see_the_centre(training: bool) -> None:
    policy = tiny_image_policy().train(training)  # 8 x 9 of 10 x 12 pixels
    obs = tiny_obs(policy)
    framed = obs | {"image": with_black_border(obs["image"], 1, 1, 1, 2)}
    assert torch.equal(typical(policy, framed), typical(policy, obs))
    for more in ((2, 1, 1, 2), (1, 2, 1, 2), (1, 1, 2, 2), (1, 1, 1, 3)):
        inside = obs | {"image": with_black_border(obs["image"], *more)}
        assert not torch.equal(typical(policy, inside), typical(policy, obs)), more


def test_training_sees_the_crops_that_were_drawn() -> None:
    policy = tiny_image_policy("regression")
    batch = tiny_batch(policy)
    centre = {"crop.image": torch.ones(B, TO, 2, dtype=torch.int64)}
    corner = {"crop.image": torch.tensor([2, 3]).expand(B, TO, 2)}

    def loss(draws: dict[str, Tensor], **border: int) -> float:
        image = with_black_border(batch["obs"]["image"], **({"top": 0, "bottom": 0, "left": 0, "right": 0} | border))
        return policy.compute_loss(batch | {"obs": batch["obs"] | {"image": image}}, draws)[0].item()

    assert loss(corner, top=2, left=3) == loss(corner)
    assert loss(corner, top=3, left=3) != loss(corner)
    assert loss(corner, top=2, left=4) != loss(corner)
    assert loss(centre) == loss({}), "without crops the centre is seen"
    assert loss(corner) != loss(centre)


def test_training_draws_crops_of_its_own() -> None:
    policy = tiny_image_policy("regression")
    batch = tiny_batch(policy)
    losses = {policy.compute_loss(batch)[0].item() for _ in range(10)}
    assert len(losses) > 5


@every_head
def test_an_image_is_encoded_once_however_many_samples(head: str) -> None:
    policy = tiny_image_policy(head, cameras=TWO_CAMERAS)
    calls = backbone_calls(policy)
    assert policy.sample_actions(tiny_obs(policy), G).shape == (B, G, policy.horizon, policy.action_dim)
    policy.predict_action(tiny_obs(policy, batch=1))
    policy.compute_loss(tiny_batch(policy, batch=4))
    assert {name: counter.rows for name, counter in calls.items()} == {
        name: [B * TO, 1 * TO, 4 * TO] for name in ("front", "wrist")
    }


@every_head
def test_shared_weights_encode_all_images_in_one_call(head: str) -> None:
    policy = tiny_image_policy(head, cameras=TWO_CAMERAS, share_image_backbone=True)
    (calls,) = backbone_calls(policy).values()
    policy.sample_actions(tiny_obs(policy), G)
    policy.compute_loss(tiny_batch(policy, batch=4))
    assert calls.rows == [2 * B * TO, 2 * 4 * TO]


def test_rows_of_a_batch_equal_single_predictions() -> None:
    policy = tiny_image_policy(cameras=TWO_CAMERAS)
    obs, noise = tiny_obs(policy), torch.randn(B, 6, 2, generator=torch.Generator().manual_seed(0))
    together = policy.predict_action(obs, noise=noise)["action_pred"]
    for row in range(B):
        one = {key: value[row : row + 1] for key, value in obs.items()}
        alone = policy.predict_action(one, noise=noise[row : row + 1])["action_pred"]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-2)  # actions span 400 units


@pytest.mark.parametrize("as_float", [False, True])
def test_select_action_equals_predictions_on_the_stacked_history(as_float: bool) -> None:
    """The driver reuses its buffers."""
    policy = tiny_image_policy("regression", n_action_steps=2)
    episode = {key: value[:, 0] for key, value in tiny_obs(policy, batch=5).items()}
    if as_float:
        episode["image"] = episode["image"].float() / 255
    buffers = {key: torch.zeros_like(value[0]) for key, value in episode.items()}
    selected = []
    for step in range(5):
        for key, buffer in buffers.items():
            buffer.copy_(episode[key][step])
        selected.append(policy.select_action(buffers))
    expected: list[Tensor] = []
    for now in (0, 2, 4):
        history = {key: value[[max(now - 1, 0), now]].unsqueeze(0) for key, value in episode.items()}
        expected.extend(policy.predict_action(history)["action"][0])
    assert all(torch.equal(one, other) for one, other in zip(selected, expected[:5], strict=True))


def test_a_float64_policy_encodes_in_float64() -> None:
    policy = tiny_image_policy("regression", cameras=TWO_CAMERAS)
    obs = tiny_obs(policy)
    expected = typical(policy, obs)
    result = typical(policy.to(torch.float64), obs)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.float(), expected, rtol=1e-4, atol=1e-2)
    assert bool(
        policy.compute_loss(tiny_batch(policy) | {"action": tiny_batch(policy)["action"].double()})[0].isfinite()
    )
