"""The encoder of a whole observation: numbers as they are, images through a backbone, all concatenated."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from drift_policy.encoders.backbones import BackboneKind
from drift_policy.encoders.image import ImagePreprocessing, feature_size
from drift_policy.encoders.spec import ObservationSpec
from drift_policy.errors import ConfigurationError

_ALL_CAMERAS = "all_cameras"


class ObservationEncoder(nn.Module):
    """Encode every key of an observation and concatenate the features, step by step.

    All features of one observation step lie together, oldest step first, so that a network may split the condition
    into one token a step. Normalised numbers need no encoding; every image becomes one vector.

    Args:
        specs: key -> what it holds; the order of the keys is the order of the output.
        n_obs_steps: observation steps, To.
        backbone: the network of the images; needed where there are any.
        backbone_config: its settings.
        share_backbone: one network for all cameras, which must then show images of the same size to it.

    Raises:
        ConfigurationError: a key that cannot be used, or images that the backbone or its sharing does not allow.
    """

    def __init__(
        self,
        specs: Mapping[str, ObservationSpec],
        n_obs_steps: int,
        backbone: BackboneKind | None = None,
        backbone_config: Any = None,
        share_backbone: bool = False,
    ) -> None:
        super().__init__()
        self._n_obs_steps = n_obs_steps
        self._keys = list(specs)
        self._share_backbone = share_backbone
        cameras = {key: spec for key, spec in specs.items() if spec.kind == "image"}
        _check_names(cameras)
        self.preprocessing = nn.ModuleDict({key: ImagePreprocessing(spec) for key, spec in cameras.items()})
        self.backbones = nn.ModuleDict()
        sizes = {key: spec.shape[0] for key, spec in specs.items() if spec.kind == "state"}
        if cameras:
            if backbone is None:
                raise ConfigurationError(f"The images {list(cameras)} need an image backbone.")
            seen = _first_cameras(cameras, share_backbone)
            for name, spec in seen.items():
                self.backbones[name] = backbone.build(backbone_config, spec.shape[0], *spec.input_size)
            sizes |= {key: feature_size(self._backbone(key), spec) for key, spec in cameras.items()}
        self.output_size = n_obs_steps * sum(sizes.values())

    def draw_crops(self, batch: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Return the random crops of a training step: key -> corners [B, To, 2], for the keys that are cropped."""
        drawn = {
            key: preprocessing.draw(batch, self._n_obs_steps, generator)  # type: ignore[operator]  # its own method
            for key, preprocessing in self.preprocessing.items()
        }
        return {key: corners for key, corners in drawn.items() if corners is not None}

    def prefer_single_images(self) -> None:
        """Tell the backbones that have a `prefer_single_images` to lay out their weights for a robot loop on a CPU."""
        for backbone in self.backbones.values():
            getattr(backbone, "prefer_single_images", lambda: None)()

    def forward(self, observations: Mapping[str, Tensor], crops: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map observations to one condition vector [B, C].

        Steps are encoded each for itself: of T steps instead of To, the vector holds T times the numbers of one.

        Args:
            observations: key -> normalised numbers [B, To, D], or images [B, To, C, H, W], uint8 or float in 0..1.
            crops: key -> corners of the crops [B, To, 2]; the centre is taken without.
        """
        features = self._encode_images(observations, crops or {})
        encoded = [features.get(key, observations[key]) for key in self._keys]
        return torch.cat(encoded, dim=2).flatten(start_dim=1)

    def _encode_images(self, observations: Mapping[str, Tensor], crops: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images: dict[str, Tensor] = {}
        for key, preprocessing in self.preprocessing.items():
            corners = crops[key].flatten(0, 1) if key in crops else None
            images[key] = preprocessing(observations[key].flatten(0, 1), corners)
        if self._share_backbone and len(images) > 1:  # one larger batch instead of several small ones
            joined = self.backbones[_ALL_CAMERAS](torch.cat(list(images.values())))
            # Not chunk(): exporters would fix the batch size, on which the number of its parts depends.
            features = dict(zip(images, joined.unflatten(0, (len(images), -1)), strict=True))
        else:
            features = {key: self._backbone(key)(image) for key, image in images.items()}
        return {key: value.unflatten(0, observations[key].shape[:2]) for key, value in features.items()}

    def _backbone(self, camera: str) -> nn.Module:
        return self.backbones[_ALL_CAMERAS if self._share_backbone else camera]


def _check_names(cameras: Iterable[str]) -> None:
    """Refuse image keys that cannot name a part of a module."""
    for key in cameras:
        if not key or "." in key:
            raise ConfigurationError(f"Observation key {key!r} cannot be used: keys must not be empty or hold dots.")
        if hasattr(nn.ModuleDict(), key):
            raise ConfigurationError(f"Observation key {key!r} is a name PyTorch uses itself: choose another.")


def _first_cameras(cameras: Mapping[str, ObservationSpec], share: bool) -> dict[str, ObservationSpec]:
    """Return name of each backbone -> the spec of a camera that it reads."""
    if not share:
        return dict(cameras)
    sizes = {key: (spec.shape[0], *spec.input_size) for key, spec in cameras.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigurationError(
            f"policy.share_image_backbone=true needs cameras of one size after scaling and crop, but they are {sizes}: "
            "set resize and crop, or give each camera its own weights."
        )
    return {_ALL_CAMERAS: next(iter(cameras.values()))}
