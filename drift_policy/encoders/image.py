"""Encoder of camera images: scaling, crop, range, then a network of choice, once an observation."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.encoders.crop import crop_at, crop_centre, draw_crops
from drift_policy.encoders.spec import ObservationSpec
from drift_policy.errors import ConfigurationError


class ImagePreprocessing(nn.Module):
    """Images of one key as the network wants them: scaled, cropped, in [-1, 1].

    Args:
        spec: of the key.
    """

    reference: Tensor

    def __init__(self, spec: ObservationSpec) -> None:
        super().__init__()
        self.resize = None if spec.resize is None else tuple(spec.resize)
        self.crop = None if spec.crop is None else (spec.crop[0], spec.crop[1])
        height, width = spec.resize or spec.shape[1:]
        self._size = (height, width)
        # Tells the floating-point type to convert bytes to; moves with the policy.
        self.register_buffer("reference", torch.zeros(()), persistent=False)

    def draw(self, batch: int, n_obs_steps: int, generator: torch.Generator | None) -> Tensor | None:
        """Return the corners of the random crops of a training step, [B, To, 2], or None without crop."""
        if self.crop is None:
            return None
        return draw_crops((batch, n_obs_steps), self._size, self.crop, generator)

    def forward(self, images: Tensor, corners: Tensor | None = None) -> Tensor:
        """Map images [N, C, H, W], uint8 or float in 0..1, to float [N, C, h, w] in [-1, 1].

        Args:
            images: as the buffer or the camera gives them.
            corners: of the crops, [N, 2]; the centre is taken without.
        """
        is_bytes = images.dtype == torch.uint8
        if self.resize is not None:
            images = functional.interpolate(images.float(), self.resize, mode="bilinear", antialias=True)
        if self.crop is not None:
            images = crop_centre(images, self.crop) if corners is None else crop_at(images, corners, self.crop)
        # Contiguous bytes convert several times faster, and convolutions on a CPU want this layout.
        floats = images.contiguous().to(self.reference.dtype)
        return floats * (1 / 127.5 if is_bytes else 2.0) - 1.0


def feature_size(backbone: nn.Module, spec: ObservationSpec) -> int:
    """Return how many numbers a backbone makes of an image, by trying it.

    Raises:
        ConfigurationError: it does not map [N, C, H, W] to [N, F].
    """
    height, width = spec.input_size
    was_training = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(2, spec.shape[0], height, width))
    except RuntimeError as error:
        raise ConfigurationError(
            f"The image backbone cannot read images [{spec.shape[0]}, {height}, {width}]: {error}"
        ) from error
    backbone.train(was_training)
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigurationError(
            f"An image backbone must return one vector an image, [N, F], but returned {shape} for 2 images."
        )
    return features.shape[1]
