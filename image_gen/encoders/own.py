"""An encoder of the user: a network that a function of theirs builds, with weights from a file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from drift_policy.errors import CheckpointError, ConfigurationError, require
from image_gen.encoders.hooked import HookedFeatures, Preprocessing
from image_gen.feature_maps import FeatureSettings

PREFIX = "own."  # of the names of its features


def load_own_encoder(
    factory: str,
    weights: str | Path | None,
    layers: Sequence[str],
    *,
    image_size: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    settings: FeatureSettings | None = None,
) -> HookedFeatures:
    """Return a network of the user as a frozen encoder.

    Args:
        factory: "module:function"; the function takes no argument and returns the network. The module is imported.
        weights: safetensors file with exactly the tensors of the network; None keeps those that the function gave it.
        layers: names of modules in the network, whose outputs are the features.
        image_size: side in pixels that images are resized to; None keeps them.
        mean: of each channel, of images in [0, 1].
        std: of each channel, of images in [0, 1].
        settings: which features to take of each layer.

    Raises:
        ConfigurationError: no such function, it gives no network, or the network lacks a layer.
        CheckpointError: the weights are missing, damaged, or another network's.
    """
    network = _build(factory)
    if weights is not None:
        _load(network, Path(weights), factory)
    return HookedFeatures(network, layers, Preprocessing(image_size, mean, std), settings, PREFIX)


def _build(factory: str) -> nn.Module:
    module, _, function = factory.partition(":")
    require(
        bool(module and function) and all(part.isidentifier() for part in [*module.split("."), function]),
        f"feature.own.factory={factory!r} is no function: give module:function, such as my_package.encoders:resnet50.",
    )
    try:
        build = getattr(import_module(module), function)
    except ImportError as error:
        raise ConfigurationError(
            f"feature.own.factory names the module {module!r}, which cannot be imported ({error}): install it, or add "
            "its folder to PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise ConfigurationError(f"feature.own.factory={factory!r}: {module} has no {function}.") from error
    network = build()
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"feature.own.factory={factory!r} returned {type(network).__name__}; expected a torch.nn.Module."
        )
    return network


def _load(network: nn.Module, path: Path, factory: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"feature.own.weights={path} is missing: give a safetensors file.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}).") from error
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            f"{path} does not hold the weights of the network of {factory}: {wrong[0]} is missing, unknown or of "
            f"another shape ({len(wrong)} in all). Save that network's own state_dict()."
        )
    network.load_state_dict(tensors)
