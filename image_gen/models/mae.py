"""The masked autoencoder (MAE) whose features the drifting loss compares (arXiv 2602.04770, appendix A.4).

A ResNet encodes the image with half of its patches zeroed, a U-Net reconstructs them; a classifier on the encoder is
trained in the last steps. Works on latents ("latent-MAE") or on pixels, which are then folded into patches first.

Shape letters: B batch, C channels, H and W height and width of an image or latent; s = input_patch_size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.errors import ConfigurationError, require
from image_gen.feature_maps import Features, FeatureSettings, input_rms, map_features
from image_gen.models.mae_decoder import Decoder
from image_gen.models.mae_encoder import Encoder
from image_gen.models.sizes import require_range

_STAGES = 4


@dataclass
class MaeConfig:
    """Settings of `MAE`, named as in the released metadata. The defaults are the latent-MAE of the ablations."""

    in_channels: int = 4  # channels of an image or latent
    base_channels: int = 256  # C: the stages have C, 2C, 4C and 8C channels
    layers: list[int] = field(default_factory=lambda: [3, 4, 6, 3])  # residual blocks of the four stages
    num_classes: int = 1000  # classes of the classifier
    patch_size: int = 2  # side of a masked patch, on the folded image
    input_patch_size: int = 1  # s: side of the patches that pixels are folded into; 1 leaves the image as it is
    dropout_prob: float = 0.0  # inside residual blocks, in training

    def __post_init__(self) -> None:
        for name, least, most in (
            ("in_channels", 1, 4096),
            ("base_channels", 1, 4096),
            ("num_classes", 1, 1_000_000),
            ("patch_size", 1, 256),
            ("input_patch_size", 1, 256),
        ):
            require_range("MAE", name, getattr(self, name), least, most)
        self.layers = list(self.layers)
        require(len(self.layers) == _STAGES, f"MAE: layers must hold {_STAGES} numbers, but is {self.layers}.")
        for depth in self.layers:
            require_range("MAE", "layers", depth, 1, 256)
        require(0 <= self.dropout_prob < 1, f"MAE: dropout_prob must be in [0, 1), but is {self.dropout_prob}.")


# 256 and 640 are the paper's widths; the tiny ones fit a CPU.
MAE_SIZES: dict[str, MaeConfig] = {
    "latent_256": MaeConfig(),
    "latent_640": MaeConfig(base_channels=640),
    "pixel_256": MaeConfig(in_channels=3, input_patch_size=8),
    "pixel_640": MaeConfig(in_channels=3, input_patch_size=8, base_channels=640),
    "latent_tiny": MaeConfig(base_channels=32, layers=[2, 2, 2, 2]),
    "digits_tiny": MaeConfig(in_channels=1, base_channels=16, layers=[2, 2, 2, 2], num_classes=10, patch_size=1),
    "fashion_tiny": MaeConfig(
        in_channels=1, base_channels=32, layers=[2, 2, 2, 2], num_classes=10, patch_size=1, input_patch_size=2
    ),
}


def build_mae(size: str, **changes: Any) -> MAE:
    """Return a new masked autoencoder of a size in `MAE_SIZES`, with `changes` to its `MaeConfig`.

    Raises:
        ConfigurationError: an unknown size or setting, or settings that do not fit together.
    """
    if size not in MAE_SIZES:
        raise ConfigurationError(f"Unknown MAE size {size!r}; expected one of {', '.join(MAE_SIZES)}.")
    try:
        return MAE(replace(MAE_SIZES[size], **changes))
    except TypeError as error:
        raise ConfigurationError(f"An MAE has no such setting: {error}.") from error


class MaeLosses(NamedTuple):
    """Losses of each image, [B]."""

    total: Tensor  # (1 - lambda_cls) * reconstruction + lambda_cls * classification
    reconstruction: Tensor  # squared error over masked entries, divided by the number of masked positions
    classification: Tensor  # cross-entropy
    correct: Tensor  # 1 where the most probable class is the true one, without gradient


class MAE(nn.Module):
    """Masked autoencoder with a classifier.

    Args:
        config: settings.
    """

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.in_channels * config.input_patch_size**2
        self.encoder = Encoder(channels, config.base_channels, config.layers, config.dropout_prob)
        self.decoder = Decoder(config.base_channels, channels)
        self.fc = nn.Linear(8 * config.base_channels, config.num_classes)
        self.reset_parameters()

    @property
    def has_classifier(self) -> bool:
        """Whether the classifier was ever trained: its bias begins at zero, and only the classification moves it."""
        return bool(self.fc.bias.any())

    def features(self, x: Tensor, settings: FeatureSettings | None = None) -> Features:
        """Return every feature that the drifting loss compares but the flattened input itself.

        Args:
            x: images or latents, [B, C, H, W].
            settings: which features to take; the paper's if absent.

        Returns:
            name -> [B, locations, channels]: `norm_x` is the root mean square of each channel of the folded input;
            `conv1`, `layer1` to `layer4` and `layer<i>_blk<k>` come with their statistics (`feature_maps`).
        """
        settings = FeatureSettings() if settings is None else settings
        folded = self.fold(x)
        features = {"norm_x": input_rms(folded)}
        for name, maps in self.encoder(folded, settings.every_k_block).items():
            features |= map_features(name, maps, settings)
        return features

    def losses(self, x: Tensor, class_ids: Tensor, mask: Tensor, lambda_cls: float = 0.0) -> MaeLosses:
        """Return the training losses of each image.

        Args:
            x: images or latents, [B, C, H, W].
            class_ids: true classes, integers [B].
            mask: 1 where the folded image is hidden, else 0, [B, 1, H/s, W/s]; see `draw_mask`.
            lambda_cls: weight of the classification, from 0 to 1.

        Raises:
            ValueError: a shape or weight that does not fit.
        """
        if not 0 <= lambda_cls <= 1:
            raise ValueError(f"lambda_cls must be from 0 to 1, but is {lambda_cls}.")
        folded = self.fold(x)
        if mask.shape != (len(x), 1, *folded.shape[2:]):
            raise ValueError(f"mask must have shape {[len(x), 1, *folded.shape[2:]]}, but has {list(mask.shape)}.")
        mask = mask.to(folded.dtype)
        maps = self.encoder(folded * (1 - mask))
        error = (self.decoder(maps).float() - folded.float()).square() * mask
        reconstruction = error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)
        logits = self.fc(maps["layer4"].mean(dim=(2, 3))).float()
        classification = functional.cross_entropy(logits, class_ids.long(), reduction="none")
        return MaeLosses(
            total=lambda_cls * classification + (1 - lambda_cls) * reconstruction,
            reconstruction=reconstruction,
            classification=classification,
            correct=(logits.detach().argmax(dim=1) == class_ids).float(),
        )

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits [B, num_classes] of unmasked images or latents [B, C, H, W]."""
        return self.fc(self.encoder(self.fold(x))["layer4"].mean(dim=(2, 3)))

    def reconstruct(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the decoded images [B, C, H, W] of images whose masked positions (1 in `mask`) are hidden."""
        folded = self.fold(x)
        decoded = self.decoder(self.encoder(folded * (1 - mask.to(folded.dtype))))
        s = self.config.input_patch_size
        return rearrange(decoded, "b (p q c) h w -> b c (h p) (w q)", p=s, q=s)

    def draw_mask(self, x: Tensor, ratio: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
        """Draw a mask for images [B, C, H, W]: each patch is hidden with probability `ratio`, [B, 1, H/s, W/s].

        Drawn on the generator's device (the CPU's without one), so that a seed gives the same masks everywhere.
        """
        side = self.config.input_patch_size
        height, width = x.shape[2] // side, x.shape[3] // side
        patch = self.config.patch_size
        shape = (len(x), 1, -(-height // patch), -(-width // patch))
        device = "cpu" if generator is None else generator.device
        hidden = (torch.rand(shape, generator=generator, device=device) < ratio).to(x.device, x.dtype)
        return hidden.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[:, :, :height, :width]

    def fold(self, x: Tensor) -> Tensor:
        """Fold patches of s x s pixels into channels (row, column, channel): [B, C, H, W] -> [B, s*s*C, H/s, W/s].

        Raises:
            ValueError: other channels than configured, or a side that s does not divide.
        """
        s = self.config.input_patch_size
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or x.shape[2] % s or x.shape[3] % s:
            raise ValueError(
                f"images have shape {list(x.shape)}; expected [B, {self.config.in_channels}, H, W] with sides that "
                f"are multiples of {s}."
            )
        return x if s == 1 else rearrange(x, "b c (h p) (w q) -> b (p q c) h w", p=s, q=s)

    def save_pretrained(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> Path:
        """Write config.json and model.safetensors to `folder`, for `image_gen.load_mae`."""
        from image_gen.artifacts.pretrained import save_model

        return save_model(self, folder, metadata)

    def reset_parameters(self) -> None:
        """Initialise convolutions for ReLU (He et al. 2015), and the classifier with small weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
