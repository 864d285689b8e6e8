"""taef2: a tiny autoencoder for the latents of FLUX.2, 8x down, 32 channels (github.com/madebyollin/taesd)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.errors import CheckpointError
from image_gen.tokenizers.base import Randomness, Tokenizer

PUBLISHED_FILE = "taef2.safetensors"
ENCODER_FILE = "encoder.safetensors"
DECODER_FILE = "decoder.safetensors"
HOW_TO_GET = (
    f"expected {PUBLISHED_FILE}, or {ENCODER_FILE} and {DECODER_FILE}. Get it with\n"
    f"  hf download madebyollin/taef2 {PUBLISHED_FILE} --local-dir taef2"
)
_WIDTH = 64
_POOL_WIDTH = 256
_POOL_GROUPS = 4
_LATENT_CHANNELS = 32
_CLAMP = 3.0


def _conv(in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)


class _Block(nn.Module):
    """Three convolutions with a skip connection; with `pool`, a pointwise bottleneck is added to the input first."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        w = _WIDTH
        self.conv = nn.Sequential(_conv(w, w), nn.ReLU(), _conv(w, w), nn.ReLU(), _conv(w, w))
        self.pool: nn.Sequential | None = None
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(w, _POOL_WIDTH, 1, bias=False),
                nn.GroupNorm(_POOL_GROUPS, _POOL_WIDTH),
                nn.ReLU(),
                nn.Conv2d(_POOL_WIDTH, w, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return functional.relu(self.conv(x) + x)


class _SoftClamp(nn.Module):
    """Limits latents to [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / _CLAMP) * _CLAMP


def _encoder() -> nn.Sequential:
    w = _WIDTH
    layers: list[nn.Module] = [_conv(3, w), _Block()]
    for pool in (False, False, True):
        layers += [_conv(w, w, stride=2, bias=False), *(_Block(pool) for _ in range(3))]
    return nn.Sequential(*layers, _conv(w, _LATENT_CHANNELS))


def _decoder() -> nn.Sequential:
    w = _WIDTH
    layers: list[nn.Module] = [_SoftClamp(), _conv(_LATENT_CHANNELS, w), nn.ReLU()]
    for pool in (True, False, False):
        layers += [*(_Block(pool) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(w, w, bias=False)]
    return nn.Sequential(*layers, _Block(), _conv(w, 3))


class Taef2(Tokenizer):
    """The autoencoder with its weights.

    Args:
        folder: with taef2.safetensors as it is published, or with encoder.safetensors and decoder.safetensors.

    Raises:
        CheckpointError: a file is missing, damaged, or holds another network.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(image_channels=3, latent_channels=_LATENT_CHANNELS, factor=8)
        self.encoder = _encoder()
        self.decoder = _decoder()
        folder = Path(folder)
        published = folder / PUBLISHED_FILE
        if published.is_file():
            tensors = _read(published)
            _load(self.encoder, _select(tensors, "encoder.layers.", first=0), published)
            # The published decoder has no layer for the clamp of the latents.
            _load(self.decoder, _select(tensors, "decoder.layers.", first=1), published)
        else:
            for network, name in ((self.encoder, ENCODER_FILE), (self.decoder, DECODER_FILE)):
                _load(network, _read(folder / name), folder / name)
        self.freeze()

    def _encode(self, images: Tensor, generator: Randomness) -> Tensor:
        return self.encoder((images + 1) / 2)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents) * 2 - 1


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {HOW_TO_GET}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): download it again.") from error


def _select(tensors: dict[str, Tensor], prefix: str, first: int) -> dict[str, Tensor]:
    """Take the tensors below `prefix`, with their layers counted from `first`; other names are kept to be refused."""
    selected = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            layer, _, rest = name.removeprefix(prefix).partition(".")
            selected[f"{int(layer) + first}.{rest}" if layer.isdecimal() else name] = tensor
    return selected


def _load(network: nn.Sequential, tensors: dict[str, Tensor], path: Path) -> None:
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise CheckpointError(f"{path} holds another network than taef2's: {HOW_TO_GET}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds NaN or infinity: download it again.")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
