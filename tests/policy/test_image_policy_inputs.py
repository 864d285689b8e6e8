"""Wrong images are refused with a message that says what is expected and what to do."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drift_policy import Policy
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.policies import tiny_obs

B, TO = 3, 2
SHAPE = (B, TO, 3, 10, 12)
HINT = " Its channels come last: move them before the height, for example np.moveaxis(image, -1, -3)."


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_image_policy()


def one_pixel(value: float) -> Tensor:
    """Grey images with a single pixel of another value."""
    images = torch.full(SHAPE, 0.5)
    images[1, 0, 2, 3, 4] = value
    return images


WRONG_VALUES: dict[str, tuple[str, Any]] = {
    "0..255": (r"is a float image with values from 0\.5 to 255: give float images in 0\.\.1, or uint8", one_pixel(255)),
    "-1..1": (r"is a float image with values from -1 to 0\.5: give float images in 0\.\.1, or uint8", one_pixel(-1)),
    "NaN": ("is a float image with values from nan to nan", one_pixel(float("nan"))),
    "infinite": (r"is a float image with values from 0\.5 to inf", one_pixel(float("inf"))),
    "int64": (r"is an image of torch\.int64: give uint8 \(0\.\.255\) or float \(0\.\.1\)", torch.zeros(SHAPE).long()),
    "int8": (r"is an image of torch\.int8: give uint8", np.zeros(SHAPE, np.int8)),
    "uint16": (r"is an image of torch\.uint16: give uint8", np.zeros(SHAPE, np.uint16)),
    "bool": (r"is an image of torch\.bool: give uint8", torch.zeros(SHAPE).bool()),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values_are_named(policy: Policy, case: str) -> None:
    message, image = WRONG_VALUES[case]
    obs = tiny_obs(policy, batch=B)
    with pytest.raises(ValueError, match=rf"obs\['image'\] {message}"):
        policy.predict_action(obs | {"image": image})
    with pytest.raises(ValueError, match=rf"obs\['image'\] {message}"):
        policy.sample_actions(obs | {"image": image}, 2)
    policy.reset()
    with pytest.raises(ValueError, match=rf"obs\['image'\] {message}"):
        policy.select_action({"image": image[1, 0], "agent_pos": obs["agent_pos"][1, 0]})


def test_the_extremes_and_their_rounding_are_accepted(policy: Policy) -> None:
    for value in (0.0, 1.0, -1e-6, 1 + 1e-6):
        assert bool(policy.predict_action(tiny_obs(policy) | {"image": one_pixel(value)})["action"].isfinite().all())


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((B, TO, 360), ""),
        ((B, 3, 10, 12), ""),
        ((B, TO, 3, 12, 10), ""),
        ((B, TO, 1, 10, 12), ""),
        ((B, 1, 3, 10, 12), ""),
        ((B, TO, 10, 12, 3), HINT),
        ((TO, 10, 12, 3), HINT),
    ],
    ids=str,
)
def test_a_wrong_shape_is_named(policy: Policy, shape: tuple[int, ...], hint: str) -> None:
    message = (
        "obs['image'] must have shape [B, 2, 3, 10, 12] (batch, observation steps, channels, height, width), "
        f"but has {list(shape)}.{hint}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.predict_action(tiny_obs(policy) | {"image": torch.zeros(shape, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((10, 12), ""), ((1, 3, 10, 12), ""), ((3, 12, 10), ""), ((10, 12, 3), HINT)],
    ids=str,
)
def test_a_wrong_shape_of_one_step_is_named(policy: Policy, shape: tuple[int, ...], hint: str) -> None:
    message = f"obs['image'] must have shape [3, 10, 12] (one step, without batch), but has {list(shape)}.{hint}"
    policy.reset()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        policy.select_action({"image": np.zeros(shape, np.uint8), "agent_pos": np.zeros(2)})


def test_images_and_numbers_must_be_of_one_batch(policy: Policy) -> None:
    obs = tiny_obs(policy, batch=B)
    with pytest.raises(ValueError, match=r"obs\['agent_pos'\] has batch size 3, but another key has 2"):
        policy.predict_action(obs | {"image": obs["image"][:2]})


@pytest.mark.parametrize("missing", ["image", "agent_pos"])
def test_a_missing_key_is_named(policy: Policy, missing: str) -> None:
    obs = {key: value for key, value in tiny_obs(policy).items() if key != missing}
    with pytest.raises(ValueError, match=f"lacks the key '{missing}'"):
        policy.predict_action(obs)
