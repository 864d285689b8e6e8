"""Tiny policies that see images, and the cameras and networks that tests give them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drift_policy import Policy
from drift_policy.encoders import ObservationSpec
from drift_policy.encoders.backbones import BackboneKind
from drift_policy.encoders.backbones.small_cnn import SmallCnnConfig
from tests.helpers.policies import tiny_policy

SMALL_CNN = SmallCnnConfig(channels=[16], kernel_sizes=[3], strides=[2], num_keypoints=3, feature_size=4)


def camera(
    height: int = 10, width: int = 12, *, crop: list[int] | None = None, resize: list[int] | None = None
) -> ObservationSpec:
    """Return an RGB camera; height and width differ, so that mixing them up shows."""
    return ObservationSpec(kind="image", shape=[3, height, width], crop=crop, resize=resize)


CROPPED = camera(crop=[8, 9])


def tiny_image_policy(
    head: str = "drift", *, cameras: dict[str, ObservationSpec] | None = None, numbers: bool = True, **settings: Any
) -> Policy:
    """Return a fitted policy that sees images.

    Args:
        head: a name of HEAD_CONFIGS.
        cameras: key -> what it shows; one cropped camera called "image" if absent.
        numbers: whether it also sees the two numbers "agent_pos".
        settings: arguments of `tiny_policy`.
    """
    observations: dict[str, int | ObservationSpec] = {**(cameras or {"image": CROPPED})}
    if numbers:
        observations["agent_pos"] = 2
    backbone = {"image_backbone_name": "small_cnn", "image_backbone": SMALL_CNN}
    return tiny_policy(head, observations=observations, **(backbone | settings))


@dataclass
class PixelsConfig:
    """Settings of `Pixels`."""

    factor: float = 1.0  # what every pixel is multiplied with


class Pixels(nn.Module):
    """A backbone that hides nothing: the features of an image are its pixels, times one weight."""

    def __init__(self, config: PixelsConfig, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        self.factor = nn.Parameter(torch.tensor(config.factor))

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == self.shape
        return images.flatten(1) * self.factor


PIXELS = BackboneKind(PixelsConfig, Pixels)
